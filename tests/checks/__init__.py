"""What `make check` asks beside the linters; each tells, in a line, what it could not ask."""
