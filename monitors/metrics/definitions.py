"""Every metric of a worker, and the exposition of all workers' metrics.

Import this when the service is constructed: prometheus_client reads PROMETHEUS_MULTIPROC_DIR when
it is imported, and BentoML sets it only for its workers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.registry import Collector

from kaiten import model_tags
from kaiten.events import PredictionEvent
from kaiten.feedback import VersionQuality
from kaiten.serving import BatchStats
from monitors.drift.state import DriftState
from monitors.metrics.collectors import (
    MODEL_LABELS,
    BentoNames,
    DamagedFileCollector,
    DriftCollector,
    ServedVersionCollector,
    WorkerCollector,
    WorkerFileCollector,
)
from monitors.metrics.latency import LatencyStats
from monitors.metrics.worker_files import MetricFiles

SECONDS_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ITEM_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKEN_BUCKETS = (16, 64, 256, 1024, 4096, 16384, 65536)
_RATIO_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
_LOG_TARGETS = ("console", "requests", "security")
_REASONS = "queue_full, overloaded, connections, malformed_request or headers_too_large"


class _Factory:
    """Creates metrics in a registry, with a mode for the values of several workers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.counter = partial(Counter, registry=registry)
        self.histogram = partial(Histogram, registry=registry)
        # Summed over the workers that live.
        self.total = partial(Gauge, multiprocess_mode="livesum", registry=registry)
        # The latest value of any worker.
        self.recent = partial(Gauge, multiprocess_mode="mostrecent", registry=registry)


class Metrics:
    """The metrics of one worker.

    With a ``directory`` (PROMETHEUS_MULTIPROC_DIR) the exposition sums over all workers that share
    it; without one it has this process's own. ``latency`` gets the time of each answer as well.
    """

    def __init__(
        self,
        directory: str | None = None,
        service: str = "kaiten_service",
        bento_version: str = "not available",
        latency: LatencyStats | None = None,
    ) -> None:
        self._latency = latency
        self._service_labels = {"service_name": service, "service_version": bento_version}
        self._registry = CollectorRegistry()
        factory = _Factory(self._registry)
        self._requests = _RequestMetrics(factory)
        self._models = _ModelMetrics(factory)
        self._feedback = _FeedbackMetrics(factory)
        self._quality = _QualityMetrics(factory)
        self._process = _ProcessMetrics(factory)
        # Read at each scrape, and the same in each worker.
        self._shared: list[Collector] = []
        self._files: MetricFiles | None = None
        if directory is not None:
            self._files = MetricFiles(Path(directory), self._process.files_corrupt.inc)
            self._files.fold()

    def observer(self, model_tag: str) -> "ModelObserver":
        """Return the observer of one model's runner."""
        return ModelObserver(self._models, *model_tags.split(model_tag))

    def request_started(self, route: str) -> None:
        """Count a request to a model's route as in progress."""
        self._requests.in_progress.labels(route).inc()

    def request_answered(self, route: str, model_tag: str, code: int, seconds: float) -> None:
        """Count and time an answered request."""
        self._requests.in_progress.labels(route).dec()
        self._requests.requests.labels(route, str(code), *model_tags.split(model_tag)).inc()
        self._requests.durations.labels(route, str(code)).observe(seconds)
        if self._latency is not None:
            self._latency.add(route, code, seconds)

    def handle(self, events: Sequence[PredictionEvent]) -> None:
        """Count texts over the model's maximum length, of which only a part was read."""
        for event in events:
            if event.truncated:
                self._models.truncated_texts.labels(*model_tags.split(event.model_tag)).inc()

    def drift_events_dropped(self, count: int) -> None:
        """Count answered items that drift detection lost."""
        self._feedback.drift_events_dropped.inc(count)

    def feedback_events_dropped(self, count: int) -> None:
        """Count answered items that were not written to the database."""
        self._feedback.feedback_events_dropped.inc(count)

    def quality_measured(self, versions: Sequence[VersionQuality]) -> None:
        """Set the quality of these versions, and clear that of all others."""
        self._quality.set(versions)

    def labels_received(self, outcome: str, count: int) -> None:
        """Count labels by outcome."""
        self._feedback.labels.labels(outcome).inc(count)

    def database_unavailable(self, *, unavailable: bool) -> None:
        """Set whether the database does not answer or accepts no writes."""
        self._feedback.database_unavailable.set(unavailable)

    def database_wal(self, size_bytes: int) -> None:
        """Set the size of SQLite's write-ahead log."""
        self._feedback.database_wal.set(size_bytes)

    def credentials_restored(self, entries: int) -> None:
        """Count credentials and revocations that were written back to their store."""
        self._process.credentials_restored.inc(entries)

    def request_limited(self, limit: str) -> None:
        """Count a request that a rate limit rejected."""
        self._requests.rate_limited.labels(limit).inc()

    def body_bytes_changed(self, size_bytes: int) -> None:
        """Set the bytes of the bodies of all requests in progress."""
        self._requests.body_bytes.set(size_bytes)

    def body_refused(self) -> None:
        """Count a request that was rejected for lack of memory for its body."""
        self._requests.bodies_rejected.inc()

    def request_refused_early(self, reason: str) -> None:
        """Count a request that was rejected before it was read."""
        self._requests.rejected.labels(reason).inc()

    def limits_degraded(self, *, degraded: bool) -> None:
        """Set whether this worker counts requests alone."""
        self._requests.rate_limit_degraded.set(degraded)

    def log_lines_dropped(self, target: str, count: int) -> None:
        """Count lines that were not written to the console or to a log file."""
        self._process.lines_dropped.labels(target).inc(count)

    def worker_started(self) -> None:
        """Count this worker."""
        self._process.worker_starts.inc()

    def expose_drift(self, read_states: Callable[[], Sequence[DriftState]]) -> None:
        """Expose the drift of the served versions."""
        self._shared.append(DriftCollector(read_states))

    def expose_versions(self, kaiten: str, digests: Callable[[], Mapping[str, str]]) -> None:
        """Expose Kaiten's version, and the digests of the served model cards by model tag."""
        bento = self._service_labels["service_version"]
        self._shared.append(ServedVersionCollector(kaiten, bento, digests))

    def expose_damaged_files(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Expose the number of damaged files of each version, by model tag."""
        self._shared.append(DamagedFileCollector(counts))

    def expose_workers(self, expected: int, ready: Callable[[], int]) -> None:
        """Expose how many workers should run, and how many are ready."""
        self._shared.append(WorkerCollector(expected, ready))

    def exposition(self) -> tuple[bytes, str]:
        """Return all metrics in Prometheus' text format, and its content type."""
        source = self._registry
        if self._files is not None:
            source = CollectorRegistry()
            source.register(WorkerFileCollector(self._files))
        registry = CollectorRegistry()
        registry.register(BentoNames(source, self._service_labels))
        for collector in self._shared:
            registry.register(collector)
        return generate_latest(registry), CONTENT_TYPE_LATEST


class _RequestMetrics:
    """The metrics of requests to a model's route."""

    def __init__(self, factory: _Factory) -> None:
        self.requests = factory.counter(
            "model_requests_total",
            "Requests to a model's route, by the status code that the caller saw.",
            ("route", "code", *MODEL_LABELS),
        )
        self.durations = factory.histogram(
            "model_request_duration_seconds",
            "From the end of the request's headers to the end of the response.",
            ("route", "code"),
            buckets=SECONDS_BUCKETS,
        )
        self.in_progress = factory.total(
            "kaiten_requests_in_progress", "Requests that are being handled.", ("route",)
        )
        self.rate_limited = factory.counter(
            "kaiten_requests_rate_limited_total",
            "Requests rejected because their subject had reached a limit.",
            ("limit",),
        )
        self.rate_limit_degraded = factory.total(
            "kaiten_rate_limit_degraded",
            "Workers that count requests alone, because the shared store does not answer.",
        )
        self.body_bytes = factory.total(
            "kaiten_request_body_bytes", "Bytes of the bodies of all requests in progress."
        )
        self.bodies_rejected = factory.counter(
            "kaiten_request_bodies_rejected_total",
            "Requests rejected because there was no memory for their bodies.",
        )
        self.rejected = factory.counter(
            "kaiten_requests_rejected_total", f"Requests rejected unread: {_REASONS}.", ("reason",)
        )


class _ModelMetrics:
    """The metrics of runners, by model and version."""

    def __init__(self, factory: _Factory) -> None:
        histogram = partial(factory.histogram, labelnames=MODEL_LABELS)
        counter = partial(factory.counter, labelnames=MODEL_LABELS)
        self.batch_items = histogram(
            "kaiten_batch_items", "Items in a batch.", buckets=_ITEM_BUCKETS
        )
        self.batch_tokens = histogram(
            "kaiten_batch_tokens", "Tokens of a batch, with padding.", buckets=_TOKEN_BUCKETS
        )
        self.padding_ratio = histogram(
            "kaiten_batch_padding_ratio", "Padding's share of tokens.", buckets=_RATIO_BUCKETS
        )
        self.queue_delay = histogram(
            "kaiten_queue_delay_seconds", "An item's wait for its batch.", buckets=SECONDS_BUCKETS
        )
        self.inference_duration = histogram(
            "kaiten_inference_duration_seconds", "A batch's computation.", buckets=SECONDS_BUCKETS
        )
        self.queue_items = factory.total(
            "kaiten_queue_items", "Items that wait to be prepared or for their batch.", MODEL_LABELS
        )
        self.batch_failures = counter(
            "kaiten_batch_failures_total", "Batches or parts that failed."
        )
        self.out_of_memory = counter("kaiten_out_of_memory_total", "Batches too large for memory.")
        self.device_hangs = counter("kaiten_device_hangs_total", "Computations that timed out.")
        self.truncated_texts = counter("kaiten_truncated_texts_total", "Texts read in part only.")
        self.skipped_items = factory.counter(
            "kaiten_items_skipped_total",
            "Items not computed: their caller was gone, or their deadline expired.",
            (*MODEL_LABELS, "reason"),
        )


class _FeedbackMetrics:
    """The metrics of prediction events, labels and their database."""

    def __init__(self, factory: _Factory) -> None:
        self.drift_events_dropped = factory.counter(
            "kaiten_drift_events_dropped_total",
            "Predictions that drift detection lost, because it was behind or a disk full.",
        )
        self.feedback_events_dropped = factory.counter(
            "kaiten_feedback_events_dropped_total",
            "Predictions that were not written, because the database did not take them in time.",
        )
        self.labels = factory.counter(
            "kaiten_feedback_labels_total",
            "Labels received: joined, waiting, joined_later, refused, or unavailable (a 503).",
            ("outcome",),
        )
        self.database_unavailable = factory.recent(
            "kaiten_database_unavailable",
            "1 if the database of predictions and labels does not answer or accepts no writes.",
        )
        self.database_wal = factory.recent(
            "kaiten_database_wal_bytes",
            "The size of SQLite's write-ahead log, which grows while another program reads.",
        )


class _ProcessMetrics:
    """The metrics of worker processes, their logs and files."""

    def __init__(self, factory: _Factory) -> None:
        self.credentials_restored = factory.counter(
            "kaiten_credentials_restored_total",
            "Credentials and revocations that their store had lost and a worker wrote back.",
        )
        self.lines_dropped = factory.counter(
            "kaiten_log_lines_dropped_total",
            "Log lines lost, because the console is not read or a disk is full or slow.",
            ("target",),
        )
        for target in _LOG_TARGETS:
            self.lines_dropped.labels(target)
        self.files_corrupt = factory.counter(
            "kaiten_metrics_files_corrupt_total",
            "Metrics files that cannot be read; the counts in them are lost.",
        )
        self.worker_starts = factory.counter(
            "kaiten_worker_starts_total",
            "Workers that have loaded their models, since the server started.",
        )


class _QualityMetrics:
    """The quality of each version; the latest measurement of any worker counts."""

    def __init__(self, factory: _Factory) -> None:
        gauge = partial(factory.recent, labelnames=(*MODEL_LABELS, "arm"))
        self._measures = {
            "accuracy": gauge("model_accuracy", "The share of labelled predictions that is right."),
            "precision": gauge("kaiten_precision", "Precision, averaged over labels."),
            "recall": gauge("kaiten_recall", "Recall, averaged over labels."),
            "f1": gauge("kaiten_f1", "F1, averaged over labels."),
            "labelled": gauge(
                "kaiten_labelled_predictions", "The labelled predictions that were measured."
            ),
        }
        name, subject = "kaiten_accuracy_estimate", "the accuracy expected without labels"
        self._estimates = {
            "accuracy": gauge(name, f"{subject.capitalize()}, from calibrated confidence."),
            "low": gauge(f"{name}_low", f"The lower end of the 95 % interval of {subject}."),
            "high": gauge(f"{name}_high", f"The upper end of the 95 % interval of {subject}."),
        }
        self._current: set[tuple[Gauge, tuple[str, str, str]]] = set()

    def set(self, versions: Sequence[VersionQuality]) -> None:
        values = {
            (gauge, (quality.model, quality.version, quality.arm)): getattr(part, name)
            for quality in versions
            for part, gauges in (
                (quality.measures, self._measures),
                (quality.estimate, self._estimates),
            )
            if part is not None
            for name, gauge in gauges.items()
        }
        # The files of several workers may hold a series: it can be overwritten, not removed.
        cleared = dict.fromkeys(self._current - values.keys(), math.nan)
        for (gauge, labels), value in (cleared | values).items():
            gauge.labels(*labels).set(value)
        self._current = {*values}


class ModelObserver:
    """Turns the events of one model's runner into metrics."""

    def __init__(self, metrics: _ModelMetrics, name: str, version: str) -> None:
        model = (name, version)
        self._queue_items = metrics.queue_items.labels(*model)
        self._batch_items = metrics.batch_items.labels(*model)
        self._batch_tokens = metrics.batch_tokens.labels(*model)
        self._padding_ratio = metrics.padding_ratio.labels(*model)
        self._queue_delay = metrics.queue_delay.labels(*model)
        self._inference_duration = metrics.inference_duration.labels(*model)
        self._failures = metrics.batch_failures.labels(*model)
        self._out_of_memory = metrics.out_of_memory.labels(*model)
        self._device_hangs = metrics.device_hangs.labels(*model)
        self._gone = metrics.skipped_items.labels(*model, "gone")
        self._expired = metrics.skipped_items.labels(*model, "expired")

    def queue_changed(self, items: int) -> None:
        """Set how many items wait."""
        self._queue_items.set(items)

    def batch_computed(self, stats: BatchStats) -> None:
        """Record a computed batch."""
        self._batch_items.observe(stats.items)
        self._batch_tokens.observe(stats.padded_tokens)
        self._padding_ratio.observe(stats.padding_ratio)
        self._inference_duration.observe(stats.inference_s)
        for seconds in stats.queue_delays_s:
            self._queue_delay.observe(seconds)

    def batch_failed(self) -> None:
        """Count a batch that raised an error."""
        self._failures.inc()

    def out_of_memory(self) -> None:
        """Count a batch that the device had no memory for."""
        self._out_of_memory.inc()

    def device_hung(self) -> None:
        """Count work that timed out."""
        self._device_hangs.inc()

    def items_skipped(self, *, gone: int, expired: int) -> None:
        """Count items that were not computed."""
        self._gone.inc(gone)
        self._expired.inc(expired)
