import numpy as np
import pytest

from kaiten.settings.models import DriftSettings
from monitors.drift.report import Baseline, VersionReport, version_report
from tests.unit.monitors.drift.archived import ROWS, SOURCE, START, by_time, window, windows
from tests.unit.monitors.drift.profiles import usual

RANDOM = np.random.default_rng(20261128)
SETTINGS = DriftSettings()
REFERENCE = Baseline("report-1", usual(RANDOM, 3000))
LONG = RANDOM.gamma(4, 60, ROWS).round()


def require_report(report: VersionReport | None) -> VersionReport:
    assert report is not None
    return report


def test_windows_of_all_hosts_are_merged() -> None:
    profiles = by_time([*windows(RANDOM, 3, "a"), *windows(RANDOM, 2, "b")])
    report = require_report(version_report(SOURCE, profiles, REFERENCE, SETTINGS))
    assert (report.model, report.version, report.arm) == ("intent", "1.0.0", "production")
    assert (report.rows, report.hosts, len(report.windows)) == (5 * ROWS, ("a", "b"), 5)
    assert report.started_at == START
    assert report.ended_at == max(window_report.ended_at for window_report in report.windows)
    assert (report.drifted, report.report, report.reason) == (False, "report-1", None)
    assert not any(window_report.drifted for window_report in report.windows)


def test_a_drift_is_reported_with_its_cause_and_the_windows_that_have_it() -> None:
    profiles = [*windows(RANDOM, 3)]
    profiles += [window(RANDOM, place, text_length=LONG) for place in (3, 4)]
    report = require_report(version_report(SOURCE, profiles, REFERENCE, SETTINGS))
    assert report.drifted
    first = report.features[0]
    assert first.name == "text_length"
    assert first.verdict is not None
    assert first.verdict.drifted
    assert first.verdict.p_value < 1e-6
    verdicts = [window_report.drifted for window_report in report.windows]
    assert verdicts == [False, False, False, True, True]
    assert report.windows[0].effects["text_length"] < 0.1 < report.windows[3].effects["text_length"]
    assert [
        feature.name for feature in report.features if feature.verdict and feature.verdict.drifted
    ] == ["text_length"]


def test_a_window_is_judged_with_those_of_its_own_host() -> None:
    drifting = [window(RANDOM, place, "a", text_length=LONG) for place in range(3)]
    report = require_report(
        version_report(SOURCE, by_time([*drifting, *windows(RANDOM, 3, "b")]), REFERENCE, SETTINGS)
    )
    verdicts = {(window_report.host, window_report.drifted) for window_report in report.windows}
    assert verdicts == {("a", True), ("b", False)}


def test_without_a_baseline_the_reason_stands_for_a_verdict() -> None:
    report = require_report(
        version_report(SOURCE, windows(RANDOM, 2), "it was never validated", SETTINGS)
    )
    assert (report.drifted, report.report) == (None, None)
    assert report.reason == "it was never validated"
    assert [window_report.drifted for window_report in report.windows] == [None, None]
    assert {feature.verdict for feature in report.features} == {None}
    assert all(feature.distribution.baseline is None for feature in report.features)
    assert sum(report.features[0].distribution.current) == pytest.approx(1)


def test_no_windows_are_no_report() -> None:
    assert version_report(SOURCE, [], REFERENCE, SETTINGS) is None
