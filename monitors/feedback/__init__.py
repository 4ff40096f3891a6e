"""How good answers are: predictions that wait for labels, labels, and what both come to."""
