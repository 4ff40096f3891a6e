"""Models in a process of their own, one for each device, which all workers of a server ask."""
