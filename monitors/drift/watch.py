"""What becomes of a window that has ended: it is kept, judged and told of."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from kaiten.events import REFERENCE_FILE
from kaiten.serving import ServedModel
from kaiten.settings.models import DriftSettings
from monitors.drift.detector import Finding, judge
from monitors.drift.features import LABEL
from monitors.drift.severity import level
from monitors.drift.spool import TENANT, Source, columns, read
from monitors.drift.state import UNREADABLE, DriftState, FeatureState, States, WindowState
from monitors.drift.whylogs_profiles import Profile
from monitors.drift.windows import Window

logger = structlog.get_logger(__name__)
# A profile of fewer answers would tell what somebody asked, and takes as long as any other.
_LEAST_OF_A_TENANT = 20
_MOST_TENANTS = 50
_OTHERS = "others"


class Archive(Protocol):
    """Where the profiles of all windows are kept."""

    def put(self, content: bytes, window: Window, tenant: str | None) -> None:
        """Keep the profile of a window; ``tenant`` is a pseudonym, None for the answers to all."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Judges windows; ``models`` are those that serve now, by model tag."""

    states: States
    models: Mapping[str, ServedModel]
    archive: Archive
    settings: DriftSettings

    def close(self, window: Window) -> None:
        """Judge a window, keep what was found, and archive its profile.

        Twice is as good as once: whoever did it before may have been killed before he said so.
        OSError where a file can not be read or written, and it may be tried again.
        """
        rows = read(window.parts)
        if not rows:
            return
        measured = columns(rows)
        profile = Profile.of(measured, window.started_at)
        content = profile.written()
        model = self.models.get(window.source.model)
        folder = model.baseline if model else None
        before = self.states.get(window.source, folder.name if folder else None)
        if before.window is None or before.window.id != window.id:
            found = self._judged(before, window, profile, folder)
            self.states.put(window.source, found, content)
            _log(window.source, before, found)
        # Last: where profiles go may take its time.
        self.archive.put(content, window, None)
        tenants = np.concatenate([part[TENANT] for part in rows])
        for tenant, own in _by_tenant(tenants).items():
            part = {name: values[own] for name, values in measured.items()}
            self.archive.put(Profile.of(part, window.started_at).written(), window, tenant)

    def _judged(
        self, before: DriftState, window: Window, profile: Profile, folder: Path | None
    ) -> DriftState:
        facts = WindowState(
            id=window.id,
            rows=profile.count(LABEL),
            started_at=window.started_at,
            ended_at=window.ended_at,
        )
        unjudged = {"windows": before.windows + 1, "window": facts, "features": ()}
        if folder is None:
            return before.model_copy(update=unjudged)
        try:
            reference = Profile.read((folder / REFERENCE_FILE).read_bytes())
        except Exception:
            logger.exception("reference_unreadable", model=window.source.model)
            return before.model_copy(update={**unjudged, "drifted": None, "reason": UNREADABLE})
        kept = self.states.last_window(window.source, before)
        windows = [Profile.read(kept), profile] if kept else [profile]
        findings = judge(reference, windows, self.settings.min_effect)
        found = after(before, facts, findings, self.settings)
        return found.model_copy(update={"reference_rows": reference.count(LABEL)})


def after(
    before: DriftState, window: WindowState, findings: Sequence[Finding], settings: DriftSettings
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
    lasts = bool(before.drifted) and quiet < settings.clear_after_windows
    drifted = told or lasts
    since = before.since if before.drifted else window.started_at
    at = max(limit, settings.false_discovery_rate) if lasts else limit
    return before.model_copy(
        update={
            "drifted": drifted,
            "reason": None,
            "since": since if drifted else None,
            "windows": before.windows + 1,
            # A drift that goes on is one discovery.
            "told": before.told + (told and not before.drifted),
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
    """Return which rows are whose; those of small tenants, and of too many, are put together."""
    sizes = Counter(tenants.tolist())
    sizes.pop("", None)
    largest = [
        name for name, size in sizes.most_common(_MOST_TENANTS) if size >= _LEAST_OF_A_TENANT
    ]
    found = {name: tenants == name for name in largest}
    rest = ~np.isin(tenants, ["", *largest])
    return {**found, _OTHERS: rest} if rest.any() else found


def _log(source: Source, before: DriftState, found: DriftState) -> None:
    if bool(before.drifted) != bool(found.drifted):
        causes = [each.name for each in found.features if each.drifted]
        event = "drift_began" if found.drifted else "drift_ended"
        logger.warning(event, model=source.model, arm=source.arm, features=causes)
