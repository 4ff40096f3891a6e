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


def told(report: VersionReport | None) -> VersionReport:
    assert report is not None
    return report


def test_windows_of_all_hosts_are_merged() -> None:
    found = by_time([*windows(RANDOM, 3, "a"), *windows(RANDOM, 2, "b")])
    report = told(version_report(SOURCE, found, REFERENCE, SETTINGS))
    assert (report.model, report.version, report.arm) == ("intent", "1.0.0", "production")
    assert (report.rows, report.hosts, len(report.windows)) == (5 * ROWS, ("a", "b"), 5)
    assert report.started_at == START
    assert report.ended_at == max(each.ended_at for each in report.windows)
    assert (report.drifted, report.report, report.reason) == (False, "report-1", None)
    assert not any(each.drifted for each in report.windows)


def test_a_drift_is_told_by_its_cause_and_in_the_windows_that_have_it() -> None:
    found = [*windows(RANDOM, 3)]
    found += [window(RANDOM, place, text_length=LONG) for place in (3, 4)]
    report = told(version_report(SOURCE, found, REFERENCE, SETTINGS))
    assert report.drifted
    first = report.features[0]
    assert first.name == "text_length"
    assert first.verdict is not None
    assert first.verdict.drifted
    assert first.verdict.p_value < 1e-6
    assert [each.drifted for each in report.windows] == [False, False, False, True, True]
    assert report.windows[0].effects["text_length"] < 0.1 < report.windows[3].effects["text_length"]
    assert [each.name for each in report.features if each.verdict and each.verdict.drifted] == [
        "text_length"
    ]


def test_a_window_is_judged_with_those_of_its_own_host() -> None:
    drifting = [window(RANDOM, place, "a", text_length=LONG) for place in range(3)]
    report = told(
        version_report(SOURCE, by_time([*drifting, *windows(RANDOM, 3, "b")]), REFERENCE, SETTINGS)
    )
    verdicts = {(each.host, each.drifted) for each in report.windows}
    assert verdicts == {("a", True), ("b", False)}


def test_without_a_baseline_the_reason_stands_for_a_verdict() -> None:
    report = told(version_report(SOURCE, windows(RANDOM, 2), "it was never validated", SETTINGS))
    assert (report.drifted, report.report) == (None, None)
    assert report.reason == "it was never validated"
    assert [each.drifted for each in report.windows] == [None, None]
    assert {each.verdict for each in report.features} == {None}
    assert all(each.distribution.baseline is None for each in report.features)
    assert sum(report.features[0].distribution.current) == pytest.approx(1)


def test_no_windows_are_no_report() -> None:
    assert version_report(SOURCE, [], REFERENCE, SETTINGS) is None
