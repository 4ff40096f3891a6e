"""One validation: answers on all rows, measured, compared, and held against the thresholds."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaiten.settings.models import ValidationSettings
from lifecycle.evaluate.measures import by_slice, compare, measure
from lifecycle.evaluate.predictions import Floats, Predict, answer_all, latencies_ms
from lifecycle.evaluate.report import Cost, Data, Golden, Report, checks
from lifecycle.evaluate.rows import Rows
from lifecycle.store import StoredModel

_MIB = 1 << 20
# Told what is asked, and of so many rows how many are known.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """A version, and what it answers; ``width`` is that of its embeddings, 0 where it has none."""

    model: StoredModel
    predict: Predict
    width: int = 0

    @property
    def tag(self) -> str:
        """``name:version``."""
        return self.model.card.tag


class Answers(NamedTuple):
    """The right label of each row, by its index, -1 where there is none; and what was answered.

    Probabilities of shape (rows, labels), embeddings of shape (rows, width).
    """

    right: NDArray[np.int64]
    scores: Floats
    embeddings: Floats

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each row is answered as it is labelled."""
        found: NDArray[np.bool_] = self.scores.argmax(axis=1) == self.right
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked: the rows of a file, and golden ones of another, if any."""

    file: Path
    rows: Rows
    golden_file: Path | None = None
    golden: Rows | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """Where it runs: its name, and what tells the memory that is taken there, in bytes."""

    name: str
    memory: Callable[[], int]
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Validator:
    """Validates versions on one device; what is known already lies in ``work``."""

    limits: ValidationSettings
    device: Device
    work: Path
    told: Progress
    _written: set[Path] = field(default_factory=set)

    def validate(
        self, subject: Subject, against: Callable[[], Subject] | None, asked: Asked
    ) -> tuple[Report, Answers]:
        """Return the report, and what was answered.

        ``against`` loads the version to compare with, when its turn has come.
        """
        rows = asked.rows
        answers = self._answers(subject, rows)
        golden = self._golden(subject, asked)
        # Before another version is loaded, whose memory is not this one's.
        cost = self._cost(subject, rows.texts)
        comparison = None
        if against is not None:
            other = against()
            comparison = compare(answers.correct, self._answers(other, rows).correct, other.tag)
        measures = measure(answers.right, answers.scores, subject.model.card.labels)
        report = Report(
            tag=subject.tag,
            card=subject.model.digest,
            at=datetime.now(UTC),
            versions=dict(self.device.versions),
            data=Data(file=asked.file.name, digest=rows.digest, rows=len(rows)),
            measures=measures,
            slices=by_slice(answers.correct, rows.slices),
            comparison=comparison,
            golden=golden,
            cost=cost,
            checks=checks(measures, cost, comparison, golden, self.limits),
        )
        return report, answers

    def forget(self) -> None:
        """Remove what was kept of a validation that has its report."""
        for kept in self._written:
            kept.unlink(missing_ok=True)

    def _answers(self, subject: Subject, rows: Rows) -> Answers:
        labels = {label: index for index, label in enumerate(subject.model.card.labels)}
        right = np.array([labels.get(label, -1) for label in rows.labels])
        told = lambda known: self.told(subject.tag, known, len(rows))  # noqa: E731
        kept = self._kept(subject, rows)
        columns = len(labels) + subject.width
        found = answer_all(rows.texts, columns, subject.predict, kept, told)
        return Answers(right, found[:, : len(labels)], found[:, len(labels) :])

    def _kept(self, subject: Subject, rows: Rows) -> Path:
        # Of these bytes on these texts, in this environment: nothing else is gone on with.
        known = [
            subject.model.digest,
            self.device.name,
            str(subject.width),
            *self.device.versions.values(),
            *rows.texts,
        ]
        digest = hashlib.sha256("\0".join(known).encode()).hexdigest()
        kept = self.work / f"{subject.tag.replace(':', '-')}-{digest[:16]}.f32"
        self._written.add(kept)
        return kept

    def _golden(self, subject: Subject, asked: Asked) -> Golden | None:
        if asked.golden is None or asked.golden_file is None:
            return None
        correct = self._answers(subject, asked.golden).correct
        wrong = np.flatnonzero(~correct) + 1
        return Golden(
            file=asked.golden_file.name,
            digest=asked.golden.digest,
            rows=len(correct),
            wrong=wrong.tolist(),
        )

    def _cost(self, subject: Subject, texts: Sequence[str]) -> Cost:
        p50, p99 = np.percentile(latencies_ms(texts, subject.predict), [50, 99])
        folder, files = subject.model.folder, subject.model.card.files
        return Cost(
            device=self.device.name,
            latency_p50_ms=float(p50),
            latency_p99_ms=float(p99),
            memory_mb=self.device.memory() / _MIB,
            size_mb=sum((folder / name).stat().st_size for name in files) / _MIB,
        )
