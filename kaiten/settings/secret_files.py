"""Secrets as files in one folder, as containers are given them."""

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings

_PREFIX = "kaiten_"


def read(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return what the files of these names hold, by name, without a newline at the end.

    A folder that is not there has none, and what is named otherwise is left alone. InvalidSettings
    names every file that can not be used or that looks like one of these, and never its content.
    """
    try:
        there = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return {}
    except OSError as error:
        reason = (
            f"{folder} can not be read: {error.strerror}; name a folder that the server may read"
        )
        raise InvalidSettings([Detail("KAITEN_SECRETS", reason)], "environment") from None
    found: dict[str, str] = {}
    problems: list[Detail] = []
    for name in there:
        if name not in names:
            if name.lower().startswith(_PREFIX):
                problems.append(Detail(name, _unknown(name, names)))
            continue
        try:
            found[name] = _content(folder / name)
        except ValueError as error:
            problems.append(Detail(name, str(error)))
    if problems:
        raise InvalidSettings(problems, str(folder))
    return found


def _content(path: Path) -> str:
    """Return what a file holds; ValueError says what is wrong with it."""
    try:
        content = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        # The error would quote it.
        raise ValueError("is not in UTF-8; write the secret alone, as text") from None
    except OSError as error:
        reason = f"can not be read: {error.strerror}; let the server's user read it"
        raise ValueError(reason) from None
    if not content.strip():
        raise ValueError("is empty; write the secret into it, or take the file away")
    return content


def _unknown(name: str, names: Collection[str]) -> str:
    guess = get_close_matches(name.lower(), names, n=1)
    remedy = f"did you mean {guess[0]}?" if guess else f"take it away; known: {', '.join(names)}"
    return f"names no secret setting; {remedy}"
