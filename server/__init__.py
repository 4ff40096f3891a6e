"""The composition root: what a server checks before it starts, and what a worker is made of."""
