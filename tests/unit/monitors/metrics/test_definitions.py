import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from kaiten.feedback import Measures, VersionQuality
from kaiten.serving import BatchStats
from kaiten.settings.environment import ROOT, environment_for
from monitors.metrics.definitions import Metrics
from tests.prediction_events import prediction_event
from tests.small_disk import fill, fill_inodes, small_disk

V1 = "/api/v1/predict"
V2 = "/api/v2/predict"
TAG = "intent:1.0.0"
MODEL = {"model": "intent", "version": "1.0.0"}
SERVICE = {"service_name": "kaiten_service", "service_version": "7"}

# Takes a directory and a number of requests, and leaves one more in progress.
WORKER = """
import sys
from monitors.metrics.definitions import Metrics
metrics = Metrics(sys.argv[1])
for _ in range(int(sys.argv[2])):
    metrics.request_started("/api/v2/predict")
    metrics.request_answered("/api/v2/predict", "intent:1.0.0", 200, 0.01)
metrics.request_started("/api/v2/predict")
print("done", flush=True)
sys.stdin.read()
"""
SCRAPE = """
import sys
from kaiten.settings.models import LoggingSettings
from monitors.metrics.definitions import Metrics
from monitors.logging.setup import configure_logging
configure_logging(LoggingSettings())
sys.stdout.buffer.write(Metrics(sys.argv[1]).exposition()[0])
"""


QUALITY = """
import sys
from datetime import UTC, datetime
from kaiten.feedback import Estimate, Measures, VersionQuality
from monitors.metrics.definitions import Metrics
at = datetime.now(UTC)
measures = Measures(40, at, at, float(sys.argv[2]), 0.8, 0.7, 0.75)
estimate = Estimate(0.88, 0.85, 0.91, 1000, 0.01, 200, 5)
versions = [
    VersionQuality("intent", "1.0.0", "production", measures, estimate),
    VersionQuality("intent", "2.0.0", "shadow", None, None),
]
Metrics(sys.argv[1]).quality_measured(versions)
"""


class Samples:
    """The samples of an exposition, by name and labels."""

    def __init__(self, exposition: bytes) -> None:
        self._families = list(text_string_to_metric_families(exposition.decode()))

    @property
    def families(self) -> list[str]:
        return [family.name for family in self._families]

    def labels(self, name: str) -> list[Mapping[str, str]]:
        return [labels for labels, _ in self._named(name)]

    def value(self, name: str, **labels: str) -> float:
        """Return the one sample that has these labels, among others."""
        values = [value for has, value in self._named(name) if labels.items() <= has.items()]
        assert len(values) == 1, f"{len(values)} samples of {name} with {labels}"
        return values[0]

    def _named(self, name: str) -> Iterator[tuple[Mapping[str, str], float]]:
        for family in self._families:
            for sample in family.samples:
                if sample.name == name:
                    yield sample.labels, sample.value


def read_samples(metrics: Metrics) -> Samples:
    return Samples(metrics.exposition()[0])


def answer(metrics: Metrics, route: str, model: str, status: int) -> None:
    metrics.request_started(route)
    metrics.request_answered(route, model, status, 0.25)


def test_requests_are_counted_by_route_status_and_model() -> None:
    metrics = Metrics()
    for status in (200, 200, 429):
        answer(metrics, V2, TAG, status)
    answer(metrics, V1, "", 401)
    samples = read_samples(metrics)
    name = "model_requests_total"
    assert samples.value(name, route=V2, code="200", **MODEL) == 2
    assert samples.value(name, route=V2, code="429", **MODEL) == 1
    assert samples.value(name, route=V1, code="401", model="", version="") == 1


def test_truncated_texts_are_counted_by_model() -> None:
    metrics = Metrics()
    for truncated in (True, False, True):
        event = prediction_event(model_tag=TAG, truncated=truncated)
        metrics.handle([event, prediction_event(model_tag="topic:2.1.0")])
    assert read_samples(metrics).value("kaiten_truncated_texts_total", **MODEL) == 2
    assert read_samples(metrics).value("kaiten_truncated_texts_total") == 2


def test_requests_are_timed() -> None:
    metrics = Metrics()
    for seconds in (0.002, 0.25, 20):
        metrics.request_started(V2)
        metrics.request_answered(V2, TAG, 200, seconds)
    samples = read_samples(metrics)
    name = "model_request_duration_seconds"
    assert samples.value(f"{name}_count", route=V2, code="200") == 3
    assert samples.value(f"{name}_sum", route=V2, code="200") == pytest.approx(20.252)
    buckets = [samples.value(f"{name}_bucket", le=le) for le in ("0.001", "0.0025", "0.25", "+Inf")]
    assert buckets == [0, 1, 2, 3]


def test_requests_in_progress_are_those_started_and_not_answered() -> None:
    metrics = Metrics()
    metrics.request_started(V2)
    answer(metrics, V2, TAG, 200)
    assert read_samples(metrics).value("kaiten_requests_in_progress", route=V2) == 1


def test_metrics_are_apart_from_each_other() -> None:
    first, second = Metrics(), Metrics()
    answer(first, V2, TAG, 200)
    assert read_samples(second).labels("model_requests_total") == []


def test_a_batch_is_measured() -> None:
    metrics = Metrics()
    report = BatchStats(
        items=3, tokens=60, padded_tokens=80, queue_delays_s=[0.1, 0.2, 0.3], inference_s=0.05
    )
    metrics.observer(TAG).batch_computed(report)
    samples = read_samples(metrics)
    sums = {
        "kaiten_batch_items": (1, 3),
        "kaiten_batch_tokens": (1, 80),
        "kaiten_batch_padding_ratio": (1, 0.25),
        "kaiten_queue_delay_seconds": (3, 0.6),
        "kaiten_inference_duration_seconds": (1, 0.05),
    }
    for name, (count, total) in sums.items():
        assert samples.value(f"{name}_count", **MODEL) == count
        assert samples.value(f"{name}_sum", **MODEL) == pytest.approx(total)


@pytest.mark.parametrize(
    ("tokens", "le", "below"), [(80, "0.01", 1), (64, "0.1", 0), (64, "0.2", 1)]
)
def test_padding_is_a_share_of_the_computed_tokens(tokens: int, le: str, below: int) -> None:
    metrics = Metrics()
    report = BatchStats(1, tokens, padded_tokens=80, queue_delays_s=[0], inference_s=0)
    metrics.observer(TAG).batch_computed(report)
    samples = read_samples(metrics)
    assert samples.value("kaiten_batch_padding_ratio_bucket", le=le, **MODEL) == below


def test_batch_of_items_that_cost_nothing_has_no_padding() -> None:
    report = BatchStats(2, 0, padded_tokens=0, queue_delays_s=[0, 0], inference_s=0)
    assert report.padding_ratio == 0


def test_the_queue_and_failures_are_reported_by_model() -> None:
    metrics = Metrics()
    first, second = metrics.observer(TAG), metrics.observer("topic:2.1.0")
    first.queue_changed(7)
    first.queue_changed(4)
    first.batch_failed()
    first.batch_failed()
    first.out_of_memory()
    second.queue_changed(1)
    samples = read_samples(metrics)
    assert samples.value("kaiten_queue_items", **MODEL) == 4
    assert samples.value("kaiten_queue_items", model="topic", version="2.1.0") == 1
    assert samples.value("kaiten_batch_failures_total", **MODEL) == 2
    assert samples.value("kaiten_out_of_memory_total", **MODEL) == 1
    assert samples.value("kaiten_batch_failures_total", model="topic", version="2.1.0") == 0


def test_items_that_were_not_computed_are_counted_by_reason() -> None:
    metrics = Metrics()
    observer = metrics.observer(TAG)
    observer.items_skipped(gone=2, expired=0)
    observer.items_skipped(gone=1, expired=4)
    samples = read_samples(metrics)
    assert samples.value("kaiten_items_skipped_total", **MODEL, reason="gone") == 3
    assert samples.value("kaiten_items_skipped_total", **MODEL, reason="expired") == 4


def test_dropped_events_are_counted() -> None:
    metrics = Metrics()
    assert read_samples(metrics).value("kaiten_drift_events_dropped_total") == 0
    metrics.drift_events_dropped(3)
    metrics.drift_events_dropped(2)
    assert read_samples(metrics).value("kaiten_drift_events_dropped_total") == 5


def test_requests_have_the_names_that_bentoml_gives_them() -> None:
    metrics = Metrics(bento_version="7")
    for model in (TAG, TAG, "topic:2.1.0"):
        answer(metrics, V2, model, 200)
    answer(metrics, V1, "", 401)
    metrics.request_started(V1)
    samples = read_samples(metrics)
    labels = [
        SERVICE | {"endpoint": V2, "http_response_code": "200"},
        SERVICE | {"endpoint": V1, "http_response_code": "401"},
    ]
    total, duration = "bentoml_service_request_total", "bentoml_service_request_duration_seconds"
    for name in (total, f"{duration}_count", f"{duration}_sum"):
        assert samples.labels(name) == labels
    assert [samples.value(total, **series) for series in labels] == [3, 1]
    assert [samples.value(f"{duration}_sum", **series) for series in labels] == [0.75, 0.25]
    assert [samples.value(f"{duration}_bucket", **series, le="0.5") for series in labels] == [3, 1]
    assert samples.value("bentoml_service_request_in_progress", **SERVICE, endpoint=V1) == 1
    assert samples.value("bentoml_service_request_in_progress", **SERVICE, endpoint=V2) == 0
    assert samples.labels("bentoml_service_request_in_progress") == [
        SERVICE | {"endpoint": V2},
        SERVICE | {"endpoint": V1},
    ]


def test_no_metric_is_exposed_twice() -> None:
    metrics = Metrics()
    answer(metrics, V2, TAG, 200)
    families = read_samples(metrics).families
    assert len(set(families)) == len(families)
    assert {name for name in families if name.startswith("bentoml_")} == {
        "bentoml_service_request",
        "bentoml_service_request_duration_seconds",
        "bentoml_service_request_in_progress",
    }


def test_the_exposition_says_what_it_is() -> None:
    content, content_type = Metrics().exposition()
    assert content.endswith(b"\n")
    assert content_type.startswith("text/plain; version=")


def start(directory: Path, requests: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(directory), str(requests)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment_for({"PROMETHEUS_MULTIPROC_DIR": str(directory)}),
    )


@contextmanager
def workers(directory: Path, *requests: int) -> Iterator[None]:
    """Start workers, and end them once what they counted has been looked at."""
    processes = [start(directory, count) for count in requests]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "done\n"
        yield
    finally:
        for process in processes:
            process.communicate("")


def scrape(directory: Path) -> Samples:
    process = subprocess.run(
        [sys.executable, "-c", SCRAPE, str(directory)],
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        env=environment_for({"PROMETHEUS_MULTIPROC_DIR": str(directory)}),
    )
    return Samples(process.stdout)


def test_workers_are_summed_and_the_gauges_of_dead_ones_forgotten(tmp_path: Path) -> None:
    with workers(tmp_path, 200, 300):
        alive = scrape(tmp_path)
    dead = scrape(tmp_path)
    for samples in (alive, dead):
        assert samples.value("model_requests_total", route=V2, code="200", **MODEL) == 500
        assert samples.value("model_request_duration_seconds_count") == 500
        assert samples.value("model_request_duration_seconds_sum") == pytest.approx(5)
        assert samples.value("bentoml_service_request_total", http_response_code="200") == 500
        assert samples.value("bentoml_service_request_duration_seconds_count") == 500
        assert len(set(samples.families)) == len(samples.families)
    assert alive.value("kaiten_requests_in_progress", route=V2) == 2
    assert alive.value("bentoml_service_request_in_progress", endpoint=V2) == 2
    assert dead.labels("kaiten_requests_in_progress") == []
    assert dead.labels("bentoml_service_request_in_progress") == []


def test_refusals_are_counted_by_limit_and_a_worker_that_counts_by_itself_is_shown() -> None:
    metrics = Metrics()
    for limit in ("requests", "concurrency", "requests"):
        metrics.request_limited(limit)
    metrics.limits_degraded(degraded=True)
    samples = read_samples(metrics)
    assert samples.value("kaiten_requests_rate_limited_total", limit="requests") == 2
    assert samples.value("kaiten_requests_rate_limited_total", limit="concurrency") == 1
    assert samples.value("kaiten_rate_limit_degraded") == 1
    metrics.limits_degraded(degraded=False)
    assert read_samples(metrics).value("kaiten_rate_limit_degraded") == 0


def test_quality_is_what_any_worker_has_measured_last(tmp_path: Path) -> None:
    environment = environment_for({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)})
    for accuracy in ("0.5", "0.9"):
        command = [sys.executable, "-c", QUALITY, str(tmp_path), accuracy]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    command = [sys.executable, "-c", SCRAPE, str(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    samples = Samples(process.stdout)
    labels = {"arm": "production", **MODEL}
    assert samples.labels("model_accuracy") == [labels]
    assert samples.value("model_accuracy", **labels) == 0.9
    assert samples.value("kaiten_f1", **labels) == 0.75
    assert samples.value("kaiten_labelled_predictions", **labels) == 40
    assert samples.value("kaiten_accuracy_estimate", **labels) == 0.88
    assert samples.value("kaiten_accuracy_estimate_low", **labels) == 0.85
    assert samples.value("kaiten_accuracy_estimate_high", **labels) == 0.91


def test_predictions_that_were_not_written_are_counted() -> None:
    metrics = Metrics()
    metrics.feedback_events_dropped(3)
    samples = Samples(metrics.exposition()[0])
    assert samples.value("kaiten_feedback_events_dropped_total") == 3


def test_what_is_not_measured_any_more_is_not_shown_as_if_it_were() -> None:
    metrics = Metrics()
    at = datetime.now(UTC)
    first, second = (
        VersionQuality("intent", version, "production", Measures(1, at, at, 1, 1, 1, 1), None)
        for version in ("1.0.0", "2.0.0")
    )
    metrics.quality_measured([first, second])
    metrics.quality_measured([second])
    samples = read_samples(metrics)
    arm = {"arm": "production", "model": "intent"}
    assert math.isnan(samples.value("model_accuracy", version="1.0.0", **arm))
    assert samples.value("model_accuracy", version="2.0.0", **arm) == 1


def test_labels_and_their_database_are_reported() -> None:
    metrics = Metrics()
    metrics.labels_received("waiting", 3)
    metrics.labels_received("waiting", 1)
    metrics.database_unavailable(unavailable=True)
    samples = read_samples(metrics)
    assert samples.value("kaiten_feedback_labels_total", outcome="waiting") == 4
    assert samples.value("kaiten_database_unavailable") == 1
    metrics.database_unavailable(unavailable=False)
    assert read_samples(metrics).value("kaiten_database_unavailable") == 0


def test_workers_that_are_ready_are_shown_beside_those_there_should_be() -> None:
    metrics, ready = Metrics(), [1]
    metrics.expose_workers(2, lambda: ready[0])
    metrics.worker_started()
    samples = read_samples(metrics)
    assert samples.value("kaiten_workers_expected") == 2
    assert samples.value("kaiten_workers_ready") == 1
    assert samples.value("kaiten_worker_starts_total") == 1
    ready[0] = 2
    assert read_samples(metrics).value("kaiten_workers_ready") == 2


def test_what_serves_is_shown_by_labels() -> None:
    metrics = Metrics(bento_version="1.0.0-cpu-0f2a")
    served = {"ours:1.0.0": "a" * 64, "theirs:2.0.0": "b" * 64}
    metrics.expose_versions("0.1.0", lambda: served)
    samples = read_samples(metrics)
    assert samples.value("kaiten_build_info", version="0.1.0", bento="1.0.0-cpu-0f2a") == 1
    for tag, digest in served.items():
        name, _, version = tag.partition(":")
        assert samples.value("kaiten_model_info", model=name, version=version, digest=digest) == 1


# Takes a directory; counts in one series, says so, and in very many more after a line of input.
GROWING = """
import os, sys
from kaiten.settings.models import LoggingSettings
from monitors.metrics.definitions import Metrics
from monitors.logging.setup import configure_logging
configure_logging(LoggingSettings())
metrics = Metrics(os.environ["PROMETHEUS_MULTIPROC_DIR"])
def answer(model, count):
    for _ in range(count):
        metrics.request_started("/api/v2/predict")
        metrics.request_answered("/api/v2/predict", model, 200, 0.01)
answer("first:1.0.0", 3)
print("ready", flush=True)
sys.stdin.readline()
for number in range(2000):
    answer(f"m{number}:1.0.0", 1)
answer("first:1.0.0", 4)
sys.stdout.buffer.write(metrics.exposition()[0])
"""


@pytest.mark.parametrize("full", ["at the start", "later", "of files"])
def test_full_disk_costs_no_worker_and_its_own_metrics_stay_right(
    full: str, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m", inodes=8) as disk:
        if full == "at the start":
            fill(disk)
        elif full == "of files":
            fill_inodes(disk)
        process = subprocess.Popen(
            [sys.executable, "-c", GROWING],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=environment_for({"PROMETHEUS_MULTIPROC_DIR": str(disk)}),
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if full == "later":
            fill(disk)
        out, err = process.communicate(b"\n")
        assert process.returncode == 0, err
    samples = Samples(out)
    assert samples.value("model_requests_total", model="first") == 7
    assert samples.value("model_requests_total", model="m1999") == 1
    assert samples.value("model_request_duration_seconds_count") == 2007
    assert samples.value("kaiten_metrics_in_memory") > 0
    # Once, and not for each value.
    assert err.count(b"metrics_in_memory") == 1


def test_disk_that_has_room_keeps_nothing_in_memory_only(tmp_path: Path) -> None:
    with workers(tmp_path, 5):
        assert scrape(tmp_path).value("kaiten_metrics_in_memory") == 0
        for file in tmp_path.glob("*.db"):
            # Blocks of 512 bytes: without a hole, whose first use could fail.
            assert file.stat().st_blocks * 512 >= file.stat().st_size > 0


def test_prometheus_client_still_makes_and_reads_its_files_by_our_class(tmp_path: Path) -> None:
    with workers(tmp_path, 5):
        # A change there, and it would make holes, or read files that are torn, unnoticed.
        assert {file.stat().st_size for file in tmp_path.glob("*.db")} == {1 << 16}
        (tmp_path / "counter_5000000.db").write_bytes(b"\1\2\3")
        samples = scrape(tmp_path)
    assert samples.value("model_requests_total") == 5
    assert samples.value("kaiten_metrics_files_corrupt_total") == 1


def test_worker_with_the_id_of_one_that_left_a_torn_file_starts_afresh(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "file = pathlib.Path(sys.argv[1], f'counter_{os.getpid()}.db')\n"
        "file.write_bytes(b'\\x40\\0\\0\\0' + b'\\xff' * 100)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script + WORKER, str(tmp_path), "4"],
        stdin=subprocess.DEVNULL,
        check=True,
        cwd=ROOT,
        env=environment_for({"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}),
    )
    assert process.returncode == 0
    assert scrape(tmp_path).value("model_requests_total") == 4


def test_lines_that_were_not_written_are_counted_by_target() -> None:
    metrics = Metrics()
    metrics.log_lines_dropped("console", 2)
    metrics.log_lines_dropped("security", 1)
    samples = read_samples(metrics)
    values = {
        target: samples.value("kaiten_log_lines_dropped_total", target=target)
        for target in ("console", "requests", "security")
    }
    assert values == {"console": 2, "requests": 0, "security": 1}
