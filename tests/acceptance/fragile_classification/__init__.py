"""A task for tests: the quickstart's, with two texts on which it fails."""
