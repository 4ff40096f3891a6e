"""Drift detection: compares answers with the baseline in the validation report."""
