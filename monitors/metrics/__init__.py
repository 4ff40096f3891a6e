"""The metrics of all workers of a server: their definitions, files and exposition."""
