"""The settings: one typed, frozen object, read once from a file and the environment."""
