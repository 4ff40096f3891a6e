"""Detects drift in ended windows, and archives their profiles.

Few of all drifts that are ever reported must be false. LOND (Javanmard and Montanari, "On online
control of false discovery rate", 2015) gives each window a significance level by how many windows
came before it and how many drifts began in them. It holds the false discovery rate of a version's
windows under positive dependence too (Zrnic, Ramdas and Jordan, "Asynchronous online testing of
multiple hypotheses", 2021). That windows compared with one baseline depend on each other positively
is assumed here, and false alarms are measured besides. A drift that continues counts once, which
only lowers levels.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from kaiten.events import BASELINE_FILE
from kaiten.serving import ServedModel
from kaiten.settings.models import DriftSettings
from monitors.drift.comparison import Finding, compare
from monitors.drift.features import LABEL, Columns
from monitors.drift.spool import PSEUDONYM, Source, concatenate, read
from monitors.drift.state import (
    BASELINE_UNREADABLE,
    DriftState,
    DriftStates,
    FeatureState,
    WindowState,
)
from monitors.drift.whylogs_profiles import Profile
from monitors.drift.windows import EndedWindow

logger = structlog.get_logger(__name__)
# A profile of fewer answers would reveal single ones, and takes as long as any other.
_MIN_ROWS_OF_SUBJECT = 20
_MAX_SUBJECTS = 50
_OTHERS = "others"
# Makes the levels of all windows sum to the false discovery rate.
_LOND_SCALE = 0.07720838


@dataclass(frozen=True, slots=True)
class DriftDetector:
    """Compares ended windows with the baselines of the served versions.

    ``models`` are those that serve now, by model tag. ``archive`` stores a profile: its content,
    its window, and a subject's pseudonym, None for all answers.
    """

    states: DriftStates
    models: Mapping[str, ServedModel]
    archive: Callable[[bytes, EndedWindow, str | None], None]
    settings: DriftSettings

    def close(self, window: EndedWindow) -> None:
        """Update the version's drift state by a window, and archive the window's profiles.

        Idempotent: an earlier worker may have judged this window and died before recording it.

        Raises:
            OSError: A file cannot be read or written; trying again may help.

        """
        parts = read(window.parts)
        if not parts:
            return
        columns = concatenate(parts)
        profile = Profile.of(columns, window.started_at)
        content = profile.serialize()
        model = self.models.get(window.source.model)
        folder = model.baseline if model else None
        before = self.states.get(window.source, folder.name if folder else None)
        if before.window is None or before.window.id != window.id:
            state = self._update(before, window, profile, folder)
            self.states.put(window.source, state, content)
            _log_change(window.source, before, state)
        # Last, because the archive may be slow.
        self.archive(content, window, None)
        for pseudonym, rows in _rows_by_pseudonym(parts).items():
            part: Columns = {name: values[rows] for name, values in columns.items()}
            self.archive(Profile.of(part, window.started_at).serialize(), window, pseudonym)

    def _update(
        self, before: DriftState, window: EndedWindow, profile: Profile, folder: Path | None
    ) -> DriftState:
        judged = WindowState(
            id=window.id,
            rows=profile.count(LABEL),
            started_at=window.started_at,
            ended_at=window.ended_at,
        )
        unjudged = {"windows": before.windows + 1, "window": judged, "features": ()}
        if folder is None:
            return before.model_copy(update=unjudged)
        try:
            baseline = Profile.read((folder / BASELINE_FILE).read_bytes())
        except Exception:
            logger.exception("baseline_unreadable", model=window.source.model)
            unjudged |= {"drifted": None, "reason": BASELINE_UNREADABLE}
            return before.model_copy(update=unjudged)
        previous = self.states.last_window(window.source, before)
        profiles = [Profile.read(previous), profile] if previous else [profile]
        findings = compare(baseline, profiles, self.settings.min_effect)
        state = next_state(before, judged, findings, self.settings)
        return state.model_copy(update={"baseline_rows": baseline.count(LABEL)})


def next_state(
    before: DriftState, window: WindowState, findings: Sequence[Finding], settings: DriftSettings
) -> DriftState:
    """Return the state after a window.

    Drift begins at the level that controls false discoveries over all windows. It ends after
    several windows in a row without a sign of it at the level of one window, so that chance does
    not switch it on and off.
    """
    rate, min_effect = settings.false_discovery_rate, settings.min_effect
    level = significance_level(before.windows + 1, before.discoveries, rate)
    detected = any(finding.drifts(level, min_effect) for finding in findings)
    is_quiet = not any(finding.drifts(rate, min_effect) for finding in findings)
    quiet_windows = before.quiet_windows + 1 if is_quiet else 0
    continues = bool(before.drifted) and quiet_windows < settings.clear_after_windows
    drifted = detected or continues
    since = before.since if before.drifted else window.started_at
    feature_level = max(level, rate) if continues else level
    p_value = min((finding.p_value for finding in findings), default=1.0)
    return before.model_copy(
        update={
            "drifted": drifted,
            "reason": None,
            "since": since if drifted else None,
            "windows": before.windows + 1,
            "discoveries": before.discoveries + (detected and not before.drifted),
            "quiet_windows": quiet_windows,
            "window": window.model_copy(update={"p_value": p_value, "level": level}),
            "features": tuple(
                feature_state(finding, feature_level, min_effect) for finding in findings
            ),
        }
    )


def feature_state(finding: Finding, level: float, min_effect: float) -> FeatureState:
    """Return the state of a feature at a significance level."""
    return FeatureState(
        name=finding.feature,
        drifted=finding.drifts(level, min_effect),
        effect=finding.difference.effect,
        p_value=finding.p_value,
        windows=finding.windows,
        details=finding.difference.details,
    )


def significance_level(window: int, discoveries: int, rate: float) -> float:
    """Return the largest p-value at which drift is detected in a window, by LOND.

    ``window`` counts from 1; ``discoveries`` is how many drifts began before it; ``rate`` is the
    false discovery rate.
    """
    share = (
        _LOND_SCALE * math.log(max(window, 2)) / (window * math.exp(math.sqrt(math.log(window))))
    )
    return rate * share * (discoveries + 1)


def _rows_by_pseudonym(parts: Sequence[NDArray[np.void]]) -> Mapping[str, NDArray[np.bool_]]:
    """Return the rows of each subject; subjects with few rows, and excess ones, share a profile."""
    pseudonyms = np.concatenate([part[PSEUDONYM] for part in parts])
    sizes = Counter(pseudonyms.tolist())
    sizes.pop("", None)
    largest = [
        pseudonym
        for pseudonym, size in sizes.most_common(_MAX_SUBJECTS)
        if size >= _MIN_ROWS_OF_SUBJECT
    ]
    rows = {pseudonym: pseudonyms == pseudonym for pseudonym in largest}
    others = ~np.isin(pseudonyms, ["", *largest])
    return {**rows, _OTHERS: others} if others.any() else rows


def _log_change(source: Source, before: DriftState, state: DriftState) -> None:
    if bool(before.drifted) != bool(state.drifted):
        causes = [feature.name for feature in state.features if feature.drifted]
        event = "drift_began" if state.drifted else "drift_ended"
        logger.warning(event, model=source.model, arm=source.arm, features=causes)
