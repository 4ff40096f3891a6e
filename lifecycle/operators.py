"""What the operator's commands share: who calls them, and what they ask for."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be validated, on what."""

    tag: str
    data: Path
    golden: Path | None = None
    against: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    slices: tuple[str, ...] = ()
    partly: bool = False


def operator() -> str:
    """Return who calls, by the system's account."""
    # Not getpass.getuser, which believes the environment.
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        # In a container, a user may have a number and no name.
        return f"uid {number}"
