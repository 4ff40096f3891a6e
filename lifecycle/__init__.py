"""The life of a version: registered, validated, promoted, packaged."""
