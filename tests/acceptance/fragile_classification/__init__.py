"""A task for tests: the quickstart's, with two texts that it can not stand."""
