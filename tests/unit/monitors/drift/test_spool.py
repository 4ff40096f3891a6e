import stat
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from monitors.drift.spool import PSEUDONYM, Source, Spool, concatenate, read
from tests.unit.monitors.drift.profiles import answers

INTENT, TOPIC = "intent:1.0.0", "topic:2.1.0"
PRODUCTION = Source(INTENT, "production")
RANDOM = np.random.default_rng(20261128)


def put(spool: Spool, *lengths: float, source: Source = PRODUCTION, label: str = "a") -> bool:
    rows = len(lengths)
    columns = answers(RANDOM, rows, text_length=np.array(lengths), label=np.full(rows, label))
    return spool.put(source, columns, [""] * rows)


def test_rows_are_read_as_they_were_put(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 3, 5, label="bcd")
    put(spool, 7, label="long label")
    parts = spool.parts(PRODUCTION)
    assert [part.rows for part in parts] == [2, 1]
    columns = concatenate(read(parts))
    assert columns["text_length"].tolist() == [3, 5, 7]
    assert columns["label"].tolist() == ["bcd", "bcd", "long label"]


def test_models_and_arms_are_kept_apart(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1, 2)
    put(spool, 3, source=Source(INTENT, "canary"))
    put(spool, 4, source=Source(TOPIC, "production"))
    arms = [*spool.sources(INTENT), *spool.sources(TOPIC)]
    sizes = {source: sum(part.rows for part in spool.parts(source)) for source in arms}
    assert sizes == {PRODUCTION: 2, Source(INTENT, "canary"): 1, Source(TOPIC, "production"): 1}
    assert spool.sources("other:1.0.0") == []


def test_parts_come_oldest_first_whoever_wrote_them(tmp_path: Path) -> None:
    now = [20.0]
    early, late = Spool(tmp_path, lambda: 10.5), Spool(tmp_path, lambda: now[0])
    put(late, 2)
    put(early, 1)
    now[0] = 1000.0
    put(late, 3)
    parts = late.parts(PRODUCTION)
    assert [part.at for part in parts] == [10.5, 20, 1000]
    assert concatenate(read(parts))["text_length"].tolist() == [1, 2, 3]


def test_claimed_parts_are_of_no_other_window_and_are_there_until_forgotten(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for length in (1, 2, 3):
        put(spool, length)
    first, second, third = spool.parts(PRODUCTION)
    claimed = spool.claim(PRODUCTION, [first, second])
    assert spool.parts(PRODUCTION) == [third]
    # Another process, after this one was killed.
    (parts,) = Spool(tmp_path).claimed(PRODUCTION)
    assert parts == claimed
    assert concatenate(read(parts))["text_length"].tolist() == [1, 2]
    spool.remove(parts)
    assert spool.claimed(PRODUCTION) == []
    assert spool.parts(PRODUCTION) == [third]


def test_whoever_is_killed_while_he_claims_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for length in (1, 2):
        put(spool, length)
    first, second = spool.parts(PRODUCTION)
    spool.claim(PRODUCTION, [first])
    assert [part.rows for parts in spool.claimed(PRODUCTION) for part in parts] == [1]
    assert spool.parts(PRODUCTION) == [second]


def test_where_nobody_closes_windows_the_disk_is_not_filled(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1)
    (part,) = spool.parts(PRODUCTION)
    for number in range(4999):
        part.path.with_name(f"{number}").touch()
    assert not put(spool, 1, 2, 3)
    assert spool.parts(PRODUCTION) == [part]


@pytest.mark.parametrize(
    "name", ["copy.npy", "0001-1-1-1.npy", "a.partial", "1764331200000-1-1-1.npy.tmp"]
)
def test_what_has_another_name_is_no_part(tmp_path: Path, name: str) -> None:
    spool = Spool(tmp_path)
    put(spool, 1)
    (part,) = spool.parts(PRODUCTION)
    part.path.with_name(name).write_bytes(part.path.read_bytes())
    assert spool.parts(PRODUCTION) == [part]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_a_part_that_was_not_written_to_its_end_is_left_out(tmp_path: Path, content: bytes) -> None:
    spool = Spool(tmp_path)
    for length in (1, 2):
        put(spool, length)
    first, _ = spool.parts(PRODUCTION)
    first.path.write_bytes(content)
    with capture_logs() as logs:
        columns = concatenate(read(spool.parts(PRODUCTION)))
    assert columns["text_length"].tolist() == [2]
    assert [line["event"] for line in logs] == ["part_unreadable"]


def test_a_part_of_other_columns_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    put(spool, 1)
    (part,) = spool.parts(PRODUCTION)
    rows = read([part])[0]
    np.save(part.path, rows[["confidence", "label"]])
    with capture_logs() as logs:
        assert read([part]) == []
    assert len(logs) == 1


def test_a_full_disk_leaves_no_half_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", raise_disk_full)
    spool = Spool(tmp_path)
    with pytest.raises(OSError, match="No space"):
        put(spool, 1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_part_is_readable_by_its_owner_only_and_names_pseudonyms_as_given(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(PRODUCTION, answers(RANDOM, 1), ["p-1"])
    (part,) = spool.parts(PRODUCTION)
    assert stat.S_IMODE(part.path.stat().st_mode) == 0o600
    assert read([part])[0][PSEUDONYM].tolist() == ["p-1"]
