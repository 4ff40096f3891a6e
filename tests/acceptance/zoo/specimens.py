"""What the zoo holds: folders as people have them, each with what registering it must come to."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# The labels of every model, unless a variant says otherwise.
LABELS = ("billing", "delivery", "account", "returns", "other")
# In tokens, of every model that does not say otherwise: long texts stay cheap to compute.
MAX_LENGTH = 96
Truth = Literal["tokenizer.json", "4.57", "transformers"]


@dataclass(frozen=True)
class Served:
    """The folder is served, and every answer is transformers' own.

    ``truth`` names the source of the expected token ids: the folder's tokenizer.json, or
    transformers. "4.57" is tokenizer.json with the token types of its template if any is not 0.
    transformers 4 gave them to more models than 5 does.

    ``notes`` is a regular expression that one of the card's notes matches; ``left_out`` are names
    of files that must not be stored.
    """

    truth: Truth = "tokenizer.json"
    max_length: int = MAX_LENGTH
    engine: str | None = None
    notes: str | None = None
    left_out: tuple[str, ...] = ()
    licence: str | None = None


@dataclass(frozen=True)
class Refused:
    """The folder is refused, for the reason and with the remedy that the expressions match."""

    field: str
    reason: str
    remedy: str


Expected = Served | Refused


@dataclass(frozen=True)
class Specimen:
    """A folder to be registered: ``build`` writes it. ``max_length`` is what the user asks for.

    Where ``alternative`` is given, either outcome is right.
    """

    name: str
    build: Callable[[Path], None]
    expected: Expected
    group: str = "architecture"
    max_length: int | None = None
    alternative: Expected | None = None

    @property
    def served(self) -> Served | None:
        """How it may be served; None if it must be refused."""
        outcomes = (self.expected, self.alternative)
        return next((outcome for outcome in outcomes if isinstance(outcome, Served)), None)

    @property
    def refused(self) -> Refused | None:
        """How it may be refused; None if it must be served."""
        outcomes = (self.expected, self.alternative)
        return next((outcome for outcome in outcomes if isinstance(outcome, Refused)), None)


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content: dict[str, Any] = json.loads(file.read_bytes())
    return content


def change_json(file: Path, **changes: Any) -> None:  # noqa: ANN401  JSON
    """Change keys of a JSON object in a file; the value None removes a key."""
    content = read_json(file) if file.exists() else {}
    content |= changes
    entries = {name: value for name, value in content.items() if value is not None}
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")
