"""Feedback: predictions that wait for labels, labels, and the quality that they show."""
