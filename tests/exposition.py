"""Every metric that a server exposes, with a value, to check rules and dashboards against."""

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from kaiten.feedback import Estimate, Measures, VersionQuality
from kaiten.serving import BatchStats
from monitors.drift.state import DriftState, FeatureState, WindowState
from monitors.metrics.definitions import Metrics
from tests.prediction_events import prediction_event

MODEL = "intent:1.0.0"
ROUTE = "/api/v2/predict"
_NOW = datetime.now(UTC)


_FEATURE = FeatureState(name="label", drifted=False, effect=0.2, p_value=0.5, windows=1, details={})
_WINDOW = WindowState(id="1", rows=100, started_at=_NOW, ended_at=_NOW)
_DRIFT = DriftState(
    model="intent",
    version="1.0.0",
    arm="production",
    drifted=False,
    windows=3,
    window=_WINDOW,
    features=(_FEATURE,),
)


class Exposition:
    """The metrics of one worker, each with a value."""

    def __init__(self) -> None:
        self.metrics = metrics = Metrics()
        self.answer(200, 1)
        observer = metrics.observer(MODEL)
        observer.queue_changed(1)
        observer.batch_computed(BatchStats(2, 20, 24, (0.01, 0.02), 0.05))
        observer.device_hung()
        measures = Measures(40, _NOW, _NOW, 0.9, 0.8, 0.7, 0.75)
        estimate = Estimate(0.88, 0.85, 0.91, 1000, 0.01, 200, 5)
        quality = VersionQuality("intent", "1.0.0", "production", measures, estimate)
        metrics.quality_measured([quality])
        metrics.labels_received("joined", 1)
        metrics.request_limited("requests")
        metrics.body_bytes_changed(1000)
        metrics.body_refused()
        metrics.credentials_restored(1)
        metrics.database_wal(4096)
        metrics.request_refused_early("queue_full")
        metrics.log_lines_dropped("console", 1)
        metrics.expose_drift(lambda: [_DRIFT])
        metrics.expose_versions("0.1.0", lambda: {MODEL: "d" * 64})
        metrics.expose_damaged_files(lambda: {MODEL: 1})
        metrics.expose_workers(2, lambda: 1)
        metrics.worker_started()
        metrics.handle([prediction_event(truncated=True)])

    def answer(self, status: int, count: int) -> None:
        """Count so many requests, of 10 ms each."""
        for _ in range(count):
            self.metrics.request_started(ROUTE)
            self.metrics.request_answered(ROUTE, MODEL, status, 0.01)

    def page(self) -> str:
        """Return the response of /metrics."""
        return self.metrics.exposition()[0].decode()


def labels_by_name(page: str) -> dict[str, set[str]]:
    """Return the labels that each series of a page has."""
    labels: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    return labels
