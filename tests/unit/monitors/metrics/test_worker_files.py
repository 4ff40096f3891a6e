"""What workers have counted is read whole: torn files do no harm, and deaths cost no room."""

import fcntl
import json
import multiprocessing
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from prometheus_client import mmap_dict
from structlog.testing import capture_logs

from kaiten import files as state_files
from monitors.metrics.worker_files import CorruptFile, FileRows, MetricFiles, is_dead, read_rows

KEY = json.dumps(["requests_total", "requests_total", {"status": "200"}, "Help."])
OTHER = json.dumps(["requests_total", "requests_total", {"status": "500"}, "Help."])
# Ids that the kernel gives to no process: over its default limit of 4,194,304.
DEAD = 5_000_000


def metrics_file(path: Path, rows: dict[str, tuple[float, float]]) -> None:
    """Write a file as prometheus_client does."""
    metric_values = mmap_dict.MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for key, (value, timestamp) in rows.items():
        metric_values.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]
    metric_values.close()  # type: ignore[no-untyped-call]


def counts(directory: Path, torn: list[str] | None = None) -> dict[str, float]:
    """Return the sums of the counters, as a scrape reads them."""
    reader = MetricFiles(directory, lambda: torn.append("torn") if torn is not None else None)
    sums: dict[str, float] = {}
    for file in reader.read():
        for key, value, _ in file.rows:
            sums[key] = sums.get(key, 0) + value
    return sums


def test_file_is_read_as_prometheus_client_has_written_it(tmp_path: Path) -> None:
    path = tmp_path / "counter_1.db"
    rows = {KEY: (1.5, 0.0), KEY.replace("200", "ü" * 500): (2.0, 3.0), OTHER: (1e300, 0.0)}
    metrics_file(path, rows)
    assert read_rows(path.read_bytes()) == [(key, *row) for key, row in rows.items()]


def test_file_that_is_being_made_holds_nothing() -> None:
    assert read_rows(b"") == read_rows(bytes(1 << 16)) == []


def entry(key: bytes, length: int | None = None) -> bytes:
    """Return a value's bytes; its key may be said to be of another length."""
    padded = key + b" " * (8 - (len(key) + 4) % 8)
    return struct.pack(f"i{len(padded)}sdd", len(key) if length is None else length, padded, 1, 0)


def content(*entries: bytes, used: int | None = None) -> bytes:
    body = b"".join(entries)
    return struct.pack("ii", 8 + len(body) if used is None else used, 0) + body


WHOLE = entry(KEY.encode())
TORN = {
    "truncated": content(WHOLE)[:-20],
    "without a header": b"\1\0\0",
    "more in use than there is": content(WHOLE, used=1 << 20),
    "a negative number in use": content(WHOLE, used=-5),
    "less in use than the header": content(WHOLE, used=3),
    "in use up to the middle of a value": content(WHOLE, WHOLE, used=8 + len(WHOLE) + 6),
    "a key's length that is huge": content(entry(KEY.encode(), 1 << 30)),
    "a key's length that is negative": content(entry(KEY.encode(), -8)),
    "a key's length that is 0": content(entry(KEY.encode(), 0)),
    "a key that is not UTF-8": content(entry(b"\xff" * 40)),
    "a key that is no JSON": content(entry(b'["a", "b", {}, "c"')),
    "a key that is no list": content(entry(b'{"a": 1, "b": 2, "c": 3, "d": 4}')),
    "a key of too few parts": content(entry(b'["a", "b", {}]')),
    "labels that are no names": content(entry(b'["a", "b", {"c": [1]}, "d"]')),
    "garbage": bytes(range(256)) * 16,
}


@pytest.mark.parametrize("kind", TORN)
def test_torn_file_of_a_dead_worker_is_counted_and_put_aside(kind: str, tmp_path: Path) -> None:
    metrics_file(tmp_path / f"counter_{os.getpid()}.db", {KEY: (3, 0)})
    (tmp_path / f"counter_{DEAD}.db").write_bytes(TORN[kind])
    with pytest.raises(CorruptFile):
        read_rows(TORN[kind])
    torn: list[str] = []
    with capture_logs() as logs:
        assert counts(tmp_path, torn) == {KEY: 3}
        assert counts(tmp_path, torn) == {KEY: 3}
    assert torn == ["torn"]
    assert [line["event"] for line in logs] == ["metrics_file_corrupt"]
    assert not (tmp_path / f"counter_{DEAD}.db").exists()
    assert (tmp_path / "corrupt.aside").read_bytes() == TORN[kind]


def test_torn_file_of_a_living_worker_is_left_where_it_is_and_counted_once(tmp_path: Path) -> None:
    file = tmp_path / f"counter_{os.getppid()}.db"
    file.write_bytes(TORN["truncated"])
    torn: list[str] = []
    reader = MetricFiles(tmp_path, lambda: torn.append("torn"))
    for _ in range(3):
        assert [file_rows.rows for file_rows in reader.read()] == [()]
    assert torn == ["torn"]
    assert file.exists()


def test_what_is_no_metrics_file_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "counter_1.txt").write_bytes(b"x")
    (tmp_path / "other_5000000.db").write_bytes(b"x")
    (tmp_path / "counter_.db").write_bytes(b"x")
    (tmp_path / f"counter_{DEAD}.db").mkdir()
    assert counts(tmp_path) == {}


def test_200_deaths_are_counted_exactly_and_take_no_more_room_than_one(tmp_path: Path) -> None:
    rows = {KEY: (1.0, 0.0)}
    metrics_file(tmp_path / f"counter_{os.getpid()}.db", rows)
    sizes = []
    for death in range(200):
        metrics_file(tmp_path / f"counter_{DEAD + death}.db", {KEY: (2, 0), OTHER: (0.5, 0)})
        metrics_file(tmp_path / f"gauge_livesum_{DEAD + death}.db", {KEY: (7, 0)})
        metrics_file(tmp_path / f"gauge_mostrecent_{DEAD + death}.db", {KEY: (death, 100 + death)})
        files = MetricFiles(tmp_path, lambda: None).read()
        # The newest of the gauges.
        assert [file.rows[0][1] for file in files if file.startswith("gauge")] == [death]
        assert counter(files, KEY) == 1 + 2 * (death + 1)
        assert counter(files, OTHER) == 0.5 * (death + 1)
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
        assert not [path for path in tmp_path.iterdir() if is_dead(path)]
    assert max(sizes) - sizes[0] < 100


def counter(files: Sequence[FileRows], key: str) -> float:
    counters = (file.rows for file in files if file.startswith("counter"))
    return sum(value for rows in counters for name, value, _ in rows if name == key)


class _Killed(Exception):
    pass


@pytest.fixture
def fatal_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Die at the write of the fold that is named by its number, from 0."""
    at: list[int] = []
    write_count = 0

    def replace(path: Path, text: str | bytes, mode: int = 0o666) -> None:
        nonlocal write_count
        if write_count in at:
            write_count += 1
            raise _Killed
        state_files.replace_file(path, text, mode)
        write_count += 1

    monkeypatch.setattr("monitors.metrics.worker_files.replace_file", replace)
    return at


@pytest.mark.parametrize("write", [0, 1])
def test_process_that_dies_while_it_folds_neither_loses_nor_counts_twice(
    write: int, fatal_writes: list[int], tmp_path: Path
) -> None:
    for death in range(3):
        metrics_file(tmp_path / f"counter_{DEAD + death}.db", {KEY: (2, 0)})
    fatal_writes.append(write)
    with pytest.raises(_Killed):
        counts(tmp_path)
    assert counts(tmp_path) == {KEY: 6}
    # Another of an id that is in the fold already.
    metrics_file(tmp_path / f"counter_{DEAD}.db", {KEY: (5, 0)})
    assert counts(tmp_path) == {KEY: 11}


def test_files_that_could_not_be_deleted_yet_are_not_counted_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    metrics_file(tmp_path / f"counter_{DEAD}.db", {KEY: (2, 0)})

    def unlink(_: Path, *, missing_ok: bool = False) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", unlink)
        with pytest.raises(_Killed):
            counts(tmp_path)
    assert (tmp_path / f"counter_{DEAD}.db").exists()
    # A scrape before the files of dead workers are folded.
    reader = MetricFiles(tmp_path, lambda: None)
    monkeypatch.setattr(reader, "fold", lambda: None)
    assert [row[1] for file in reader.read() for row in file.rows] == [2]
    assert counts(tmp_path) == {KEY: 2}


def _scrape(directory: str, times: int, results: "multiprocessing.Queue[float]") -> None:
    for _ in range(times):
        results.put(counts(Path(directory)).get(KEY, 0))


def test_scrapes_beside_folds_see_every_count_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[float] = context.Queue()
    scrapers = [
        context.Process(target=_scrape, args=(str(tmp_path), 40, results)) for _ in range(3)
    ]
    metrics_file(tmp_path / f"counter_{DEAD}.db", {KEY: (1, 0)})
    for scraper in scrapers:
        scraper.start()
    for death in range(1, 40):
        # Whole at once, as a worker's file is that has counted and died.
        staging_path = tmp_path / f"made_{death}"
        metrics_file(staging_path, {KEY: (1, 0)})
        staging_path.rename(tmp_path / f"counter_{DEAD + death}.db")
    totals = [results.get() for _ in range(3 * 40)]
    for scraper in scrapers:
        scraper.join()
    assert all(1 <= total <= 40 for total in totals)
    assert counts(tmp_path) == {KEY: 40}


def test_full_disk_leaves_the_files_of_dead_workers_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    metrics_file(tmp_path / f"counter_{DEAD}.db", {KEY: (2, 0)})

    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monitors.metrics.worker_files.replace_file", replace)
    assert counts(tmp_path) == counts(tmp_path) == {KEY: 2}


def test_reader_waits_for_no_lock(tmp_path: Path) -> None:
    metrics_file(tmp_path / f"counter_{DEAD}.db", {KEY: (2, 0)})
    assert counts(tmp_path) == {KEY: 2}
    metrics_file(tmp_path / f"counter_{DEAD + 1}.db", {KEY: (2, 0)})
    lock_fd = os.open(tmp_path / "folded.lock", os.O_RDWR)
    fcntl.flock(lock_fd, fcntl.LOCK_EX)
    threads = [threading.Thread(target=counts, args=(tmp_path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert counts(tmp_path) == {KEY: 4}
    os.close(lock_fd)
