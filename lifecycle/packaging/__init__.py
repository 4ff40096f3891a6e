"""From a checkout and versions of models to a bento, and from a bento to an image."""
