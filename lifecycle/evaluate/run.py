"""One validation: predicts all rows, measures, compares, and checks the thresholds."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaiten.settings.models import ValidationSettings
from lifecycle.evaluate.measures import accuracy_by_slice, compare_versions, measure
from lifecycle.evaluate.predictions import Floats, Predict, measure_latencies_ms, predict_all
from lifecycle.evaluate.report import (
    Cost,
    DataSummary,
    GoldenResult,
    ValidationReport,
    check_thresholds,
)
from lifecycle.evaluate.rows import Rows
from lifecycle.store import StoredModel

_MIB = 1 << 20
# Called with the model tag, the number of rows that are predicted, and that of all rows.
ReportProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version and its predictions; ``width`` is that of its embeddings, 0 without any."""

    model: StoredModel
    predict: Predict
    width: int = 0

    @property
    def tag(self) -> str:
        """``name:version``."""
        return self.model.card.tag


class RowPredictions(NamedTuple):
    """The index of each row's correct label, -1 if the model lacks it, and the predictions.

    ``scores`` are probabilities of shape (rows, labels), ``embeddings`` have shape (rows, width).
    """

    correct_labels: NDArray[np.int64]
    scores: Floats
    embeddings: Floats

    @property
    def is_correct(self) -> NDArray[np.bool_]:
        """Whether each row is predicted as it is labelled."""
        is_correct: NDArray[np.bool_] = self.scores.argmax(axis=1) == self.correct_labels
        return is_correct


@dataclass(frozen=True, slots=True)
class ValidationData:
    """The rows of a file, and golden rows of another file, if any."""

    file: Path
    rows: Rows
    golden_file: Path | None = None
    golden: Rows | None = None


@dataclass(frozen=True, slots=True)
class InferenceDevice:
    """The device's name, the memory that is in use there, and the versions of its packages."""

    name: str
    memory_bytes: Callable[[], int]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Validator:
    """Validates versions on one device; ``cache`` is the folder for interrupted validations."""

    settings: ValidationSettings
    device: InferenceDevice
    cache: Path
    report_progress: ReportProgress
    _cache_files: set[Path] = field(default_factory=set)

    def validate(
        self,
        candidate: Candidate,
        load_baseline: Callable[[], Candidate] | None,
        data: ValidationData,
    ) -> tuple[ValidationReport, RowPredictions]:
        """Return the report and the predictions.

        ``load_baseline`` loads the version to compare with, once the candidate has been measured.
        """
        rows = data.rows
        predictions = self._predict(candidate, rows)
        golden = self._check_golden(candidate, data)
        # Before the baseline is loaded, whose memory is not the candidate's.
        cost = self._measure_cost(candidate, rows.texts)
        comparison = None
        if load_baseline is not None:
            baseline = load_baseline()
            baseline_is_correct = self._predict(baseline, rows).is_correct
            comparison = compare_versions(predictions.is_correct, baseline_is_correct, baseline.tag)
        measures = measure(
            predictions.correct_labels, predictions.scores, candidate.model.card.labels
        )
        threshold = partial(self.settings.threshold, candidate.model.card.name)
        report = ValidationReport(
            tag=candidate.tag,
            card=candidate.model.digest,
            at=datetime.now(UTC),
            versions=dict(self.device.versions),
            data=DataSummary(
                file=data.file.name,
                digest=rows.digest,
                rows=len(rows),
                labels_were_indices=rows.labels_were_indices,
            ),
            measures=measures,
            slices=accuracy_by_slice(predictions.is_correct, rows.slices),
            comparison=comparison,
            golden=golden,
            cost=cost,
            checks=[*check_thresholds(measures, cost, comparison, golden, threshold)],
        )
        return report, predictions

    def remove_cache(self) -> None:
        """Remove the cached predictions of a validation that has its report."""
        for file in self._cache_files:
            file.unlink(missing_ok=True)

    def _predict(self, candidate: Candidate, rows: Rows) -> RowPredictions:
        labels = {label: index for index, label in enumerate(candidate.model.card.labels)}
        correct_labels = np.array([labels.get(label, -1) for label in rows.labels])
        columns = len(labels) + candidate.width
        predictions = predict_all(
            rows.texts,
            columns,
            candidate.predict,
            self._cache_file(candidate, rows),
            lambda completed: self.report_progress(candidate.tag, completed, len(rows)),
        )
        return RowPredictions(
            correct_labels, predictions[:, : len(labels)], predictions[:, len(labels) :]
        )

    def _cache_file(self, candidate: Candidate, rows: Rows) -> Path:
        # Only predictions of these bytes for these texts in this environment are reused.
        key = [
            candidate.model.digest,
            self.device.name,
            str(candidate.width),
            *self.device.versions.values(),
            *rows.texts,
        ]
        digest = hashlib.sha256("\0".join(key).encode()).hexdigest()
        file = self.cache / f"{candidate.tag.replace(':', '-')}-{digest[:16]}.f32"
        self._cache_files.add(file)
        return file

    def _check_golden(self, candidate: Candidate, data: ValidationData) -> GoldenResult | None:
        if data.golden is None or data.golden_file is None:
            return None
        is_correct = self._predict(candidate, data.golden).is_correct
        return GoldenResult(
            file=data.golden_file.name,
            digest=data.golden.digest,
            rows=len(is_correct),
            wrong=(np.flatnonzero(~is_correct) + 1).tolist(),
        )

    def _measure_cost(self, candidate: Candidate, texts: Sequence[str]) -> Cost:
        p50, p99 = np.percentile(measure_latencies_ms(texts, candidate.predict), [50, 99])
        folder, files = candidate.model.folder, candidate.model.card.files
        return Cost(
            device=self.device.name,
            latency_p50_ms=float(p50),
            latency_p99_ms=float(p99),
            memory_mib=self.device.memory_bytes() / _MIB,
            size_mib=sum((folder / name).stat().st_size for name in files) / _MIB,
        )
