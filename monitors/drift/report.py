"""What the archived windows of a version tell together, and one after the other."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from kaiten import model_tags
from kaiten.settings.models import DriftSettings
from monitors.drift.archive.names import Kept
from monitors.drift.detector import Finding, judge
from monitors.drift.distributions import Distribution, distribution
from monitors.drift.features import FEATURES
from monitors.drift.spool import Source
from monitors.drift.state import DriftState, FeatureState, WindowState, first
from monitors.drift.watch import after
from monitors.drift.whylogs_profiles import Profile


@dataclass(frozen=True, slots=True)
class Reference:
    """What windows are held against: the name of a report, and the profile of its rows."""

    name: str
    profile: Profile


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FeatureReport(_Part):
    """A feature over all windows; ``verdict`` is None where there is nothing to compare with."""

    name: str
    verdict: FeatureState | None
    distribution: Distribution


class WindowReport(_Part):
    """One window, judged with those before it of its host; ``effects`` are by feature."""

    id: str
    host: str
    rows: int
    started_at: datetime
    ended_at: datetime
    drifted: bool | None
    effects: dict[str, float]


class VersionReport(_Part):
    """The windows of a version and arm, over all hosts.

    ``drifted`` is of all of them together, against the false discovery rate: one look at all that
    there is. A window's is as the watch tells it, from the first window here on. Features come with
    likely causes first.
    """

    model: str
    version: str
    arm: str
    reference: str | None
    reason: str | None
    drifted: bool | None
    rows: int
    started_at: datetime
    ended_at: datetime
    hosts: tuple[str, ...]
    features: tuple[FeatureReport, ...]
    windows: tuple[WindowReport, ...]


class Report(_Part):
    """The archive's windows since an instant, with the settings that they are judged by."""

    made_at: datetime
    since: datetime
    archive: str
    min_effect: float
    false_discovery_rate: float
    unreadable: int
    versions: tuple[VersionReport, ...]


def version_report(
    source: Source,
    windows: Iterable[tuple[Kept, Profile]],
    reference: Reference | str,
    settings: DriftSettings,
) -> VersionReport | None:
    """Return what windows, oldest first, tell of a version; None where there are none.

    Where the version has no reference, it is the reason why.
    """
    known = reference if isinstance(reference, Reference) else None
    replay = _Replay(source, known, settings)
    for kept, profile in windows:
        replay.add(kept, profile)
    if replay.merged is None:
        return None
    name, version = model_tags.split(source.model)
    features = _features(replay.merged, known, settings)
    told = [each.verdict.drifted for each in features if each.verdict is not None]
    judged = replay.windows
    return VersionReport(
        model=name,
        version=version,
        arm=source.arm,
        reference=known.name if known else None,
        reason=None if isinstance(reference, Reference) else reference,
        drifted=any(told) if known else None,
        rows=sum(each.rows for each in judged),
        started_at=min(each.started_at for each in judged),
        ended_at=max(each.ended_at for each in judged),
        hosts=tuple(sorted({each.host for each in judged})),
        features=features,
        windows=tuple(judged),
    )


class _Replay:
    """Judges the windows of each host as its watch did, and merges all of them."""

    def __init__(
        self, source: Source, reference: Reference | None, settings: DriftSettings
    ) -> None:
        self._source = source
        self._reference = reference
        self._settings = settings
        self._before: dict[str, tuple[DriftState, Profile]] = {}
        self.merged: Profile | None = None
        self.windows: list[WindowReport] = []

    def add(self, kept: Kept, profile: Profile) -> None:
        """Take the next window."""
        self.merged = profile if self.merged is None else self.merged.merged(profile)
        state = self._judged(kept, profile)
        self.windows.append(
            WindowReport(
                id=kept.window,
                host=kept.host,
                rows=kept.rows,
                started_at=kept.started_at,
                ended_at=kept.ended_at,
                drifted=state.drifted if state else None,
                effects={each.name: each.effect for each in state.features} if state else {},
            )
        )

    def _judged(self, kept: Kept, profile: Profile) -> DriftState | None:
        if self._reference is None:
            return None
        known = self._reference
        state, previous = self._before.get(kept.host, (first(self._source, known.name), None))
        facts = WindowState(
            id=kept.window, rows=kept.rows, started_at=kept.started_at, ended_at=kept.ended_at
        )
        windows = [profile] if previous is None else [previous, profile]
        findings = judge(known.profile, windows, self._settings.min_effect)
        found = after(state, facts, findings, self._settings)
        self._before[kept.host] = found, profile
        return found


def _features(
    merged: Profile, reference: Reference | None, settings: DriftSettings
) -> tuple[FeatureReport, ...]:
    against = reference.profile if reference else None
    findings = judge(against, [merged], settings.min_effect) if against else []
    verdicts = {each.feature: _verdict(each, settings) for each in findings}
    known = {feature.name: distribution(feature, merged, against) for feature in FEATURES}
    order: Sequence[str] = [*verdicts, *(name for name in known if name not in verdicts)]
    return tuple(
        FeatureReport(name=name, verdict=verdicts.get(name), distribution=found)
        for name in order
        if (found := known[name]) is not None
    )


def _verdict(finding: Finding, settings: DriftSettings) -> FeatureState:
    return FeatureState(
        name=finding.feature,
        drifted=finding.drifts(settings.false_discovery_rate, settings.min_effect),
        effect=finding.difference.effect,
        p_value=finding.p_value,
        windows=finding.windows,
        details=finding.difference.details,
    )
