"""Adaptive batching: which inputs wait, and which of them share a batch."""
