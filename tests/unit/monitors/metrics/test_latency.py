import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaiten.settings.environment import ROOT
from monitors.metrics.definitions import Metrics
from monitors.metrics.latency import (
    MAX_SECONDS,
    MIN_SECONDS,
    RELATIVE_ERROR,
    LatencyStats,
    RouteLatency,
)

V1 = "/api/v1/predict"
V2 = "/api/v2/predict"
ROUTES = (V1, V2)
SHARES = st.floats(0, 1)
# Adds so many answers of one length, says so, and waits to be ended or killed.
WORKER = f"""
import sys
from monitors.metrics.latency import LatencyStats
times = LatencyStats({ROUTES!r}, sys.argv[1])
for _ in range(int(sys.argv[2])):
    times.add({V2!r}, 200, float(sys.argv[3]))
    times.add({V2!r}, 429, 0.001)
print("done", flush=True)
sys.stdin.read()
"""


def latency_of(seconds: Sequence[float]) -> RouteLatency:
    times = LatencyStats(ROUTES)
    for duration in seconds:
        times.add(V2, 200, duration)
    return route_latency(times, V2)


def route_latency(times: LatencyStats, name: str) -> RouteLatency:
    (latency,) = [latency for latency in times.read()[1] if latency.route == name]
    return latency


@given(st.lists(st.floats(MIN_SECONDS, MAX_SECONDS), min_size=1, max_size=200), SHARES)
def test_a_quantile_is_within_the_relative_error_of_the_answer_at_its_rank(
    seconds: list[float], share: float
) -> None:
    exact = sorted(seconds)[int(share * (len(seconds) - 1))]
    assert latency_of(seconds).quantile(share) == pytest.approx(
        exact, rel=RELATIVE_ERROR * (1 + 1e-9)
    )


@given(
    st.lists(
        st.lists(st.floats(MIN_SECONDS, MAX_SECONDS), min_size=1, max_size=50),
        min_size=2,
        max_size=4,
    ),
    SHARES,
)
def test_what_is_merged_is_what_one_would_have_kept(
    workers: list[list[float]], share: float
) -> None:
    together = latency_of([duration for worker in workers for duration in worker])
    rows = np.stack([latency_of(worker).row for worker in workers])
    merged = RouteLatency(V2, rows.sum(axis=0))
    assert (merged.row[3:] == together.row[3:]).all()


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50), SHARES)
def test_whatever_it_took_is_counted_and_no_quantile_is_outside_of_it(
    seconds: list[float], share: float
) -> None:
    latency = latency_of(seconds)
    quantile = latency.quantile(share)
    assert latency.count == len(seconds)
    assert latency.mean == pytest.approx(np.mean(seconds), rel=1e-9, abs=1e-9)
    assert latency.least == pytest.approx(min(seconds), abs=1e-9)
    assert latency.most == pytest.approx(max(seconds), abs=1e-9)
    assert quantile is not None
    assert min(seconds) <= quantile <= max(*seconds, 1e-9)


def test_the_times_are_those_of_good_answers_and_all_others_are_counted() -> None:
    times = LatencyStats(ROUTES)
    for status, seconds in ((200, 0.2), (204, 0.4), (429, 0.001), (429, 0.001), (503, 30)):
        times.add(V2, status, seconds)
    times.add(V1, 499, 0.1)
    v1, v2 = route_latency(times, V1), route_latency(times, V2)
    assert (v2.count, v2.others) == (2, {429: 2, 503: 1})
    assert v2.mean == pytest.approx(0.3)
    assert (v2.least, v2.most) == (0.2, 0.4)
    assert (v1.count, v1.others) == (0, {499: 1})
    assert (v1.mean, v1.least, v1.most, v1.quantile(0.5)) == (None, None, None, None)


def test_every_route_is_reported_in_order_even_one_without_requests() -> None:
    _, latencies = LatencyStats(ROUTES).read()
    assert [(latency.route, latency.count, latency.others) for latency in latencies] == [
        (V1, 0, {}),
        (V2, 0, {}),
    ]


@pytest.mark.parametrize(("status", "counted"), [(100, 300), (302, 302), (599, 599), (999, 599)])
def test_a_status_that_is_none_counts_as_the_next(status: int, counted: int) -> None:
    times = LatencyStats(ROUTES)
    times.add(V1, status, 0.1)
    assert route_latency(times, V1).others == {counted: 1}


def test_metrics_time_each_answer() -> None:
    times = LatencyStats(ROUTES)
    metrics = Metrics(latency=times)
    metrics.request_started(V2)
    metrics.request_answered(V2, "intent:1.0.0", 200, 0.25)
    assert (route_latency(times, V2).count, route_latency(times, V2).most) == (1, 0.25)


@contextmanager
def worker(folder: Path, answers: int, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    """Run a worker that has added its answers, until it is no longer looked at."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), str(answers), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        yield process
    finally:
        process.communicate("")


def test_every_worker_reports_the_same_of_all_and_one_that_is_killed_counts_on(
    tmp_path: Path,
) -> None:
    before = datetime.now(UTC)
    with worker(tmp_path, 300, 0.1), worker(tmp_path, 700, 0.4) as killed:
        times = LatencyStats(ROUTES, str(tmp_path))
        times.add(V2, 200, 0.9)
        killed.kill()
        killed.wait()
        since, _ = times.read()
        latency = route_latency(times, V2)
    assert before <= since <= datetime.now(UTC)
    assert (latency.count, latency.others) == (1001, {429: 1000})
    assert latency.mean == pytest.approx((300 * 0.1 + 700 * 0.4 + 0.9) / 1001)
    assert (latency.least, latency.most) == (0.1, 0.9)
    assert latency.quantile(0.25) == pytest.approx(0.1, rel=RELATIVE_ERROR)
    assert latency.quantile(0.5) == pytest.approx(0.4, rel=RELATIVE_ERROR)
    # As a worker that takes its place, and has the same id by chance.
    restarted = LatencyStats(ROUTES, str(tmp_path))
    assert route_latency(restarted, V2).count == 1001
    assert restarted.read()[0] == since


def test_a_file_that_is_being_made_or_is_of_another_make_is_passed_over(tmp_path: Path) -> None:
    times = LatencyStats(ROUTES, str(tmp_path))
    (file,) = tmp_path.iterdir()
    (tmp_path / "answers_1.times").touch()
    (tmp_path / "answers_2.times").write_bytes(bytes(file.stat().st_size))
    (tmp_path / "answers_3.times").write_bytes(b"\xff" * 100)
    since, _ = times.read()
    assert since.year > 2000
    assert route_latency(times, V2).count == 0


def test_what_this_worker_has_kept_is_reported_even_where_its_folder_is_gone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "metrics"
    times = LatencyStats(ROUTES, str(folder))
    times.add(V2, 200, 0.1)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    times.add(V2, 200, 0.1)
    assert route_latency(times, V2).count == 2
