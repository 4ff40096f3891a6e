"""Every metric, and the exposition of all workers' metrics.

Build it when the service is constructed, not while its module is imported: prometheus_client looks
for PROMETHEUS_MULTIPROC_DIR as it is imported, and BentoML sets it only for its workers.
"""

import glob
import math
import mmap
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import psutil
import structlog
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    generate_latest,
    mmap_dict,
    multiprocess,
    values,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kaiten import model_tags
from kaiten.events import PredictionEvent
from kaiten.feedback import VersionQuality
from monitors.latency import AnswerTimes
from monitors.metrics_files import FileRows, MetricFiles, TornFile, read_rows

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)
_SHARES = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_MODEL = ("model", "version")
_FILE_BYTES = 1 << 16
# What a new value takes in a metrics file beside its key, with padding.
_VALUE_BYTES = 4 + 16 + 8
_LINE_TARGETS = ("console", "requests", "security")
logger = structlog.get_logger(__name__)


class _MetricsFile(mmap_dict.MmapedDict):
    """A worker's metrics file, whose blocks are allocated before they are mapped into memory.

    prometheus_client extends its files by holes; on a full disk the first write into one is a
    SIGBUS, which ends the process. A value that the disk has no room for is kept in this process.
    """

    # By file, what is in the memory of this process only.
    in_memory: ClassVar[dict[str, dict[str, tuple[float, float]]]] = {}
    _reported: ClassVar[bool] = False

    def __init__(self, filename: str, read_mode: bool = False) -> None:  # noqa: FBT001, FBT002  as theirs
        self._memory: dict[str, tuple[float, float]] = {}
        try:
            if not read_mode:
                _allocate(filename)
            super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._f = self._m = None  # type: ignore[assignment]  # as theirs, closed
            self._fname, self._capacity, self._used = filename, 0, _FILE_BYTES
            self._positions: dict[str, int] = {}
            self._report(error)
        self.in_memory[filename] = self._memory

    def _init_value(self, key: str) -> None:
        if self._has_room(len(key.encode()) + _VALUE_BYTES):
            super()._init_value(key)  # type: ignore[no-untyped-call]
        else:
            self._memory[key] = (0.0, 0.0)

    def _has_room(self, size: int) -> bool:
        """Tell whether so much more fits, once the file has grown where it can."""
        try:
            while self._used + size > self._capacity:
                if self._capacity == 0:
                    return False
                capacity = 2 * self._capacity
                _write_zeros(self._f.fileno(), self._capacity, capacity)
                self._m = mmap.mmap(self._f.fileno(), capacity)
                self._capacity = capacity
        except OSError as error:
            self._report(error)
            return False
        return True

    def _report(self, error: OSError) -> None:
        if not _MetricsFile._reported:
            _MetricsFile._reported = True
            # prometheus_client holds its lock here, which counting a dropped line would ask for.
            facts = {"file": str(self._fname), "fault": error.strerror or str(error)}
            threading.Thread(target=_log_in_memory, kwargs=facts, daemon=True).start()

    def read_value(self, key: str) -> tuple[float, float]:
        """Return a value and its timestamp; a key that is new is added."""
        if key not in self._positions and key not in self._memory:
            self._init_value(key)
        if key in self._memory:
            return self._memory[key]
        found: tuple[float, float] = super().read_value(key)  # type: ignore[no-untyped-call]
        return found

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set a value; a key that is new is added."""
        if key not in self._positions and key not in self._memory:
            self._init_value(key)
        if key in self._memory:
            self._memory[key] = (value, timestamp)
        else:
            super().write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the file, as this process has been forked."""
        self.in_memory.pop(str(self._fname), None)
        super().close()  # type: ignore[no-untyped-call]

    @staticmethod
    def read_all_values_from_file(filename: str) -> Iterator[tuple[str, float, float, int]]:
        """Yield the values of a file that has been read (``MetricFiles``)."""
        rows = (
            filename.rows
            if isinstance(filename, FileRows)
            else read_rows(Path(filename).read_bytes())
        )
        return ((key, value, timestamp, 0) for key, value, timestamp in rows)


def _allocate(filename: str) -> None:
    """Make a metrics file, or take over that of an earlier process of this id, without holes."""
    descriptor = os.open(filename, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        if size:
            try:
                read_rows(Path(filename).read_bytes())
            except TornFile:
                os.ftruncate(descriptor, 0)
            size = os.fstat(descriptor).st_size
        _write_zeros(descriptor, size, max(size, _FILE_BYTES))
    except OSError:
        # What is left would be taken for a file of its own, and has holes.
        Path(filename).unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _write_zeros(descriptor: int, start: int, end: int) -> None:
    """Have the disk hold what a file is extended by: not every one can allocate without a write."""
    while start < end:
        start += os.pwrite(descriptor, bytes(end - start), start)


def _log_in_memory(**facts: str) -> None:
    logger.error("metrics_in_memory", **facts)


# Both look the class up by its name as they need it.
values.MmapedDict = _MetricsFile  # type: ignore[attr-defined]
multiprocess.MmapedDict = _MetricsFile  # type: ignore[attr-defined]


class Report(Protocol):
    """What a runner tells of one computed batch; durations in seconds."""

    @property
    def size(self) -> int: ...
    @property
    def padded_tokens(self) -> int: ...
    @property
    def padding_ratio(self) -> float: ...
    @property
    def queue_seconds(self) -> Sequence[float]: ...
    @property
    def inference_seconds(self) -> float: ...


class FeatureDrift(Protocol):
    """What the last window told of a feature."""

    @property
    def name(self) -> str: ...
    @property
    def effect(self) -> float: ...


class DriftWindow(Protocol):
    """The last window of a version."""

    @property
    def ended_at(self) -> datetime: ...


class Drift(Protocol):
    """What is known of the drift of one version."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def drifted(self) -> bool | None: ...
    @property
    def windows(self) -> int: ...
    @property
    def window(self) -> DriftWindow | None: ...
    @property
    def features(self) -> Sequence[FeatureDrift]: ...


class DriftSource(Protocol):
    """Tells the drift of each version that is served."""

    def drift(self) -> Sequence[Drift]: ...


class Instruments:
    """The instruments of one worker.

    With a ``directory`` (PROMETHEUS_MULTIPROC_DIR) the exposition sums over all workers that share
    it; without one it is this process's own. ``times`` is told of each answer as well.
    """

    def __init__(
        self,
        directory: str | None = None,
        service: str = "kaiten_service",
        bento_version: str = "not available",
        times: AnswerTimes | None = None,
    ) -> None:
        self._times = times
        self._service = {"service_name": service, "service_version": bento_version}
        self._registry = registry = CollectorRegistry()
        # What is the same from each worker, and read when it is asked for.
        self._shared: list[Collector] = []
        self._files: MetricFiles | None = None
        self._models = _ModelInstruments(registry)
        self._requests = Counter(
            "model_requests_total",
            "Requests to a model's route, by the status that the caller saw.",
            ("route", "code", *_MODEL),
            registry=registry,
        )
        self._durations = Histogram(
            "model_request_duration_seconds",
            "From the end of the request's headers to the end of the answer.",
            ("route", "code"),
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_progress = Gauge(
            "kaiten_requests_in_progress",
            "Requests to a model's route that are being handled now.",
            ("route",),
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._drift_events_dropped = Counter(
            "kaiten_drift_events_dropped_total",
            "Answers that were not profiled, because the profiler was behind.",
            registry=registry,
        )
        self._feedback_events_dropped = Counter(
            "kaiten_feedback_events_dropped_total",
            "Answers that no label can be joined to, as the database did not take them in time.",
            registry=registry,
        )
        self._quality = _QualityInstruments(registry)
        self._labels = Counter(
            "kaiten_feedback_labels_total",
            "Labels that came in: joined, waiting, joined_later, refused, or unavailable (a 503).",
            ("outcome",),
            registry=registry,
        )
        self._database_away = Gauge(
            "kaiten_database_unavailable",
            "1 if the database of predictions and labels does not answer, or takes nothing.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._database_wal = Gauge(
            "kaiten_database_wal_bytes",
            "SQLite's write-ahead log, which grows for as long as another program reads.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._credentials_restored = Counter(
            "kaiten_credentials_restored_total",
            "Credentials and revocations that their store had lost, written back by a worker.",
            registry=registry,
        )
        self._limited = Counter(
            "kaiten_requests_rate_limited_total",
            "Requests that were refused as their subject had reached a limit of its own.",
            ("limit",),
            registry=registry,
        )
        self._body_bytes = Gauge(
            "kaiten_request_body_bytes",
            "Bytes of the bodies of all requests under way.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._bodies_refused = Counter(
            "kaiten_request_bodies_rejected_total",
            "Requests that were refused because there was no memory for their bodies.",
            registry=registry,
        )
        self._refused_early = Counter(
            "kaiten_requests_rejected_total",
            "Requests refused before they were read: queue_full, overloaded, connections, "
            "malformed_request or headers_too_large.",
            ("reason",),
            registry=registry,
        )
        self._limits_degraded = Gauge(
            "kaiten_rate_limit_degraded",
            "Workers that count by themselves, as the shared store does not answer.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._lines_dropped = Counter(
            "kaiten_log_lines_dropped_total",
            "Lines that were not written, as the console is not read or a disk full or slow.",
            ("target",),
            registry=registry,
        )
        for target in _LINE_TARGETS:
            self._lines_dropped.labels(target)
        self._torn_files = Counter(
            "kaiten_metrics_files_corrupt_total",
            "Metrics files that could not be read; what was counted in them is lost.",
            registry=registry,
        )
        self._worker_starts = Counter(
            "kaiten_worker_starts_total",
            "Workers that have loaded their models, since the server started.",
            registry=registry,
        )
        if directory is not None:
            self._files = MetricFiles(Path(directory), self._torn_files.inc)
            self._files.fold()

    def observer(self, tag: str) -> "ModelObserver":
        """Return what a runner tells of the model ``name:version``."""
        return ModelObserver(self._models, *model_tags.split(tag))

    def request_started(self, route: str) -> None:
        """Note that a request to a model's route is being handled."""
        self._in_progress.labels(route).inc()

    def request_answered(self, route: str, model: str, status: int, seconds: float) -> None:
        """Count and time a request that has been answered."""
        self._in_progress.labels(route).dec()
        self._requests.labels(route, str(status), *model_tags.split(model)).inc()
        self._durations.labels(route, str(status)).observe(seconds)
        if self._times is not None:
            self._times.add(route, status, seconds)

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Count texts over the model's maximum length, of which only a part was read."""
        for event in events:
            if event.truncated:
                self._models.truncated_texts.labels(*model_tags.split(event.model_tag)).inc()

    def drift_events_dropped(self, count: int) -> None:
        """Count answers that drift detection did not measure."""
        self._drift_events_dropped.inc(count)

    def feedback_events_dropped(self, count: int) -> None:
        """Count answers that were not written to the database."""
        self._feedback_events_dropped.inc(count)

    def quality_measured(self, found: Sequence[VersionQuality]) -> None:
        """Show how good the answers of each version are, and nothing of one that is not there."""
        self._quality.show(found)

    def labels_taken(self, outcome: str, count: int) -> None:
        """Count labels that came in, by what became of them."""
        self._labels.labels(outcome).inc(count)

    def database_away(self, *, away: bool) -> None:
        """Note whether the database of predictions and labels does not answer."""
        self._database_away.set(away)

    def database_wal(self, size: int) -> None:
        """Show how many bytes SQLite's write-ahead log has."""
        self._database_wal.set(size)

    def credentials_restored(self, entries: int) -> None:
        """Count credentials and revocations that were written back to their store."""
        self._credentials_restored.inc(entries)

    def request_limited(self, limit: str) -> None:
        """Count a request that a limit refused."""
        self._limited.labels(limit).inc()

    def body_bytes_changed(self, size_bytes: int) -> None:
        """Note how many bytes the bodies of all requests under way take now."""
        self._body_bytes.set(size_bytes)

    def body_refused(self) -> None:
        """Count a request that was refused for want of memory for its body."""
        self._bodies_refused.inc()

    def request_refused_early(self, reason: str) -> None:
        """Count a request that was refused before it was read."""
        self._refused_early.labels(reason).inc()

    def limits_degraded(self, *, degraded: bool) -> None:
        """Note whether this worker counts by itself."""
        self._limits_degraded.set(degraded)

    def log_lines_dropped(self, target: str, count: int) -> None:
        """Count lines that were not written to the console or to a log file."""
        self._lines_dropped.labels(target).inc(count)

    def show_drift(self, source: DriftSource) -> None:
        """Have the exposition tell what a source knows: the same, whichever worker is asked."""
        self._shared.append(_DriftMetrics(source))

    def show_versions(self, kaiten: str, digests: Callable[[], Mapping[str, str]]) -> None:
        """Have the exposition tell what serves: Kaiten's version, and each model's card by tag."""
        bento = self._service["service_version"]
        self._shared.append(_ServedVersions(kaiten, bento, digests))

    def show_damaged_files(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Have the exposition tell how many files of each version, by tag, are damaged."""
        self._shared.append(_DamagedFiles(counts))

    def show_workers(self, expected: int, ready: Callable[[], int]) -> None:
        """Have the exposition tell how many workers the server should have, and how many serve."""
        self._shared.append(_Workers(expected, ready))

    def worker_started(self) -> None:
        """Count this worker."""
        self._worker_starts.inc()

    def exposition(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its content type."""
        source = self._registry
        if self._files is not None:
            source = CollectorRegistry()
            source.register(_WorkersMetrics(self._files))
        registry = CollectorRegistry()
        registry.register(_WithBentoNames(source, self._service))
        for collector in self._shared:
            registry.register(collector)
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _WorkersMetrics(Collector):
    """The metrics of all workers, with what this one could keep in its memory only."""

    def __init__(self, files: MetricFiles) -> None:
        self._files = files

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, summed over workers."""
        in_memory = [
            FileRows(Path(name).name, [(key, *value) for key, value in [*memory.items()]])
            for name, memory in [*_MetricsFile.in_memory.items()]
        ]
        merge: Any = multiprocess.MultiProcessCollector.merge
        yield from merge([*self._files.read(), *in_memory])
        series = GaugeMetricFamily(
            "kaiten_metrics_in_memory",
            "Values that the worker asked keeps in its memory only, as the disk took no more.",
        )
        series.add_metric((), sum(len(file.rows) for file in in_memory))
        yield series


class _ModelInstruments:
    """The instruments that are labelled by model and version."""

    def __init__(self, registry: CollectorRegistry) -> None:
        histogram = partial(Histogram, labelnames=_MODEL, registry=registry)
        self.batch_size = histogram("kaiten_batch_items", "Items in a batch.", buckets=_SIZES)
        self.batch_tokens = histogram(
            "kaiten_batch_tokens", "Tokens that a batch computed, with padding.", buckets=_TOKENS
        )
        self.padding = histogram(
            "kaiten_batch_padding_ratio", "The share of them that was padding.", buckets=_SHARES
        )
        self.queue_seconds = histogram(
            "kaiten_queue_delay_seconds", "How long an item waited for its batch.", buckets=_SECONDS
        )
        self.inference_seconds = histogram(
            "kaiten_inference_duration_seconds",
            "From the queue to its predictions.",
            buckets=_SECONDS,
        )
        self.queue_items = Gauge(
            "kaiten_queue_items",
            "Items that wait now, to be prepared or for their batch.",
            _MODEL,
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.batch_failures = Counter(
            "kaiten_batch_failures_total",
            "Batches, and parts of them, that raised.",
            _MODEL,
            registry=registry,
        )
        self.out_of_memory = Counter(
            "kaiten_out_of_memory_total",
            "Batches that the device had no memory for; those after them are smaller.",
            _MODEL,
            registry=registry,
        )
        self.device_hangs = Counter(
            "kaiten_device_hangs_total",
            "Computations and preparations that did not end in time; the process was replaced.",
            _MODEL,
            registry=registry,
        )
        self.skipped_items = Counter(
            "kaiten_items_skipped_total",
            "Items that were not computed: gone or failed callers', or past the deadline.",
            (*_MODEL, "reason"),
            registry=registry,
        )
        self.truncated_texts = Counter(
            "kaiten_truncated_texts_total",
            "Texts over the model's maximum length, of which only a part was read.",
            _MODEL,
            registry=registry,
        )


class _QualityInstruments:
    """What is known of each version's quality; the latest that any worker has measured counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        gauge = partial(
            Gauge,
            labelnames=(*_MODEL, "arm"),
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self._measured = {
            "accuracy": gauge("model_accuracy", "The share of labelled answers that were right."),
            "precision": gauge("kaiten_precision", "Precision, as a mean over labels."),
            "recall": gauge("kaiten_recall", "Recall, as a mean over labels."),
            "f1": gauge("kaiten_f1", "F1, as a mean over labels."),
            "labelled": gauge("kaiten_labelled_predictions", "Labelled answers that they tell of."),
        }
        name, of = "kaiten_accuracy_estimate", "accuracy that is expected without labels"
        self._estimated = {
            "accuracy": gauge(name, f"The {of}, from calibrated confidence."),
            "low": gauge(f"{name}_low", f"The lower end of its 95 % interval: the {of}."),
            "high": gauge(f"{name}_high", f"The upper end of its 95 % interval: the {of}."),
        }

        self._shown: set[tuple[Gauge, tuple[str, str, str]]] = set()

    def show(self, found: Sequence[VersionQuality]) -> None:
        values = {
            (gauge, (each.model, each.version, each.arm)): getattr(part, name)
            for each in found
            for part, gauges in ((each.measures, self._measured), (each.estimate, self._estimated))
            if part is not None
            for name, gauge in gauges.items()
        }
        # The files of several workers hold it: it can be overwritten, and not taken away.
        gone = dict.fromkeys(self._shown - values.keys(), math.nan)
        for (gauge, labels), value in (gone | values).items():
            gauge.labels(*labels).set(value)
        self._shown = {*values}


class ModelObserver:
    """Turns what one model's runner tells into metrics."""

    def __init__(self, instruments: _ModelInstruments, name: str, version: str) -> None:
        model = (name, version)
        self._queue_items = instruments.queue_items.labels(*model)
        self._size = instruments.batch_size.labels(*model)
        self._tokens = instruments.batch_tokens.labels(*model)
        self._padding = instruments.padding.labels(*model)
        self._queue_seconds = instruments.queue_seconds.labels(*model)
        self._inference_seconds = instruments.inference_seconds.labels(*model)
        self._failures = instruments.batch_failures.labels(*model)
        self._out_of_memory = instruments.out_of_memory.labels(*model)
        self._device_hangs = instruments.device_hangs.labels(*model)
        self._gone = instruments.skipped_items.labels(*model, "gone")
        self._expired = instruments.skipped_items.labels(*model, "expired")

    def queue_changed(self, items: int) -> None:
        """Note how many items wait now."""
        self._queue_items.set(items)

    def batch_computed(self, report: Report) -> None:
        """Note a batch that was computed."""
        self._size.observe(report.size)
        self._tokens.observe(report.padded_tokens)
        self._padding.observe(report.padding_ratio)
        self._inference_seconds.observe(report.inference_seconds)
        for seconds in report.queue_seconds:
            self._queue_seconds.observe(seconds)

    def batch_failed(self) -> None:
        """Note a batch that raised."""
        self._failures.inc()

    def out_of_memory(self) -> None:
        """Note a batch that the device had no memory for."""
        self._out_of_memory.inc()

    def device_hung(self) -> None:
        """Count work that did not end in its time."""
        self._device_hangs.inc()

    def items_skipped(self, *, gone: int, expired: int) -> None:
        """Count items that were not computed."""
        self._gone.inc(gone)
        self._expired.inc(expired)


class _WithBentoNames(Collector):
    """Adds the series that dashboards made for BentoML look for.

    BentoML's own middleware labels by raw path, so that every path a caller invents is a new
    series; these are derived from ours as they are read, and cost a request nothing.
    """

    _NAMES = {  # noqa: RUF012  never changed
        "model_requests": "bentoml_service_request",
        "model_request_duration_seconds": "bentoml_service_request_duration_seconds",
        "kaiten_requests_in_progress": "bentoml_service_request_in_progress",
    }
    _LABELS = {  # noqa: RUF012  never changed
        "route": "endpoint",
        "le": "le",
        "code": "http_response_code",
    }

    def __init__(self, source: CollectorRegistry, service: dict[str, str]) -> None:
        self._source = source
        self._service = service

    def collect(self) -> Iterable[Metric]:
        """Yield every metric of the source, and the derived ones."""
        for metric in self._source.collect():
            yield metric
            if metric.name in self._NAMES:
                yield self._derive(metric, self._NAMES[metric.name])

    def _derive(self, metric: Metric, name: str) -> Metric:
        """Return the metric under BentoML's name and labels, summed over models."""
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for sample in metric.samples:
            if sample.name.endswith("_created"):
                continue
            labels: dict[str, str] = dict(sample.labels)
            renamed = {new: labels[old] for old, new in self._LABELS.items() if old in labels}
            key = (sample.name.replace(metric.name, name, 1), tuple(renamed.items()))
            sums[key] = sums.get(key, 0) + sample.value
        derived = Metric(name, metric.documentation, metric.type)
        for (sample_name, items), value in sums.items():
            derived.add_sample(sample_name, dict(items) | self._service, value)
        return derived


class _ServedVersions(Collector):
    """What serves, as series whose labels tell it and whose value is 1."""

    def __init__(self, kaiten: str, bento: str, digests: Callable[[], Mapping[str, str]]) -> None:
        self._kaiten, self._bento, self._digests = kaiten, bento, digests

    def collect(self) -> Iterable[Metric]:
        """Yield the build and each version."""
        build = GaugeMetricFamily(
            "kaiten_build_info",
            "The version of Kaiten, and of the bento.",
            labels=("version", "bento"),
        )
        build.add_metric((self._kaiten, self._bento), 1)
        yield build
        models = GaugeMetricFamily(
            "kaiten_model_info", "The versions that are served, by the SHA-256 of the card.",
            labels=(*_MODEL, "digest"),
        )  # fmt: skip
        for tag, digest in self._digests().items():
            models.add_metric((*model_tags.split(tag), digest), 1)
        yield models


class _DamagedFiles(Collector):
    """The files of served versions that are not as they were loaded."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Yield the count of each version."""
        damaged = GaugeMetricFamily(
            "kaiten_model_files_damaged",
            "Files of a served version that are missing or changed; no worker could start.",
            labels=_MODEL,
        )
        for tag, count in self._counts().items():
            damaged.add_metric(model_tags.split(tag), count)
        yield damaged


class _Workers(Collector):
    """How many workers there should be and how many are ready, the same from each of them."""

    def __init__(self, expected: int, ready: Callable[[], int]) -> None:
        self._expected, self._ready = expected, ready

    def collect(self) -> Iterable[Metric]:
        """Yield both counts."""
        yield GaugeMetricFamily(
            "kaiten_workers_expected", "Workers that the server is set to have.", self._expected
        )
        yield GaugeMetricFamily(
            "kaiten_workers_ready", "Workers that are ready to answer.", self._ready()
        )


class _DriftMetrics(Collector):
    """Reads what is kept of drift as it is asked for."""

    def __init__(self, source: DriftSource) -> None:
        self._source = source

    def collect(self) -> Iterable[Metric]:
        """Yield whether each version drifts, how far its features are off, and as of when."""
        labels = (*_MODEL, "arm")
        drift = GaugeMetricFamily(
            "kaiten_drift_detected", "1 where the version drifts.", labels=labels
        )
        referred = GaugeMetricFamily(
            "kaiten_drift_baseline_available",
            "0 where there is nothing to tell drift from.",
            labels=labels,
        )
        windows = CounterMetricFamily("kaiten_drift_windows", "Windows judged.", labels=labels)
        ended = GaugeMetricFamily(
            "kaiten_drift_window_end_timestamp_seconds",
            "When the last window ended, in seconds since the epoch.",
            labels=labels,
        )
        effects = GaugeMetricFamily(
            "kaiten_drift_effect_ratio",
            "How far a feature of the last window is off, from 0 to 1.",
            labels=(*labels, "feature"),
        )
        for each in self._known():
            version = [each.model, each.version, each.arm]
            referred.add_metric(version, each.drifted is not None)
            windows.add_metric(version, each.windows)
            if each.drifted is not None:
                drift.add_metric(version, each.drifted)
            if each.window is not None:
                ended.add_metric(version, each.window.ended_at.timestamp())
            for feature in each.features:
                effects.add_metric([*version, feature.name], feature.effect)
        yield from (drift, referred, windows, ended, effects)

    def _known(self) -> Sequence[Drift]:
        try:
            return self._source.drift()
        except OSError:
            # All other metrics are to be told all the same.
            return ()


def own_directory(parent: Path) -> Path:
    """Return where the workers of the server that this process starts share their metrics.

    Each server has its own, named by host and process; those of this host's servers that are gone
    are removed.
    """
    host = socket.gethostname()
    for other in parent.glob(f"{glob.escape(host)}.*"):
        if not psutil.pid_exists(int(other.suffix[1:])):
            shutil.rmtree(other, ignore_errors=True)
    return parent / f"{host}.{os.getpid()}"
