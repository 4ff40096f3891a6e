"""Kaiten against its peers and against what the hardware does without HTTP: `make bench`."""
