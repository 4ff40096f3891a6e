"""What happened to a model's versions: an append-only trail, each entry sealed by the one before.

The trail is the truth: which version serves in which stage is read from it. It is replaced as a
whole, atomically, so that a process that is killed leaves the old trail or the new one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaiten.errors import HistoryBroken, SetupError, StateBusy
from kaiten.files import replace

_NOTHING = "0" * 64
_PATIENCE_S = 10


class Stage(StrEnum):
    """Where a version may serve."""

    STAGING = "staging"
    PRODUCTION = "production"


class Action(StrEnum):
    """What may happen to a version."""

    REGISTERED = "registered"
    VALIDATED = "validated"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class Event(BaseModel):
    """What happened to a version, to whom it is due, and why.

    ``card`` and ``report`` are the SHA-256 of the card, and of the report that it rests on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    version: str
    who: str
    card: str
    reason: str = ""
    stage: Stage | None = None
    report: str | None = None
    passed: bool | None = None
    evidence: dict[str, str] = Field(default_factory=dict)


class Entry(Event):
    """An event with its place in the trail; ``digest`` seals it and all before it."""

    number: int
    at: datetime
    previous: str
    digest: str

    def seal(self) -> str:
        """Return the SHA-256 of all but the digest, in JSON with sorted keys."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class History:
    """The trail of one model, in ``folder``/NAME.jsonl."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.jsonl"
        self._head = folder / f"{name}.head"
        self._lock = FileLock(folder / f".{name}.lock", timeout=_PATIENCE_S)

    def entries(self) -> list[Entry]:
        """Return all entries, the oldest first; HistoryBroken where one is not as written."""
        try:
            # Not splitlines, which splits at characters that a reason may have in it.
            lines = self.path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            # Its head is written after it.
            if self._head.exists():
                raise HistoryBroken(self.path, 1, "is missing") from None
            return []
        except PermissionError:
            raise SetupError(f"The history {self.path} may not be read by this user.") from None
        found: list[Entry] = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = Entry.model_validate_json(line)
            except ValidationError:
                raise HistoryBroken(self.path, number, "is no entry") from None
            previous = found[-1].digest if found else _NOTHING
            if (entry.number, entry.previous, entry.digest) != (number, previous, entry.seal()):
                raise HistoryBroken(self.path, number, "is not as it was written")
            found.append(entry)
        self._check_end(found)
        return found

    @contextmanager
    def changing(self) -> Iterator["Draft"]:
        """Hold the trail while a change is decided and written; StateBusy where another does.

        What the draft was given is written as the block ends, all of it or, where the block
        raises, nothing.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                draft = Draft(self.entries(), self._write)
                yield draft
                draft.save()
        except Timeout:
            raise StateBusy(self.name) from None

    def _check_end(self, entries: Sequence[Entry]) -> None:
        """Raise HistoryBroken where entries were cut off: the head that was written is not there.

        An older head is there where a process was killed between the two files.
        """
        try:
            head = self._head.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        if head not in {entry.digest for entry in entries}:
            raise HistoryBroken(self.path, len(entries) + 1, "is missing")

    def _write(self, entries: Sequence[Entry]) -> None:
        replace(self.path, "".join(f"{entry.model_dump_json()}\n" for entry in entries))
        head = entries[-1]
        replace(self._head, f"{head.digest}\n")
        # Who would rewrite the whole trail would have to rewrite the log as well.
        # Asked for here: a command sets up its log after this module was imported.
        structlog.get_logger(__name__).info(
            "history_appended",
            model=f"{self.name}:{head.version}",
            action=head.action.value,
            number=head.number,
            head=head.digest,
        )


class Draft:
    """A trail that is being added to."""

    def __init__(self, entries: list[Entry], write: Callable[[Sequence[Entry]], None]) -> None:
        self.entries = entries
        self._write = write
        self._saved = len(entries)

    def add(self, event: Event) -> Entry:
        """Seal an event as the trail's last entry."""
        place: dict[str, Any] = {
            "number": len(self.entries) + 1,
            "at": datetime.now(UTC),
            "previous": self.entries[-1].digest if self.entries else _NOTHING,
        }
        entry = Entry(**event.model_dump(), **place, digest="")
        entry = entry.model_copy(update={"digest": entry.seal()})
        self.entries.append(entry)
        return entry

    def save(self) -> None:
        """Write what was added; the end of the change does so too."""
        if len(self.entries) > self._saved:
            self._write(self.entries)
            self._saved = len(self.entries)


def good_in_production(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries by which versions served in production, without what was rolled back from.

    The last one serves now.
    """
    good: list[Entry] = []
    for entry in entries:
        if entry.stage is not Stage.PRODUCTION:
            continue
        if entry.action is Action.ROLLED_BACK:
            good = good[:-1]
        # A whole trail has the target of a rollback there already; what versions carry has not.
        if not good or good[-1].card != entry.card:
            good.append(entry)
    return good


def serving(entries: Sequence[Entry], stage: Stage) -> Entry | None:
    """Return the entry by which a version serves in a stage; None where none does."""
    moves = (entry for entry in reversed(entries) if entry.stage == stage)
    return next(moves, None)
