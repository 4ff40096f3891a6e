"""Rows of every format, and what is wrong with a file, told by line and remedy."""

import csv
import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kaiten.errors import DataRejected
from lifecycle.card import sha256
from lifecycle.validation.rows import Columns, Rows, check, read

ROWS = [
    {"text": "where is it?", "label": "delivery", "channel": "mail"},
    {"text": 'two lines\nand "quotes", commas', "label": "other", "channel": "chat"},
    {"text": "Ünïcode ✓", "label": "billing", "channel": "mail"},
]
KNOWN = ("billing", "delivery", "other")
COLUMNS = Columns(slices=("channel",))


def jsonl(path: Path) -> None:
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")


def comma_separated(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def parquet(path: Path) -> None:
    table: Any = import_module("pyarrow").Table.from_pylist(ROWS)
    import_module("pyarrow.parquet").write_table(table, path)


WRITERS = {".jsonl": jsonl, ".csv": comma_separated, ".parquet": parquet}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_says_the_same(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path)
    found = read(path, COLUMNS)
    assert [*found.texts] == [row["text"] for row in ROWS]
    assert [*found.labels] == [row["label"] for row in ROWS]
    assert [*found.slices["channel"]] == ["mail", "chat", "mail"]
    assert found.digest == sha256(path)
    check(found, KNOWN, 3, path, partly=False)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.xlsx", b"", "is none of .jsonl, .csv, .parquet"),
        ("rows.jsonl", b'{"text": "a", "label": "b"}\n{"text": ', "no JSON object in line 2"),
        ("rows.jsonl", b"[1]\n", "no JSON object in line 1"),
        ("rows.jsonl", b'{"text": "a"}\n', "has no 'label' in row 1 (there: text)"),
        ("rows.jsonl", b'{"text": "a", "label": null}\n', "has no 'label' in row 1"),
        ("rows.csv", b"text,category\na,b\n", "has no 'label' in row 1 (there: text, category)"),
        ("rows.csv", b"text,label\na\n", "has no 'label' in row 1"),
        ("rows.csv", b"text,label\n\xff\xfe,b\n", "is not in UTF-8"),
        ("rows.csv", b'text,label\n"a"b,c\n', "is no CSV"),
        ("rows.jsonl", b'{"text": "a", "label": "b", "label": "c"}', "key 'label' twice in line 1"),
        ("rows.jsonl", b"[" * 100_000, "no JSON object in line 1"),
        ("rows.csv", b"text,label,label\na,b,c\n", "has the column label twice"),
        ("rows.parquet", b"PAR1 and then nothing", "is no Parquet file"),
    ],
)
def test_broken_file_is_told(name: str, content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataRejected) as caught:
        read(path, Columns())
    assert reason in caught.value.message


def test_link_that_leaves_its_folder_is_not_read(tmp_path: Path) -> None:
    # Its first line would stand in the message as the names of the columns.
    (tmp_path / "rows.csv").symlink_to("/etc/passwd")
    with pytest.raises(DataRejected, match="leaves the folder") as caught:
        read(tmp_path / "rows.csv", Columns())
    assert "root:" not in caught.value.message


def test_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataRejected, match="is a FIFO"):
        read(tmp_path / "rows.csv", Columns())


def test_absent_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="can not be read: No such file"):
        read(tmp_path / "rows.csv", Columns())


def rows(*labels: str) -> Rows:
    return Rows(["a text"] * len(labels), labels)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (rows(), "has 0 rows, under the 3 of validation.min_rows"),
        (rows("billing", "other"), "has 2 rows"),
        (rows("other", "other", "other"), "has rows of one label only: other"),
        (rows("other", "billing", "refund"), "labels that the model does not know: refund"),
        (rows("other", "billing", "billing"), "has no rows of delivery"),
    ],
)
def test_rows_that_say_too_little_are_refused(found: Rows, reason: str) -> None:
    with pytest.raises(DataRejected) as caught:
        check(found, KNOWN, 3, Path("rows.csv"), partly=False)
    assert reason in caught.value.message


def test_some_labels_may_be_left_unmeasured() -> None:
    check(rows("other", "billing", "billing"), KNOWN, 3, Path("rows.csv"), partly=True)
