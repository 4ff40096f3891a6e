"""Model tags: ``name:version``, within the rules of BentoML's tags."""

import re

NAME_PATTERN = r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?"
NAME_LIMIT = 63
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Return whether a text is valid on either side of the colon."""
    return len(text) <= NAME_LIMIT and _NAME.fullmatch(text) is not None


def split(tag: str) -> tuple[str, str]:
    """Return the name and the version; without a colon, the version is empty."""
    name, _, version = tag.partition(":")
    return name, version
