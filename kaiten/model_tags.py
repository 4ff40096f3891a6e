"""How models are named: ``name:version``, as BentoML's tags allow."""

import re

NAME_PATTERN = r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?"
NAME_LIMIT = 63
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Return whether it may stand on either side of the colon."""
    return len(text) <= NAME_LIMIT and _NAME.fullmatch(text) is not None


def split(tag: str) -> tuple[str, str]:
    """Return the name and the version; the version is empty where there is no colon."""
    name, _, version = tag.partition(":")
    return name, version
