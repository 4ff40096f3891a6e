"""Reads the records of JSONL, CSV and Parquet files, as common tools write them.

Each reader receives the content of a file and the names of the columns to read, and yields records
with the values of the format: text, number, None and so on. ``rows`` decides which values are
valid.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import islice
from typing import Any, NamedTuple

from kaiten.confinement import printable
from kaiten.installation import extra_remedy
from kaiten.model_kinds import TABLES, kind_of_columns
from kaiten.settings.strict_yaml import DuplicateKey, reject_duplicate_keys
from lifecycle.evaluate.content import (
    MAX_BYTES,
    PARQUET_SIGNATURE,
    InvalidData,
    Text,
    check_signature,
    check_size,
    listed,
    place,
    shown,
)

# Excel writes the list separator of the user's language; databases and spreadsheets export tabs.
_DELIMITERS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
_SPACES = " \t\r\n\ufeff"
_PARQUET_ROWS = 1000
# Fewer columns of numbers may be ids beside a text.
_MIN_FEATURES = 2
_NAME_COLUMNS = "Name the columns: --text-column, --label-column, --slice."
_WITH_HEADER = "Name the columns (--text-column, --label-column, --slice), or write a header line."
_NAME_JSON = "It looks like JSON: name it .jsonl."
_CLOSE_QUOTES = "Close the quote, and double those inside a quoted cell."


class Record(NamedTuple):
    """The values of one row by column; ``line`` is where it begins, None if there are no lines."""

    row: int
    line: int | None
    values: Mapping[str, Any]


class Scalar(NamedTuple):
    """A date, time or decimal number of a Parquet file: its type, and its value as text."""

    kind: str
    text: str


def read_jsonl(content: bytes, names: Sequence[str]) -> Iterator[Record]:
    """Read one JSON object from each line that is not blank."""
    row = 0
    for number, line in enumerate(Text.of(content).lines(None), start=1):
        # Concatenated files have byte order marks between them.
        if stripped := line.strip(_SPACES):
            row += 1
            values = _json_object(stripped, row, number)
            for name in names:
                if name not in values:
                    prefix, numbers = f"{place(row, number)}: has", map(_is_number, values.values())
                    remedy = _remedy(name, names, [*values], [*numbers], _NAME_COLUMNS)
                    raise _missing_column(prefix, name, values, remedy)
            yield Record(row, number, values)


def _json_object(text: str, row: int, line: int) -> Mapping[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except DuplicateKey as error:
        reason = f"{place(row, line, error.key)}: appears twice in the object"
        raise InvalidData(reason, "Keep the correct one.") from None
    except (ValueError, RecursionError) as error:
        raise InvalidData(
            f"{place(row, line)}: {_json_problem(error)}", _json_remedy(text)
        ) from None
    if not isinstance(value, dict):
        raise InvalidData(f"{place(row, line)}: is not a JSON object", _json_remedy(text))
    return value


def _json_remedy(text: str) -> str:
    if text[0] in "[{":
        expression = "'.[]'" if text[0] == "[" else "."
        return f"Write one JSON object a line, as `jq -c {expression}` does."
    return "Write one JSON object a line, or name the file by its format (.csv, .parquet)."


def _json_problem(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not a JSON object (character {error.pos + 1}: {error.msg.removesuffix(' at')})"
    if isinstance(error, RecursionError):
        return "is not a JSON object that can be read (it is nested too deep)"
    return "is not a JSON object that can be read (a number in it is too long)"


class _Dialect(NamedTuple):
    """How a CSV file is written; ``skipped`` is the number of lines before its header."""

    delimiter: str
    skips_spaces: bool
    skipped: int


def read_csv(content: bytes, names: Sequence[str]) -> Iterator[Record]:
    """Read CSV with a header, separated by commas, semicolons, tabs or bars.

    The delimiter is the one that separates the ``names`` in the header, or that of Excel's line
    ``sep=;``. Spaces after delimiters belong to the cells unless the header has them too.
    """
    # This limit is global. Texts have their own limit, and other columns need none.
    csv.field_size_limit(MAX_BYTES)
    text = Text.of(content)
    dialect, header = _csv_header(text, names)
    looks_like_json = header[0].startswith(("{", "["))
    remedy = _NAME_JSON if looks_like_json else _WITH_HEADER
    _check_names(header, names, partial(_csv_numbers, text, dialect), remedy)
    columns = {name: header.index(name) for name in names}
    records = _csv_records(text, dialect)
    next(records)
    for row, (line, cells) in enumerate(records, start=1):
        if len(cells) != len(header):
            reason = (
                f"{place(row, line)}: the header has {len(header)} cells, and this row {len(cells)}"
            )
            remedy = f"Quote cells that hold {dialect.delimiter!r}, and write every cell."
            raise InvalidData(reason, remedy)
        yield Record(row, line, {name: cells[index] for name, index in columns.items()})


def _csv_header(text: Text, names: Sequence[str]) -> tuple[_Dialect, list[str]]:
    """Return the dialect whose header has all ``names``, else the one with the longest header."""
    hint = _SEPARATOR_LINE.fullmatch(next(text.lines(""), ""))
    headers: dict[_Dialect, list[str]] = {}
    problems: list[InvalidData] = []
    for delimiter in hint[1] if hint else _DELIMITERS:
        dialect = _Dialect(delimiter, skips_spaces=True, skipped=1 if hint else 0)
        try:
            _, cells = next(_csv_records(text, dialect))
            _, exact = next(_csv_records(text, dialect._replace(skips_spaces=False)))
        except StopIteration:
            raise InvalidData("has no header line", _WITH_HEADER) from None
        except InvalidData as error:
            problems.append(error)
        else:
            dialect = dialect._replace(skips_spaces=cells != exact)
            headers[dialect] = [name if name in names else name.strip(_SPACES) for name in cells]
    if not headers:
        raise problems[0]
    return max(headers.items(), key=lambda item: (set(names) <= {*item[1]}, len(item[1])))


def _csv_records(text: Text, dialect: _Dialect) -> Iterator[tuple[int, list[str]]]:
    """Yield the first line and the cells of the header and of each row, without blank lines."""
    raw: list[str] = []

    def lines() -> Iterator[str]:
        for line in islice(text.lines(""), dialect.skipped, None):
            raw.append(line)
            yield line

    reader = _csv_reader(lines(), dialect)
    row, number = 0, dialect.skipped + 1
    while True:
        raw.clear()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InvalidData(
                f"{place(row, number)}: {_csv_problem(error)}", _CLOSE_QUOTES
            ) from None
        if len(cells) > 1 or "".join(cells).strip():
            if row and not dialect.skips_spaces and _space_before_quote(raw, cells, dialect):
                reason = f"{place(row, number)}: has a space before the quote that opens a cell"
                raise InvalidData(reason, "Remove the spaces after delimiters.")
            yield number, cells
            row += 1
        number += len(raw)


def _csv_reader(lines: Iterable[str], dialect: _Dialect) -> Iterator[list[str]]:
    return csv.reader(
        lines, delimiter=dialect.delimiter, skipinitialspace=dialect.skips_spaces, strict=True
    )


def _csv_problem(error: csv.Error) -> str:
    if "end of data" in str(error):
        return "opens a quote that is never closed"
    return f"is not valid CSV ({error})"


def _space_before_quote(raw: Sequence[str], cells: Sequence[str], dialect: _Dialect) -> bool:
    """Return whether quotes count as text only because a space comes before them."""
    if not any(' "' in line for line in raw):
        return False
    try:
        unspaced = next(_csv_reader(raw, dialect._replace(skips_spaces=True)), [])
    except csv.Error:
        return True
    return [cell.lstrip(" ") for cell in cells] != [cell.lstrip(" ") for cell in unspaced]


def read_parquet(content: bytes, names: Sequence[str]) -> Iterator[Record]:
    """Read Parquet; texts are bytes, because not every tool marks them as text."""
    check_signature(content, PARQUET_SIGNATURE)
    if not content.startswith(PARQUET_SIGNATURE):
        remedy = "Name it by its format (.jsonl, .csv), or write it again."
        raise InvalidData("is not a Parquet file", remedy)
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        remedy = f"Write it as JSONL or CSV, or add it. {extra_remedy('validate')}"
        raise InvalidData(f"is Parquet, and {error.name} is not installed", remedy) from None
    try:
        buffer = arrow.BufferReader(content)
        file = parquet.ParquetFile(buffer, page_checksum_verification=True)
        yield from _parquet_records(arrow, file, names)
    except (arrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        reason = f"is Parquet that cannot be read ({printable(' '.join(str(error).split()))})"
        raise InvalidData(reason, "Write it again, without encryption.") from None


def _parquet_records(arrow: Any, file: Any, names: Sequence[str]) -> Iterator[Record]:  # noqa: ANN401
    schema = file.schema_arrow
    numbers = [
        arrow.types.is_integer(kind) or arrow.types.is_floating(kind) for kind in schema.types
    ]
    _check_names(schema.names, names, lambda: numbers, _NAME_COLUMNS)
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    # The size of all columns: for a single one, damaged metadata make pyarrow abort the process.
    check_size(sum(group.total_byte_size for group in groups))
    row = 0
    for batch in file.iter_batches(_PARQUET_ROWS, columns=[*dict.fromkeys(names)]):
        columns = [_parquet_values(arrow, name, batch.column(name)) for name in names]
        for values in zip(*columns, strict=True):
            row += 1
            yield Record(row, None, dict(zip(names, values, strict=True)))


def _parquet_values(arrow: Any, name: str, column: Any) -> list[Any]:  # noqa: ANN401
    types = arrow.types
    if isinstance(column, arrow.ExtensionArray):
        column = column.storage
    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if types.is_nested(kind):
        reason = f"column {shown(name)}: is of type {printable(str(kind))}, not text"
        raise InvalidData(reason, "Write one text in each row.")
    if types.is_string(kind) or types.is_large_string(kind):
        # pyarrow does not check that they are UTF-8, nor would it name the row.
        return [*column.cast(arrow.large_binary()).to_pylist()]
    if types.is_temporal(kind) or types.is_decimal(kind):
        texts = column.cast(arrow.string()).to_pylist()
        return [None if text is None else Scalar(f"a {kind}", text) for text in texts]
    return [*column.to_pylist()]


def _check_names(
    columns: Sequence[str],
    names: Sequence[str],
    read_numbers: Callable[[], Sequence[bool]],
    remedy: str,
) -> None:
    """Reject missing and duplicate columns; ``read_numbers`` says which columns hold numbers."""
    for name in names:
        if name not in columns:
            remedy = _remedy(name, names, columns, read_numbers(), remedy)
            raise _missing_column("has", name, columns, remedy)
        if columns.count(name) > 1:
            reason = f"has the column {shown(name)} twice"
            raise InvalidData(reason, "Keep the correct one.")


def _csv_numbers(text: Text, dialect: _Dialect) -> list[bool]:
    """Return which cells of the first row are numbers; none if it cannot be read."""
    try:
        records = [*islice(_csv_records(text, dialect), 2)]
    except InvalidData:
        return []
    return [_is_number(cell) for _, row in records[1:] for cell in row]


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _remedy(
    name: str, names: Sequence[str], columns: Sequence[str], numbers: Sequence[bool], remedy: str
) -> str:
    """Return the remedy for a missing column.

    Data without the texts, the first of the ``names``, may be of a kind that is not served.
    """
    if name != names[0]:
        return remedy
    pairs = zip(columns, numbers, strict=False)
    features = [is_number for column, is_number in pairs if column not in names]
    is_table = len(features) >= _MIN_FEATURES and all(features)
    kind = TABLES if is_table else kind_of_columns(columns)
    return f"{kind.refusal}. {remedy}" if kind else remedy


def _missing_column(prefix: str, name: str, columns: Iterable[str], remedy: str) -> InvalidData:
    reason = f"{prefix} no column {shown(name)} (its columns: {listed(columns) or 'none'})"
    return InvalidData(reason, remedy)
