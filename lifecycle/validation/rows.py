"""The rows that a version is validated on: texts, the labels that are right, and other columns."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from kaiten.confinement import UnsafeFile, open_file
from kaiten.errors import DataRejected
from kaiten.strict_yaml import DuplicateKey, reject_duplicate_keys

_NAMED = 5
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read; ``slices`` are those that rows are grouped by."""

    text: str = "text"
    label: str = "label"
    slices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in the order of their file; ``digest`` is the file's SHA-256."""

    texts: Sequence[str]
    labels: Sequence[str]
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    digest: str = ""

    def __len__(self) -> int:
        return len(self.texts)


def read(path: Path, columns: Columns) -> Rows:
    """Read JSONL, CSV or Parquet, told by the suffix; DataRejected says what is wrong where."""
    readers: dict[str, Callable[[Path, bytes], Iterator[Row]]] = {
        ".jsonl": _jsonl,
        ".csv": _csv,
        ".parquet": _parquet,
    }
    if path.suffix not in readers:
        kinds = ", ".join(readers)
        raise DataRejected(path, f"is none of {kinds}", "Convert it, or rename it.")
    try:
        # Once: what is hashed is what is read.
        with open_file(path) as file:
            content = file.read()
        found = [*readers[path.suffix](path, content)]
    except UnsafeFile as error:
        raise DataRejected(path, error.reason, error.remedy) from None
    except OSError as error:
        reason = f"can not be read: {error.strerror or error}"
        raise DataRejected(path, reason, "Give the path of a file.") from None
    except UnicodeDecodeError:
        raise DataRejected(path, "is not in UTF-8", "Convert it.") from None
    names = columns.text, columns.label, *columns.slices
    cells = [_cells(path, number, row, names) for number, row in enumerate(found, start=1)]
    texts, labels, *slices = zip(*cells, strict=True) if cells else [()] * len(names)
    return Rows(
        texts, labels, dict(zip(columns.slices, slices, strict=True)), sha256(content).hexdigest()
    )


def check(rows: Rows, known: Sequence[str], at_least: int, path: Path, *, partly: bool) -> None:
    """Raise DataRejected for rows that say too little of a model with the labels ``known``.

    ``partly`` lets rows pass that lack some of its labels.
    """
    if len(rows) < at_least:
        reason = f"has {len(rows)} rows, under the {at_least} of validation.min_rows"
        raise DataRejected(path, reason, "Validate on more rows.")
    present = set(rows.labels)
    if unknown := sorted(present - set(known)):
        reason = f"has labels that the model does not know: {_listed(unknown)}"
        raise DataRejected(path, reason, "Mend the labels, or name their column (--label-column).")
    if len(present) == 1 and not partly:
        reason = f"has rows of one label only: {next(iter(present))}"
        raise DataRejected(path, reason, "Validate on rows of all labels.")
    if not partly and (absent := [label for label in known if label not in present]):
        reason = f"has no rows of {_listed(absent)}"
        raise DataRejected(path, reason, "Add some, or pass --partly to leave them unmeasured.")


def _jsonl(path: Path, content: bytes) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(content.decode("utf-8"), newline=None), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=reject_duplicate_keys)
        except DuplicateKey as error:
            reason = f"has the key {error.key!r} twice in line {number}"
            raise DataRejected(path, reason, "Keep the one that is meant.") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            reason = f"is no JSON object in line {number}"
            raise DataRejected(path, reason, "Write one object a line.")
        yield row


def _csv(path: Path, content: bytes) -> Iterator[Row]:
    reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    try:
        _check_columns(path, reader.fieldnames or ())
        yield from reader
    except csv.Error as error:
        raise DataRejected(path, f"is no CSV: {error}", "Write it with a header.") from None


def _parquet(path: Path, content: bytes) -> Iterator[Row]:
    arrow: Any = import_module("pyarrow")
    parquet: Any = import_module("pyarrow.parquet")
    try:
        file = parquet.ParquetFile(arrow.BufferReader(content))
        _check_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except arrow.ArrowInvalid as error:
        raise DataRejected(path, f"is no Parquet file: {error}", "Write it again.") from None


def _check_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a column that stands twice: of two, one would be read in silence."""
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        reason = f"has the column {_listed(twice)} twice"
        raise DataRejected(path, reason, "Keep the one that is meant.")


def _cells(path: Path, number: int, row: Row, names: Sequence[str]) -> list[str]:
    for name in names:
        if row.get(name) is None:
            there = _listed([str(each) for each in row if each is not None])
            reason = f"has no {name!r} in row {number} (there: {there})"
            raise DataRejected(path, reason, "Name the columns: --text-column, --label-column.")
    return [str(row[name]) for name in names]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
