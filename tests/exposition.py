"""Every metric that a server shows, each told once, for what reads them: rules, the dashboard."""

from dataclasses import dataclass
from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from kaiten.feedback import Estimate, Measures, VersionQuality
from monitors.metrics import Drift, Instruments
from runners.batching.observer import BatchReport

MODEL = "intent:1.0.0"
ENDPOINT = "/api/v2/predict"
_NOW = datetime.now(UTC)


@dataclass(frozen=True)
class _Feature:
    name: str = "label"
    effect: float = 0.2


@dataclass(frozen=True)
class _Window:
    ended_at: datetime = _NOW


@dataclass(frozen=True)
class _Drift:
    model: str = "intent"
    version: str = "1.0.0"
    arm: str = "production"
    drifted: bool | None = False
    windows: int = 3
    window: _Window | None = _Window()
    features: tuple[_Feature, ...] = (_Feature(),)


class _Drifts:
    def drift(self) -> list[Drift]:
        return [_Drift()]


class Exposition:
    """The instruments of one worker, all of them told something."""

    def __init__(self) -> None:
        self.instruments = instruments = Instruments()
        self.answer(200, 1)
        observer = instruments.observer(MODEL)
        observer.queue_changed(1)
        observer.batch_computed(BatchReport(2, 20, 24, (0.01, 0.02), 0.05))
        observer.device_hung()
        measures = Measures(40, _NOW, _NOW, 0.9, 0.8, 0.7, 0.75)
        estimate = Estimate(0.88, 0.85, 0.91, 1000, 0.01, 200, 5)
        quality = VersionQuality("intent", "1.0.0", "production", measures, estimate)
        instruments.quality_measured([quality])
        instruments.labels_taken("joined", 1)
        instruments.request_limited("requests")
        instruments.body_bytes_changed(1000)
        instruments.body_refused()
        instruments.credentials_restored(1)
        instruments.database_wal(4096)
        instruments.request_refused_early("queue_full")
        instruments.log_lines_dropped("console", 1)
        instruments.show_drift(_Drifts())
        instruments.show_versions("0.1.0", lambda: {MODEL: "d" * 64})
        instruments.show_damaged_files(lambda: {MODEL: 1})
        instruments.show_workers(2, lambda: 1)
        instruments.worker_started()

    def answer(self, status: int, count: int) -> None:
        """Count so many requests, of 10 ms each."""
        for _ in range(count):
            self.instruments.request_started(ENDPOINT)
            self.instruments.request_answered(ENDPOINT, MODEL, status, 0.01)

    def page(self) -> str:
        """Return what /metrics answers."""
        return self.instruments.exposition()[0].decode()


def labels_by_name(page: str) -> dict[str, set[str]]:
    """Return the labels that each series of a page has."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found
