"""What becomes of a window that has ended: it is kept, judged and told of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from kaiten.records import REFERENCE_FILE
from kaiten.sections import Drift
from monitors.drift.judge import Finding, judge
from monitors.drift.levels import level
from monitors.drift.state import DriftState, FeatureState, States, WindowState
from monitors.features import Columns
from monitors.spool import TENANT, Source, columns
from monitors.tracking import Profile
from monitors.windows import Window

logger = structlog.get_logger(__name__)
# Of a window: a caller who makes subjects up may not fill a disk.
_MOST_TENANTS = 100
_OTHERS = "others"


class Archive(Protocol):
    """Where the profiles of all windows are kept."""

    def put(self, content: bytes, window: Window, tenant: str | None) -> None:
        """Keep the profile of a window; ``tenant`` is a pseudonym, None for the answers to all."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Judges windows; ``references`` is the folder of each served model's reference, if any."""

    states: States
    references: Mapping[str, Path | None]
    archive: Archive
    settings: Drift

    def close(self, window: Window) -> None:
        """Keep the profile of a window, judge it, and keep and tell what was found.

        Twice is as good as once: whoever did it before may have been killed before he said so.
        """
        rows = [part.read() for part in window.parts]
        measured = columns(rows)
        profile = Profile.of(measured, window.started_at)
        self._keep(window, measured, profile, np.concatenate([part[TENANT] for part in rows]))
        folder = self.references.get(window.source.model)
        before = self.states.get(window.source, folder.name if folder else None)
        if before.window is not None and before.window.id == window.id:
            return
        found = self._judged(before, window, profile, folder)
        self.states.put(window.source, found, profile.written())
        _log(window.source, before, found)

    def _keep(
        self, window: Window, measured: Columns, profile: Profile, tenants: NDArray[np.str_]
    ) -> None:
        self.archive.put(profile.written(), window, None)
        for tenant, own in _by_tenant(tenants).items():
            part = {name: values[own] for name, values in measured.items()}
            self.archive.put(Profile.of(part, window.started_at).written(), window, tenant)

    def _judged(
        self, before: DriftState, window: Window, profile: Profile, folder: Path | None
    ) -> DriftState:
        facts = WindowState(
            id=window.id, rows=window.rows, started_at=window.started_at, ended_at=window.ended_at
        )
        if folder is None:
            return before.model_copy(update={"windows": before.windows + 1, "window": facts})
        reference = Profile.read((folder / REFERENCE_FILE).read_bytes())
        kept = self.states.last_window(window.source, before)
        windows = [Profile.read(kept), profile] if kept else [profile]
        findings = judge(reference, windows, self.settings.min_effect)
        return after(before, facts, findings, self.settings)


def after(
    before: DriftState, window: WindowState, findings: Sequence[Finding], settings: Drift
) -> DriftState:
    """Return the state after a window.

    Drift is told at the level that holds over all windows, and ends once windows in a row show no
    sign of it at the level of one: it does not come and go with chance.
    """
    limit = level(before.windows + 1, before.told, settings.false_discovery_rate)
    surest = min((each.p_value for each in findings), default=1.0)
    told = any(each.drifts(limit, settings.min_effect) for each in findings)
    sign = any(each.drifts(settings.false_discovery_rate, settings.min_effect) for each in findings)
    quiet = 0 if sign else before.quiet + 1
    lasts = bool(before.drifted) and quiet < settings.clear_after
    drifted = told or lasts
    since = before.since if before.drifted else window.started_at
    at = max(limit, settings.false_discovery_rate) if lasts else limit
    return before.model_copy(
        update={
            "drifted": drifted,
            "since": since if drifted else None,
            "windows": before.windows + 1,
            "told": before.told + told,
            "quiet": quiet,
            "window": window.model_copy(update={"p_value": surest, "level": limit}),
            "features": tuple(_feature(each, at, settings.min_effect) for each in findings),
        }
    )


def _feature(finding: Finding, level_in_force: float, min_effect: float) -> FeatureState:
    return FeatureState(
        name=finding.feature,
        drifted=finding.drifts(level_in_force, min_effect),
        effect=finding.difference.effect,
        p_value=finding.p_value,
        windows=finding.windows,
        details=finding.difference.details,
    )


def _by_tenant(tenants: NDArray[np.str_]) -> Mapping[str, NDArray[np.bool_]]:
    """Return which rows are whose; what is beyond the largest tenants is put together."""
    sizes = Counter(tenants.tolist())
    sizes.pop("", None)
    largest = [name for name, _ in sizes.most_common(_MOST_TENANTS)]
    found = {name: tenants == name for name in largest}
    rest = ~np.isin(tenants, ["", *largest])
    return {**found, _OTHERS: rest} if rest.any() else found


def _log(source: Source, before: DriftState, found: DriftState) -> None:
    if bool(before.drifted) != bool(found.drifted):
        causes = [each.name for each in found.features if each.drifted]
        event = "drift_began" if found.drifted else "drift_ended"
        logger.warning(event, model=source.model, arm=source.arm, features=causes)
