"""Metrics that are read when they are scraped: each worker exposes the same."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric, multiprocess
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from kaiten import model_tags
from monitors.drift.state import DriftState
from monitors.metrics.mapped_file import rows_in_memory
from monitors.metrics.worker_files import MetricFiles

MODEL_LABELS = ("model", "version")


class WorkerFileCollector(Collector):
    """The metrics of all workers, with those that are in this one's memory only."""

    def __init__(self, files: MetricFiles) -> None:
        self._files = files

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, summed over workers."""
        in_memory = rows_in_memory()
        merge: Any = multiprocess.MultiProcessCollector.merge
        yield from merge([*self._files.read(), *in_memory])
        yield GaugeMetricFamily(
            "kaiten_metrics_in_memory",
            "Values that are in this worker's memory only, because its disk is full.",
            sum(len(file.rows) for file in in_memory),
        )


class BentoNames(Collector):
    """Adds the series that dashboards for BentoML query.

    BentoML's own middleware labels by raw path, so every path that a caller invents becomes a new
    series. These are derived from ours at each scrape, and cost a request nothing.
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

    def __init__(self, source: CollectorRegistry, service_labels: Mapping[str, str]) -> None:
        self._source = source
        self._service_labels = service_labels

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
            labels = {
                new: sample.labels[old] for old, new in self._LABELS.items() if old in sample.labels
            }
            key = (sample.name.replace(metric.name, name, 1), tuple(labels.items()))
            sums[key] = sums.get(key, 0) + sample.value
        derived = Metric(name, metric.documentation, metric.type)
        for (sample_name, items), value in sums.items():
            derived.add_sample(sample_name, {**dict(items), **self._service_labels}, value)
        return derived


class ServedVersionCollector(Collector):
    """The build and the served versions, as labels of series whose value is 1."""

    def __init__(self, version: str, bento: str, digests: Callable[[], Mapping[str, str]]) -> None:
        self._version, self._bento, self._digests = version, bento, digests

    def collect(self) -> Iterable[Metric]:
        """Yield the build and each version."""
        build = GaugeMetricFamily(
            "kaiten_build_info",
            "The version of Kaiten, and of the bento.",
            labels=("version", "bento"),
        )
        build.add_metric((self._version, self._bento), 1)
        yield build
        models = GaugeMetricFamily(
            "kaiten_model_info",
            "The served versions, with the SHA-256 of the model card.",
            labels=(*MODEL_LABELS, "digest"),
        )
        for tag, digest in self._digests().items():
            models.add_metric((*model_tags.split(tag), digest), 1)
        yield models


class DamagedFileCollector(Collector):
    """The files of served versions that have changed since they were loaded."""

    def __init__(self, counts: Callable[[], Mapping[str, int]]) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """Yield the count of each version."""
        damaged = GaugeMetricFamily(
            "kaiten_model_files_damaged",
            "Files of a served version that are missing or changed; no new worker can start.",
            labels=MODEL_LABELS,
        )
        for tag, count in self._counts().items():
            damaged.add_metric(model_tags.split(tag), count)
        yield damaged


class WorkerCollector(Collector):
    """The number of workers that should run, and that are ready."""

    def __init__(self, expected: int, ready: Callable[[], int]) -> None:
        self._expected, self._ready = expected, ready

    def collect(self) -> Iterable[Metric]:
        """Yield both counts."""
        yield GaugeMetricFamily(
            "kaiten_workers_expected", "Workers that the server is configured for.", self._expected
        )
        yield GaugeMetricFamily("kaiten_workers_ready", "Workers that can answer.", self._ready())


class DriftCollector(Collector):
    """The drift of each served version, from its state file."""

    def __init__(self, read_states: Callable[[], Sequence[DriftState]]) -> None:
        self._read_states = read_states

    def collect(self) -> Iterable[Metric]:
        """Yield whether each version drifts, the effects of its features, and as of when."""
        labels = (*MODEL_LABELS, "arm")
        detected = GaugeMetricFamily(
            "kaiten_drift_detected", "1 if the version's answers have drifted.", labels=labels
        )
        has_baseline = GaugeMetricFamily(
            "kaiten_drift_baseline_available",
            "0 if the version has no baseline, so that drift is not detected.",
            labels=labels,
        )
        windows = CounterMetricFamily("kaiten_drift_windows", "Windows judged.", labels=labels)
        ended_at = GaugeMetricFamily(
            "kaiten_drift_window_end_timestamp_seconds",
            "When the last window ended, in seconds since the epoch.",
            labels=labels,
        )
        effects = GaugeMetricFamily(
            "kaiten_drift_effect_ratio",
            "The effect size of a feature in the last window, from 0 to 1.",
            labels=(*labels, "feature"),
        )
        for state in self._states():
            version = [state.model, state.version, state.arm]
            has_baseline.add_metric(version, state.has_baseline)
            windows.add_metric(version, state.windows)
            if state.drifted is not None:
                detected.add_metric(version, state.drifted)
            if state.window is not None:
                ended_at.add_metric(version, state.window.ended_at.timestamp())
            for feature in state.features:
                effects.add_metric([*version, feature.name], feature.effect)
        yield from (detected, has_baseline, windows, ended_at, effects)

    def _states(self) -> Sequence[DriftState]:
        try:
            return self._read_states()
        except OSError:
            # The other metrics must be exposed all the same.
            return ()
