"""How a loaded network computes one batch."""
