"""The GPU benchmark: one command, 8 minutes, results written as they come."""
