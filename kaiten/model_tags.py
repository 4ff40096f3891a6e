"""Model tags: ``name:version``, within the rules of BentoML's tags, and references to versions."""

import re
from dataclasses import dataclass

NAME_PATTERN = r"[a-z0-9]([-._a-z0-9]*[a-z0-9])?"
NAME_LIMIT = 63
# Where a version may serve; lifecycle/audit_log.py says what each is for.
STAGES = ("staging", "production")
_NAME = re.compile(NAME_PATTERN)


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A version by its number, or the version that is in a stage; the other is empty."""

    name: str
    version: str = ""
    stage: str = ""

    @classmethod
    def parse(cls, text: str) -> "ModelReference":
        """Return the reference ``name:version``, ``name@stage``, or ``name`` (in production).

        Raises:
            ValueError: The text is none of these.

        """
        name, at, stage = text.partition("@")
        name, colon, version = (name, "", "") if at else text.partition(":")
        pinned = is_name(version) and version != "latest"
        if not is_name(name) or (colon and not pinned) or (at and stage not in STAGES):
            raise ValueError(
                f"{text!r} does not name a version; write name:version, name@staging, or a name "
                "alone for the version in production"
            )
        return cls(name, version) if colon else cls(name, stage=stage or "production")


def is_name(text: str) -> bool:
    """Return whether a text is valid on either side of the colon."""
    return len(text) <= NAME_LIMIT and _NAME.fullmatch(text) is not None


def split(tag: str) -> tuple[str, str]:
    """Return the name and the version; without a colon, the version is empty."""
    name, _, version = tag.partition(":")
    return name, version
