"""Drift: whether answers are still like those that a version was validated on."""
