"""JSON logs, written on threads of their own."""
