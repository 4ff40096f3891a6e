"""Both workers report the same drift, even after one of them is killed."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from monitors.drift.spool import Spool
from monitors.drift.whylogs_profiles import Profile
from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.servers import TLS, quickstart_texts, until_all_ready

Json = Any
WINDOW, HELD_OUT = 60, 238
LIMIT = 5000
SETTINGS = {
    "KAITEN_DRIFT__WINDOW_ROWS": str(WINDOW),
    "KAITEN_DRIFT__MIN_ROWS": "30",
    **TWO_WORKERS,
}


@pytest.fixture(scope="module")
def watched(
    bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WatchedServer]:
    with serve(bentoml_home, tmp_path_factory.mktemp("home"), SETTINGS) as server:
        yield server


@pytest.fixture(scope="module")
def operator(watched: WatchedServer) -> Iterator[Callable[[], Json]]:
    """Return what tells the drift of the one version, by whichever worker answers."""
    token = watched.server.token("ops", "ops")
    # Each time on a connection of its own, which either worker may take.
    headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
    with httpx.Client(
        base_url=watched.server.url, headers=headers, timeout=60, verify=TLS
    ) as client:

        def drift() -> Json:
            (report,) = client.get("/ops/drift").raise_for_status().json()["models"]
            return report

        yield drift


def ask(server: WatchedServer, texts: list[str]) -> None:
    """Send each text on a connection of its own: both workers get some."""
    headers = {"Authorization": f"Bearer {server.server.token()}", "Connection": "close"}
    with httpx.Client(
        base_url=server.server.url, headers=headers, timeout=60, verify=TLS
    ) as client:
        for text in texts:
            client.post("/api/v1/predict", json={"text": text}).raise_for_status()


def usual_texts() -> list[str]:
    """Return a window of texts of all labels, which the file of held-out ones has in turn."""
    step = HELD_OUT // WINDOW
    return quickstart_texts()[: WINDOW * step : step]


def wait_for_windows(drift: Callable[[], Json], windows: int) -> Json:
    """Return the drift report once this many windows are judged."""
    report = next(
        (candidate for _ in range(LIMIT) if (candidate := drift())["windows"] >= windows), None
    )
    assert report is not None, f"no {windows} windows were judged"
    return report


def test_usual_answers_are_judged_and_do_not_drift(
    watched: WatchedServer, operator: Callable[[], Json]
) -> None:
    assert operator()["report"] is not None
    ask(watched, usual_texts())
    report = wait_for_windows(operator, 1)
    assert (report["model"], report["version"], report["arm"]) == (
        "support-intent",
        "1.0.0",
        "production",
    )
    assert report["drifted"] is False
    assert report["window"]["rows"] == WINDOW
    assert "distance" in {feature["name"] for feature in report["features"]}


def test_drift_is_reported_alike_by_both_workers_and_by_the_metrics(
    watched: WatchedServer, operator: Callable[[], Json]
) -> None:
    before = operator()["windows"]
    ask(watched, [text.upper() for text in usual_texts()])
    report = wait_for_windows(operator, before + 1)
    assert report["drifted"] is True
    assert report["features"][0]["name"] == "upper_case_share"
    assert all(operator() == report for _ in range(10))
    metrics = httpx.get(f"{watched.server.url}/metrics", verify=TLS).text
    labels = '{arm="production",model="support-intent",version="1.0.0"}'
    assert f"kaiten_drift_detected{labels} 1.0" in metrics
    assert f"kaiten_drift_baseline_available{labels} 1.0" in metrics
    assert f"kaiten_drift_windows_total{labels} {report['windows']:.1f}" in metrics
    assert "drift_began" in watched.server.process.log


def test_whoever_is_killed_takes_no_window_along(
    watched: WatchedServer, operator: Callable[[], Json]
) -> None:
    before = operator()["windows"]
    first, second = usual_texts()[: WINDOW // 2], usual_texts()[WINDOW // 2 :]
    ask(watched, first)
    # A killed worker does not lose spooled rows; they are spooled within a second.
    spool = Spool(Path(watched.server.env["KAITEN_HOME"]) / "drift" / "spool")
    (source,) = spool.sources("support-intent:1.0.0")
    spooled = (sum(part.rows for part in spool.parts(source)) for _ in range(LIMIT * 100))
    assert any(rows == len(first) for rows in spooled)
    # It holds what closes windows, and the other takes that over.
    keeper = next(worker for worker in watched.watch.workers() if _keeps_the_lock(worker))
    os.kill(keeper.pid, signal.SIGKILL)
    watched.wait_for_starts(3)
    until_all_ready(watched.server.url)
    ask(watched, second)
    report = wait_for_windows(operator, before + 1)
    assert report["window"]["rows"] == WINDOW
    stats = httpx.get(f"{watched.server.url}/metrics", verify=TLS).text
    (request_count,) = re.findall(r'model_requests_total{.*code="200".*predict".*} (.*)', stats)
    assert float(request_count) == 3 * WINDOW


def _keeps_the_lock(worker: psutil.Process) -> bool:
    return any(file.path.endswith("watch.lock") for file in worker.open_files())


def test_each_window_is_archived_as_whylogs_reads_it(
    watched: WatchedServer, operator: Callable[[], Json]
) -> None:
    home = Path(watched.server.env["KAITEN_HOME"])
    files = sorted((home / "profiles").rglob("*.bin"))
    assert len(files) == operator()["windows"]
    for file in files:
        profile = Profile.read(file.read_bytes())
        assert WINDOW <= profile.count("label") < 2 * WINDOW
