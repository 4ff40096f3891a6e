"""The audit log of a model: an append-only, hash-chained record of what happened to its versions.

The audit log decides which version serves in which stage. The file is replaced as a whole,
atomically, so that a process that is killed leaves the old log or the new one.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import structlog
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaiten.errors import AuditLogCorrupt, SetupError, StateBusy
from kaiten.files import replace_file

if sys.platform != "win32":
    import pwd

_NO_DIGEST = "0" * 64
_LOCK_TIMEOUT_S = 10


class Stage(StrEnum):
    """Where a version may serve."""

    STAGING = "staging"
    PRODUCTION = "production"


class Action(StrEnum):
    """What can happen to a version."""

    REGISTERED = "registered"
    VALIDATED = "validated"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"


class AuditLogEvent(BaseModel):
    """What happened to a version, with the operator and the reason.

    ``card`` is the SHA-256 of the model card, ``report`` that of the validation report.
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


class AuditLogEntry(AuditLogEvent):
    """An event with its place in the log; ``digest`` covers it and all entries before it."""

    number: int
    at: datetime
    previous: str
    digest: str

    def compute_digest(self) -> str:
        """Return the SHA-256 of all fields but the digest, as JSON with sorted keys."""
        content = self.model_dump(mode="json", exclude={"digest"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class AuditLog:
    """The audit log of one model, in ``folder``/NAME.jsonl."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.jsonl"
        self._head = folder / f"{name}.head"
        self._lock = FileLock(folder / f".{name}.lock", timeout=_LOCK_TIMEOUT_S)

    def entries(self) -> list[AuditLogEntry]:
        """Return all entries, the oldest first.

        Raises:
            AuditLogCorrupt: An entry is missing or was changed.

        """
        try:
            # Not splitlines, which splits at characters that a reason may contain.
            lines = self.path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            # The head is written after the log.
            if self._head.exists():
                raise AuditLogCorrupt(self.path, 1, "is missing") from None
            return []
        except PermissionError:
            raise SetupError(
                f"The audit log {self.path} cannot be read. Let this user read it."
            ) from None
        entries: list[AuditLogEntry] = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = AuditLogEntry.model_validate_json(line)
            except ValidationError:
                raise AuditLogCorrupt(self.path, number, "is not an entry") from None
            previous = entries[-1].digest if entries else _NO_DIGEST
            chain = (number, previous, entry.compute_digest())
            if (entry.number, entry.previous, entry.digest) != chain:
                raise AuditLogCorrupt(self.path, number, "was changed after it was written")
            entries.append(entry)
        self._check_head(entries)
        return entries

    @contextmanager
    def transaction(self) -> Iterator["AuditLogTransaction"]:
        """Lock the log while a change is decided and written.

        The events that are added are written when the block ends, all of them, or none if it
        raises.

        Raises:
            StateBusy: Another process holds the lock.

        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._lock:
                transaction = AuditLogTransaction(self.entries(), self._write)
                yield transaction
                transaction.save()
        except Timeout:
            raise StateBusy(self.name) from None

    def _check_head(self, entries: Sequence[AuditLogEntry]) -> None:
        """Raise AuditLogCorrupt if the newest entries were cut off.

        A process that was killed between the two files leaves an older head, which is accepted.
        """
        try:
            head = self._head.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return
        if head not in {entry.digest for entry in entries}:
            raise AuditLogCorrupt(self.path, len(entries) + 1, "is missing")

    def _write(self, entries: Sequence[AuditLogEntry]) -> None:
        replace_file(self.path, "".join(f"{entry.model_dump_json()}\n" for entry in entries))
        head = entries[-1]
        replace_file(self._head, f"{head.digest}\n")
        # A forger of the whole audit log would have to forge the log files as well.
        # The logger is made here: a command configures logging after this module is imported.
        structlog.get_logger(__name__).info(
            "audit_log_appended",
            model=f"{self.name}:{head.version}",
            action=head.action.value,
            number=head.number,
            head=head.digest,
        )


class AuditLogTransaction:
    """The entries of a locked audit log, and the events that are added to it."""

    def __init__(
        self, entries: list[AuditLogEntry], write: Callable[[Sequence[AuditLogEntry]], None]
    ) -> None:
        self.entries = entries
        self._write = write
        self._saved = len(entries)

    def add(self, event: AuditLogEvent) -> AuditLogEntry:
        """Append an event as the newest entry."""
        place: dict[str, Any] = {
            "number": len(self.entries) + 1,
            "at": datetime.now(UTC),
            "previous": self.entries[-1].digest if self.entries else _NO_DIGEST,
        }
        entry = AuditLogEntry(**event.model_dump(), **place, digest="")
        entry = entry.model_copy(update={"digest": entry.compute_digest()})
        self.entries.append(entry)
        return entry

    def save(self) -> None:
        """Write the added entries now; the end of the transaction does so too."""
        if len(self.entries) > self._saved:
            self._write(self.entries)
            self._saved = len(self.entries)


def production_lineage(entries: Sequence[AuditLogEntry]) -> list[AuditLogEntry]:
    """Return the entries that put versions into production, without those rolled back from.

    The last one serves now.
    """
    lineage: list[AuditLogEntry] = []
    for entry in entries:
        if entry.stage is not Stage.PRODUCTION:
            continue
        if entry.action is Action.ROLLED_BACK:
            lineage = lineage[:-1]
        # A complete log already has the target of a rollback; the entries in a bento may not.
        if not lineage or lineage[-1].card != entry.card:
            lineage.append(entry)
    return lineage


def serving_entry(entries: Sequence[AuditLogEntry], stage: Stage) -> AuditLogEntry | None:
    """Return the entry that put the current version into a stage, None if the stage is empty."""
    return next((entry for entry in reversed(entries) if entry.stage == stage), None)


def current_operator() -> str:
    """Return the name of the system account that runs this process."""
    # Not getpass.getuser, which trusts the environment.
    if sys.platform == "win32":
        return os.getlogin()
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        # In a container, a user may have a number and no name.
        return f"uid {number}"
