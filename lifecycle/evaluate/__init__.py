"""Validation: measures a version on labelled rows, and checks the thresholds."""
