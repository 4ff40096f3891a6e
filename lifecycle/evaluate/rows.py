"""Reads the rows that a version is validated on: texts, their correct labels, and other columns.

A file that cannot be used is rejected with one line that names the row, the column and the remedy.
Every format accepts the same values:

- A text is what the API accepts: a string that is not blank, within the limits of ``gateway``.
- A label is such a string too, or a whole number, which stands for its decimal digits: 7 is the
  label "7", unless every label of the file is an index of the model's labels (``name_labels``).
- A slice's value is a string, a number, a boolean, a date or a time. It must not be missing.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from math import isfinite
from pathlib import Path

from kaiten.errors import DataRejected
from kaiten.settings.models import GatewaySettings
from kaiten.text import MAX_LABEL_CHARS, length_problem, text_problem
from lifecycle.evaluate.content import (
    SAMPLE,
    InvalidData,
    check_size,
    listed,
    place,
    read_bytes,
    shown,
    unpack,
)
from lifecycle.evaluate.formats import Record, Scalar, read_csv, read_jsonl, read_parquet

MAX_ROWS = 5_000_000
_READERS: Mapping[str, Callable[[bytes, Sequence[str]], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
_CORRECT = "Correct it, or remove the row."
_KINDS = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}
_EMPTY_BODY_BYTES = len('{"text":""}')
# A control character takes an escape such as \u0001.
_MAX_BYTES_PER_CHAR = 6


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns that are read; ``slices`` are those that rows are grouped by."""

    text: str = "text"
    label: str = "label"
    slices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows in the order of their file.

    ``digest`` is the SHA-256 of the stored file, ``lines`` are the lines at which rows begin.
    ``labels_were_indices`` is whether the file has indices of labels, not their names.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    slices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    digest: str = ""
    columns: Columns = Columns()
    lines: Sequence[int | None] = ()
    labels_were_indices: bool = False

    def __len__(self) -> int:
        return len(self.texts)

    def place(self, index: int, column: str) -> str:
        """Return the row, line and column of a cell, for a message."""
        return place(index + 1, self.lines[index] if self.lines else None, column)


def read_rows(path: Path, columns: Columns, limits: GatewaySettings | None = None) -> Rows:
    """Read JSONL, CSV or Parquet, identified by the suffix, compressed with gzip or not.

    ``limits`` are those of the API that must accept the texts; None checks no lengths.

    Raises:
        DataRejected: The file or a row cannot be used; one line says where and why.

    """
    try:
        reader = _reader(path)
        content = read_bytes(path)
        records = reader(unpack(content), [columns.text, columns.label, *columns.slices])
        return _rows(records, columns, limits, sha256(content).hexdigest())
    except InvalidData as error:
        raise DataRejected(path, error.reason, error.remedy) from None


def name_labels(rows: Rows, labels: Sequence[str]) -> Rows:
    """Return the rows with names in place of indices, if every label is one and none is a name.

    Data sets often hold the number of a label, in the order of the model's labels.
    """
    names = {str(index): label for index, label in enumerate(labels)}
    present = {*rows.labels}
    if not present.isdisjoint(labels) or not present <= names.keys():
        return rows
    return replace(rows, labels=[names[label] for label in rows.labels], labels_were_indices=True)


def check_row_count(rows: Rows, min_rows: int, path: Path, setting: str) -> None:
    """Raise DataRejected for fewer rows than the setting with this path requires."""
    if len(rows) < min_rows:
        reason = f"has {len(rows)} rows, under the {min_rows} of {setting}"
        raise DataRejected(path, reason, "Validate on more rows.")


def check_rows(
    rows: Rows,
    labels: Sequence[str],
    min_rows: int,
    path: Path,
    *,
    allow_missing_labels: bool,
    setting: str = "validation.min_rows",
) -> None:
    """Check that rows suffice to measure a model with these labels.

    ``setting`` is the path of the setting with ``min_rows``.

    Raises:
        DataRejected: There are too few rows, labels that the model lacks, or no rows of one of its
            labels, unless ``allow_missing_labels``.

    """
    check_row_count(rows, min_rows, path, setting)
    _check_labels(rows, labels, path)
    present = set(rows.labels)
    if len(present) == 1 and not allow_missing_labels:
        reason = f"has rows of one label only: {shown(next(iter(present)))}"
        raise DataRejected(path, reason, "Validate on rows of all labels.")
    if not allow_missing_labels and (absent := [label for label in labels if label not in present]):
        reason = f"has no rows of {listed(absent)}"
        remedy = "Add some, or pass --allow-missing-labels to leave them unmeasured."
        raise DataRejected(path, reason, remedy)


def _check_labels(rows: Rows, labels: Sequence[str], path: Path) -> None:
    names = set(labels)
    unknown = [index for index, label in enumerate(rows.labels) if label not in names]
    if unknown:
        label, cell = rows.labels[unknown[0]], rows.place(unknown[0], rows.columns.label)
        count = f"; {len(unknown)} rows have such labels" if len(unknown) > 1 else ""
        reason = (
            f"{cell}: {shown(label)} is not a label of the model (its labels: {listed(labels)})"
        )
        reason += count
        raise DataRejected(path, reason, "Correct it, or name another column (--label-column).")


def _reader(path: Path) -> Callable[[bytes, Sequence[str]], Iterator[Record]]:
    name = path.name.lower().removesuffix(".gz")
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            # The report contains the name.
            if text_problem(path.name):
                raise InvalidData("has a name that is not UTF-8", "Rename it.")
            return reader
    remedy = f"Convert it to one of {', '.join(_READERS)}, or rename it."
    raise InvalidData("has a name that does not show its format", remedy)


def _rows(
    records: Iterable[Record], columns: Columns, limits: GatewaySettings | None, digest: str
) -> Rows:
    converters: list[tuple[str, Callable[[object], str]]] = [
        (columns.text, partial(_text, limits)),
        (columns.label, _label),
        *((name, _slice) for name in columns.slices),
    ]
    cells: list[list[str]] = [[] for _ in converters]
    lines: list[int | None] = []
    chars = 0
    for record in records:
        if record.row > MAX_ROWS:
            raise InvalidData(f"has over {MAX_ROWS:,} rows", SAMPLE)
        for (name, convert), column in zip(converters, cells, strict=True):
            column.append(_cell(record, name, convert))
            # A Parquet dictionary stores a text once for any number of rows.
            chars += len(column[-1])
        check_size(chars)
        lines.append(record.line)
    texts, labels, *slices = cells
    named = dict(zip(columns.slices, slices, strict=True))
    return Rows(texts, labels, named, digest, columns, lines)


def _cell(record: Record, name: str, convert: Callable[[object], str]) -> str:
    try:
        return convert(record.values[name])
    except InvalidData as error:
        cell = place(record.row, record.line, name)
        raise InvalidData(f"{cell}: {error.reason}", error.remedy) from None


def _text(limits: GatewaySettings | None, value: object) -> str:
    text = _string(value)
    if limits is None:
        return text
    if problem := length_problem(text, limits.max_text_chars):
        remedy = "Shorten it, remove the row, or raise gateway.max_text_chars."
        raise InvalidData(problem, remedy)
    if _body_exceeds(text, limits.max_body_bytes):
        reason = f"does not fit into a request of {limits.max_body_bytes} bytes"
        remedy = "Shorten it, remove the row, or raise gateway.max_body_bytes."
        raise InvalidData(reason, remedy)
    return text


def _label(value: object) -> str:
    # In Python, True is an int.
    return _short_string(str(value) if type(value) is int else value)


def _slice(value: object) -> str:
    if isinstance(value, Scalar):
        value = value.text
    elif isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        value = str(value)
    return _short_string(value)


def _short_string(value: object) -> str:
    text = _string(value)
    if problem := length_problem(text, MAX_LABEL_CHARS):
        raise InvalidData(problem, _CORRECT)
    return text


def _string(value: object) -> str:
    if isinstance(value, bytes):
        value = _decoded(value)
    if value is None:
        raise InvalidData("is null", _CORRECT)
    if not isinstance(value, str):
        kind = _KINDS.get(type(value), f"a {type(value).__name__}")
        kind = value.kind if isinstance(value, Scalar) else kind
        raise InvalidData(f"is {kind}, not a text", "Write it as one text.")
    if problem := text_problem(value):
        raise InvalidData(problem, _CORRECT)
    return value


def _decoded(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidData("holds bytes that are not UTF-8", _CORRECT) from None


def _body_exceeds(text: str, max_bytes: int) -> bool:
    """Return whether the shortest request with this text has more bytes."""
    if len(text) * _MAX_BYTES_PER_CHAR + _EMPTY_BODY_BYTES <= max_bytes:
        return False
    body = json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":"))
    return len(body.encode()) > max_bytes
