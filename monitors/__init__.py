"""Monitoring: metrics, logs, drift and feedback."""
