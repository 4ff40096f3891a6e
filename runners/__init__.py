"""Adaptive batching and models: what runs a request's inputs on a device."""
