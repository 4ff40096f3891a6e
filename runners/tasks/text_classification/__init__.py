"""Text classification: one of several labels for each text."""
