"""Validation: what a version answers on rows whose labels are known, and whether that will do."""
