"""The drift state of each served version: one file each, which every worker reads."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from kaiten import model_tags
from kaiten.events import PRODUCTION
from kaiten.files import replace_file
from kaiten.serving import ServedModel
from monitors.drift.spool import Source

logger = structlog.get_logger(__name__)
NO_BASELINE = "no validation report; run `kaiten validate`, then start the server again"
BASELINE_UNREADABLE = (
    "the baseline in its validation report cannot be read; run `kaiten validate` again, then start "
    "the server again"
)
STATE_UNREADABLE = "its state in KAITEN_HOME cannot be read; see drift_state_unreadable in the log"
NO_WINDOW = "no window has been judged since the version was validated or first served"
NOT_WATCHED = "profiles.enabled is false"
_MODE = 0o600


class _StateModel(BaseModel):
    # A newer Kaiten may have stored more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class FeatureState(_StateModel):
    """A feature in the last window.

    ``effect`` is from 0 to 1; the p-value is corrected for all features; ``windows`` is how many
    windows the figures cover, the last one or the last two.
    """

    name: str
    drifted: bool
    effect: float
    p_value: float
    windows: int
    details: Mapping[str, float | str]


class WindowState(_StateModel):
    """The last window; drift was detected in it if its p-value is at most its level."""

    id: str
    rows: int
    started_at: datetime
    ended_at: datetime
    p_value: float | None = None
    level: float | None = None


class DriftState(_StateModel):
    """The drift of one version.

    ``windows`` were judged, in ``discoveries`` of them a drift began, and the last
    ``quiet_windows`` showed no sign of drift. ``drifted`` is None without a baseline and before the
    first window, and ``reason`` says why. ``report`` names the validation report that holds the
    baseline. Likely causes come first in ``features``.
    """

    model: str
    version: str
    arm: str
    drifted: bool | None
    since: datetime | None = None
    report: str | None = None
    baseline_rows: int | None = None
    reason: str | None = None
    windows: int = 0
    discoveries: int = 0
    quiet_windows: int = 0
    window: WindowState | None = None
    features: tuple[FeatureState, ...] = ()

    @property
    def has_baseline(self) -> bool:
        """Whether windows can be judged: there is a baseline, and nothing else is in the way."""
        return self.drifted is not None or self.reason == NO_WINDOW


def initial_state(source: Source, report: str | None) -> DriftState:
    """Return the state of a version before its first window, compared with a validation report."""
    name, version = model_tags.split(source.model)
    return DriftState(
        model=name,
        version=version,
        arm=source.arm,
        drifted=None,
        report=report,
        reason=NO_BASELINE if report is None else NO_WINDOW,
    )


class DriftStates:
    """The states of a host, in files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, source: Source, report: str | None) -> DriftState:
        """Return a version's state; the initial one if there is none for this validation report.

        Raises:
            OSError: The file exists and cannot be read.

        """
        try:
            state = DriftState.model_validate_json(self._file(source).read_bytes())
        except FileNotFoundError:
            return initial_state(source, report)
        except ValidationError:
            logger.warning("drift_state_broken", model=source.model, arm=source.arm)
            return initial_state(source, report)
        return state if state.report == report else initial_state(source, report)

    def put(self, source: Source, state: DriftState, profile: bytes) -> None:
        """Store a state, and the profile of its last window."""
        file = self._window_file(source, state.window.id if state.window else "")
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, profile, _MODE)
        replace_file(self._file(source), state.model_dump_json(indent=1) + "\n", _MODE)
        for other in file.parent.iterdir():
            if other != file:
                other.unlink(missing_ok=True)

    def last_window(self, source: Source, state: DriftState) -> bytes | None:
        """Return the profile of a state's last window, None if it is missing."""
        if state.window is None:
            return None
        try:
            return self._window_file(source, state.window.id).read_bytes()
        except OSError:
            return None

    def _file(self, source: Source) -> Path:
        return self._folder / source.path.with_name(f"{source.arm}.json")

    def _window_file(self, source: Source, window: str) -> Path:
        return self._folder / source.path / f"{window}.bin"


class ServedDrift:
    """Reads the drift of the served versions; every worker returns the same.

    ``models`` are those that serve now, by model tag. ``watched`` says whether drift is measured.
    """

    def __init__(
        self,
        states: DriftStates,
        models: Mapping[str, ServedModel],
        *,
        watched: bool = True,
    ) -> None:
        self._states = states
        self._models = models
        self._watched = watched

    def drift(self) -> list[DriftState]:
        """Return the state of each served version, in their order.

        A file that cannot be read affects the state of its version only.
        """
        return [self._state(model) for model in self._models.values()]

    def _state(self, model: ServedModel) -> DriftState:
        source = Source(model.model_tag, PRODUCTION)
        if not self._watched:
            return initial_state(source, None).model_copy(update={"reason": NOT_WATCHED})
        report = model.baseline.name if model.baseline else None
        try:
            return self._states.get(source, report)
        except OSError as error:
            logger.warning("drift_state_unreadable", model=source.model, error=error.strerror)
            unknown = {"drifted": None, "reason": STATE_UNREADABLE}
            return initial_state(source, report).model_copy(update=unknown)
