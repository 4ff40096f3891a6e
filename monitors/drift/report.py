"""The report on the archived windows of each version: all together, and one after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from kaiten import model_tags
from kaiten.settings.models import DriftSettings
from monitors.drift.archive.names import ArchivedProfile
from monitors.drift.comparison import compare
from monitors.drift.detector import feature_state, next_state
from monitors.drift.distributions import Distribution, distribution
from monitors.drift.features import FEATURES
from monitors.drift.spool import Source
from monitors.drift.state import DriftState, FeatureState, WindowState, initial_state
from monitors.drift.whylogs_profiles import Profile


@dataclass(frozen=True, slots=True)
class Baseline:
    """The name of a validation report, and the profile of its rows."""

    name: str
    profile: Profile


class _ReportModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureReport(_ReportModel):
    """A feature over all windows; ``verdict`` is None without a baseline."""

    name: str
    verdict: FeatureState | None
    distribution: Distribution


class WindowReport(_ReportModel):
    """One window, judged after the earlier windows of its host; ``effects`` are by feature."""

    id: str
    host: str
    rows: int
    started_at: datetime
    ended_at: datetime
    drifted: bool | None
    effects: dict[str, float]


class VersionReport(_ReportModel):
    """The windows of a version and arm, over all hosts.

    ``drifted`` judges all windows together, once, at the false discovery rate. A window is judged
    as the server judges it, counted from the first window here. Likely causes come first in
    ``features``. ``report`` names the validation report that holds the baseline.
    """

    model: str
    version: str
    arm: str
    report: str | None
    reason: str | None
    drifted: bool | None
    rows: int
    started_at: datetime
    ended_at: datetime
    hosts: tuple[str, ...]
    features: tuple[FeatureReport, ...]
    windows: tuple[WindowReport, ...]


class DriftReport(_ReportModel):
    """The archived windows since an instant, with the settings that judge them."""

    made_at: datetime
    since: datetime
    archive: str
    min_effect: float
    false_discovery_rate: float
    unreadable: int
    versions: tuple[VersionReport, ...]


def version_report(
    source: Source,
    windows: Iterable[tuple[ArchivedProfile, Profile]],
    baseline: Baseline | str,
    settings: DriftSettings,
) -> VersionReport | None:
    """Return the report on windows, oldest first; None if there are none.

    Without a baseline, pass the reason in its place.
    """
    available = baseline if isinstance(baseline, Baseline) else None
    replay = _Replay(source, available, settings)
    for archived, profile in windows:
        replay.add(archived, profile)
    if replay.merged is None:
        return None
    name, version = model_tags.split(source.model)
    features = _features(replay.merged, available, settings)
    verdicts = [feature.verdict.drifted for feature in features if feature.verdict is not None]
    judged = replay.windows
    return VersionReport(
        model=name,
        version=version,
        arm=source.arm,
        report=available.name if available else None,
        reason=None if isinstance(baseline, Baseline) else baseline,
        drifted=any(verdicts) if available else None,
        rows=sum(window.rows for window in judged),
        started_at=min(window.started_at for window in judged),
        ended_at=max(window.ended_at for window in judged),
        hosts=tuple(sorted({window.host for window in judged})),
        features=features,
        windows=tuple(judged),
    )


class _Replay:
    """Judges the windows of each host as its server did, and merges all of them."""

    def __init__(self, source: Source, baseline: Baseline | None, settings: DriftSettings) -> None:
        self._source = source
        self._baseline = baseline
        self._settings = settings
        self._before: dict[str, tuple[DriftState, Profile]] = {}
        self.merged: Profile | None = None
        self.windows: list[WindowReport] = []

    def add(self, archived: ArchivedProfile, profile: Profile) -> None:
        """Add the next window."""
        self.merged = profile if self.merged is None else self.merged.merged(profile)
        state = self._judge(archived, profile)
        effects = {feature.name: feature.effect for feature in state.features} if state else {}
        self.windows.append(
            WindowReport(
                id=archived.window,
                host=archived.host,
                rows=archived.rows,
                started_at=archived.started_at,
                ended_at=archived.ended_at,
                drifted=state.drifted if state else None,
                effects=effects,
            )
        )

    def _judge(self, archived: ArchivedProfile, profile: Profile) -> DriftState | None:
        if self._baseline is None:
            return None
        initial = initial_state(self._source, self._baseline.name)
        before, previous = self._before.get(archived.host, (initial, None))
        window = WindowState(
            id=archived.window,
            rows=archived.rows,
            started_at=archived.started_at,
            ended_at=archived.ended_at,
        )
        profiles = [profile] if previous is None else [previous, profile]
        findings = compare(self._baseline.profile, profiles, self._settings.min_effect)
        state = next_state(before, window, findings, self._settings)
        self._before[archived.host] = state, profile
        return state


def _features(
    merged: Profile, baseline: Baseline | None, settings: DriftSettings
) -> tuple[FeatureReport, ...]:
    rate, min_effect = settings.false_discovery_rate, settings.min_effect
    profile = baseline.profile if baseline else None
    findings = compare(profile, [merged], min_effect) if profile else []
    verdicts = {finding.feature: feature_state(finding, rate, min_effect) for finding in findings}
    distributions = {feature.name: distribution(feature, merged, profile) for feature in FEATURES}
    order: Sequence[str] = [*verdicts, *(name for name in distributions if name not in verdicts)]
    return tuple(
        FeatureReport(name=name, verdict=verdicts.get(name), distribution=shares)
        for name in order
        if (shares := distributions[name]) is not None
    )
