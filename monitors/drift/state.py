"""What is known of each version's drift: one file each, which every worker reads."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from kaiten import model_tags
from kaiten.events import PRODUCTION
from kaiten.files import replace
from kaiten.serving import ServedModel
from monitors.drift.spool import Source

logger = structlog.get_logger(__name__)
NO_REFERENCE = "it has no reference: validate it (kaiten validate), and start the server again"
STATE_UNREADABLE = "its state in KAITEN_HOME can not be read; see the log"
UNREADABLE = "its reference can not be read: validate it again, and start the server again"
NOT_WATCHED = "profiles.enabled is false"
_MODE = 0o600


class _Part(BaseModel):
    # A newer Kaiten may have kept more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class FeatureState(_Part):
    """What the last window told of a feature.

    ``effect`` is from 0 to 1; the p-value is corrected for all features; ``windows`` is how many
    windows, the last one or the last two, the figures are of.
    """

    name: str
    drifted: bool
    effect: float
    p_value: float
    windows: int
    details: Mapping[str, float | str]


class WindowState(_Part):
    """The last window; it told drift if its p-value was at most its level."""

    id: str
    rows: int
    started_at: datetime
    ended_at: datetime
    p_value: float | None = None
    level: float | None = None


class DriftState(_Part):
    """The drift of one version.

    ``windows`` were judged, ``told`` of them told drift, and the last ``quiet`` showed no sign of
    it. ``drifted`` is None where there is nothing to compare with, and ``reason`` says so.
    """

    model: str
    version: str
    arm: str
    drifted: bool | None
    since: datetime | None = None
    reference: str | None = None
    reference_rows: int | None = None
    reason: str | None = None
    windows: int = 0
    told: int = 0
    quiet: int = 0
    window: WindowState | None = None
    # Likely causes first.
    features: tuple[FeatureState, ...] = ()


def first(source: Source, reference: str | None) -> DriftState:
    """Return what is known of a version before its first window."""
    name, version = model_tags.split(source.model)
    return DriftState(
        model=name,
        version=version,
        arm=source.arm,
        drifted=None if reference is None else False,
        reference=reference,
        reason=NO_REFERENCE if reference is None else None,
    )


class States:
    """The states of a host, in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, source: Source, reference: str | None) -> DriftState:
        """Return a version's state; a new one where none was kept, or one of another reference.

        OSError where it is there and can not be read.
        """
        try:
            kept = DriftState.model_validate_json(self._file(source).read_bytes())
        except FileNotFoundError:
            return first(source, reference)
        except ValidationError:
            logger.warning("drift_state_broken", model=source.model, arm=source.arm)
            return first(source, reference)
        return kept if kept.reference == reference else first(source, reference)

    def put(self, source: Source, state: DriftState, window: bytes) -> None:
        """Keep a state, and the profile of its last window."""
        file = self._file(source)
        kept = self._window(source, state.window.id if state.window else "")
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace(kept, window, _MODE)
        replace(file, state.model_dump_json(indent=1) + "\n", _MODE)
        for older in kept.parent.iterdir():
            if older != kept:
                older.unlink(missing_ok=True)

    def last_window(self, source: Source, state: DriftState) -> bytes | None:
        """Return the profile of a state's last window, if it is still there."""
        if state.window is None:
            return None
        try:
            return self._window(source, state.window.id).read_bytes()
        except OSError:
            return None

    def _file(self, source: Source) -> Path:
        return self._folder / source.path.with_name(f"{source.arm}.json")

    def _window(self, source: Source, name: str) -> Path:
        return self._folder / source.path / f"{name}.bin"


class DriftReport:
    """Tells the drift of the served versions, from what was kept: every worker tells the same.

    ``models`` are those that serve now, by model tag. ``watched`` says whether drift is measured.
    """

    def __init__(
        self,
        states: States,
        models: Mapping[str, ServedModel],
        *,
        watched: bool = True,
    ) -> None:
        self._states = states
        self._models = models
        self._watched = watched

    def drift(self) -> list[DriftState]:
        """Return the state of each served version, in their order.

        What cannot be read costs the state of that version, and no answer about the others.
        """
        if not self._watched:
            found = [first(Source(model, PRODUCTION), None) for model in self._models]
            return [each.model_copy(update={"reason": NOT_WATCHED}) for each in found]
        return [
            self._state(Source(tag, PRODUCTION), model.baseline.name if model.baseline else None)
            for tag, model in self._models.items()
        ]

    def _state(self, source: Source, reference: str | None) -> DriftState:
        try:
            return self._states.get(source, reference)
        except OSError as error:
            logger.warning("drift_state_unreadable", model=source.model, error=error.strerror)
            unknown = {"drifted": None, "reason": STATE_UNREADABLE}
            return first(source, reference).model_copy(update=unknown)
