"""Admission: answers or refuses a request before it gets a task."""
