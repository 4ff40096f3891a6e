from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from kaiten.feedback import Label, VersionQuality
from kaiten.settings.models import FeedbackSettings
from monitors.feedback.database import Database
from monitors.feedback.job import FeedbackJob
from monitors.feedback.labels import Labels
from monitors.feedback.retention import Pruner
from monitors.feedback.windows import QualityWindows
from tests.servers import free_port
from tests.unit.monitors.feedback.house import put, put_version_labels, row, truths


@dataclass
class RecordedMetrics:
    reports: list[Sequence[VersionQuality]] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    unavailable: list[bool] = field(default_factory=list)
    wal: list[int] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)

    def feedback_events_dropped(self, count: int) -> None:
        self.dropped.append(count)

    def quality_measured(self, versions: Sequence[VersionQuality]) -> None:
        self.reports.append(versions)

    def labels_received(self, outcome: str, count: int) -> None:
        self.labels[outcome] += count

    def database_unavailable(self, *, unavailable: bool) -> None:
        self.unavailable.append(unavailable)

    def database_wal(self, size: int) -> None:
        self.wal.append(size)


@dataclass
class Host:
    """The workers of one host, each with a clock that the test sets."""

    home: Path
    database: Database
    now: float = 1000.0
    metrics: RecordedMetrics = field(default_factory=RecordedMetrics)

    def worker(self) -> FeedbackJob:
        labels = Labels(self.database, lambda: self.now)
        windows = QualityWindows(self.database, {}, 10)
        pruning = Pruner(self.database, FeedbackSettings(retention_days=1))
        clock = lambda: self.now  # noqa: E731
        return FeedbackJob(self.home, labels, windows, pruning, self.metrics, clock)

    @property
    def accuracies(self) -> list[float | None]:
        series = (versions[0].measures for versions in self.metrics.reports)
        return [measures.accuracy if measures else None for measures in series]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    database = Database(make_url(f"sqlite:///{tmp_path / 'quality.sqlite'}"))
    put_version_labels(database)
    return Host(tmp_path, database)


def test_one_worker_measures_until_it_ends(host: Host) -> None:
    first, second = host.worker(), host.worker()
    assert first.step()
    assert not second.step()
    first.close()
    assert second.step()
    second.close()


def test_what_has_not_changed_is_not_measured_again(host: Host) -> None:
    put(host.database, row(answered_at=host.now))
    watch = host.worker()
    for _ in range(3):
        watch.step()
    assert host.accuracies == [None]
    Labels(host.database, lambda: host.now).take([Label("request-1", 0, "billing")], None)
    watch.step()
    watch.step()
    assert host.accuracies == [None, 1.0]
    watch.close()


def test_label_that_came_first_is_joined_and_measured(host: Host) -> None:
    labels = Labels(host.database, lambda: host.now)
    labels.take([Label("request-1", 0, "billing"), Label("later", 0, "billing")], None)
    watch = host.worker()
    watch.step()
    put(host.database, row(answered_at=host.now))
    watch.step()
    assert truths(host.database) == [("request-1", 0, "billing")]
    assert host.metrics.reports[-1][0].measures is not None
    # One that has waited for long is looked at once a minute.
    host.now += 61
    watch.step()
    put(host.database, row(answered_at=host.now, request_id="later"))
    watch.step()
    assert truths(host.database)[1] == ("later", 0, None)
    host.now += 60
    watch.step()
    assert truths(host.database)[1] == ("later", 0, "billing")
    assert host.metrics.labels == {"joined_later": 2}
    assert set(host.metrics.unavailable) == {False}
    watch.close()


def test_what_is_too_old_is_pruned_each_minute(host: Host) -> None:
    watch = host.worker()
    watch.step()
    put(host.database, row(answered_at=0.0))
    host.now += 2 * 86_400
    watch.step()
    assert truths(host.database) == []
    watch.close()


def test_database_that_is_away_costs_turns_and_no_more(tmp_path: Path) -> None:
    url = make_url(f"postgresql+psycopg://kaiten:x@127.0.0.1:{free_port()}/postgres")
    host = Host(tmp_path, Database(url))
    watch = host.worker()
    assert watch.step()
    assert watch.step()
    assert host.metrics.reports == []
    assert host.metrics.unavailable == [True, True]
    watch.close()
