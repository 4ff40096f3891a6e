"""Files as tools write them: the rows that are read, or the one line that refuses them."""

import codecs
import csv
import datetime as dt
import gzip
import io
import json
import os
import sys
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from kaiten import installation
from kaiten.errors import DataRejected
from kaiten.settings.models import GatewaySettings
from lifecycle.card import sha256
from lifecycle.evaluate import content as content_module
from lifecycle.evaluate import rows as rows_module
from lifecycle.evaluate.rows import Columns, Rows, check_rows, name_labels, read_rows

pa: Any = import_module("pyarrow")
pq: Any = import_module("pyarrow.parquet")

ROWS = [
    {"text": "where is it?", "label": "delivery", "channel": "mail"},
    {"text": 'two lines\nand "quotes", commas', "label": "other", "channel": "chat"},
    {"text": "Ünïcode ✓", "label": "billing", "channel": "mail"},
]
LABELS = ("billing", "delivery", "other")
PLAIN = Columns()
COLUMNS = Columns(slices=("channel",))
LIMITS = GatewaySettings()
LONG = "x" * (LIMITS.max_text_chars + 1)

NAME_THEM = "Name the columns: --text-column, --label-column, --slice."
WITH_HEADER = "Name the columns (--text-column, --label-column, --slice), or write a header line."
CORRECT = "Correct it, or remove the row."
AS_TEXT = "Write it as one text."
ONE_A_LINE = "Write one JSON object a line, as `jq -c .` does."
BY_FORMAT = "Write one JSON object a line, or name the file by its format (.csv, .parquet)."
CLOSE = "Close the quote, and double those inside a quoted cell."
SAMPLE = "Use a sample of it."
TO_UTF8 = "Convert it to UTF-8; from Latin-1: iconv -f latin1 -t utf-8 FILE > NEW."


def jsonl(*rows: object) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def comma_separated(rows: list[dict[str, str]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def parquet(**columns: Any) -> bytes:  # noqa: ANN401
    table = pa.table(columns)
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def column(type_: Any, *values: object) -> Any:  # noqa: ANN401
    return pa.array([*values], type_)


def dictionary(type_: Any, *values: object) -> Any:  # noqa: ANN401
    return column(type_, *values).dictionary_encode()


def row(**values: object) -> bytes:
    return jsonl({"text": "a", "label": "b"} | values)


WRITTEN = {
    "rows.jsonl": jsonl(*ROWS) + b"\n\n",
    "rows.csv": comma_separated(ROWS),
    "rows.parquet": parquet(**{name: [row[name] for row in ROWS] for name in ROWS[0]}),
}
ONE = [("a", "b")]
TWO = [("a", "b"), ("c", "d")]
A = jsonl({"text": "a", "label": "b"})
C = jsonl({"text": "c", "label": "d"})

READ: dict[str, tuple[str, bytes, list[tuple[str, str]]]] = {
    # Encodings, compression and line ends.
    "JSONL with a byte order mark": ("f.jsonl", codecs.BOM_UTF8 + A, ONE),
    "JSONL files that were joined": ("f.jsonl", A + codecs.BOM_UTF8 + C, TWO),
    "JSONL in UTF-16": ("f.jsonl", (A + C).decode().encode("utf-16"), TWO),
    "JSONL in UTF-16 BE": ("f.jsonl", codecs.BOM_UTF16_BE + A.decode().encode("utf-16-be"), ONE),
    "JSONL in UTF-32": ("f.jsonl", A.decode().encode("utf-32"), ONE),
    "JSONL with mixed line ends": (
        "f.jsonl",
        A.strip() + b"\r\n" + C.strip() + b"\r\r\n \t\n" + A,
        [*TWO, *ONE],
    ),
    "JSONL without a last line end": ("f.jsonl", A + C.strip(), TWO),
    "JSONL with line separators in a text": (
        "f.jsonl",
        '{"text": "a\u2028\u2029\u0085b", "label": "c"}\n'.encode(),
        [("a\u2028\u2029\u0085b", "c")],
    ),
    "JSONL with a surrogate pair": (
        "f.jsonl",
        b'{"text": "\\ud83d\\ude00", "label": "b"}',
        [("😀", "b")],
    ),
    "JSONL with NaN, nesting and a null elsewhere": (
        "f.jsonl",
        b'{"text": "a", "label": "b", "score": NaN, "meta": {"a": [1]}, "channel": null}',
        ONE,
    ),
    "JSONL that pandas wrote with an index": ("f.jsonl", row(**{"Unnamed: 0": 0, "index": 1}), ONE),
    "JSONL by another name": ("f.NDJSON", A, ONE),
    "JSONL with a whole number for a label": (
        "f.jsonl",
        row(label=7) + row(label=-0),
        [("a", "7"), ("a", "0")],
    ),
    "JSONL compressed": ("f.jsonl.gz", gzip.compress(A), ONE),
    "JSONL compressed in parts": ("f.jsonl.gz", gzip.compress(A) + gzip.compress(C), TWO),
    "JSONL that was unpacked": ("f.jsonl.gz", A, ONE),
    "CSV that is compressed, and not named so": ("f.csv", gzip.compress(b"text,label\na,b\n"), ONE),
    "CSV with a byte order mark": ("f.csv", codecs.BOM_UTF8 + b"text,label\r\na,b\r\n", ONE),
    "CSV in UTF-16, as Excel's Unicode text": (
        "f.csv",
        "text\tlabel\r\na\tb\r\n".encode("utf-16"),
        ONE,
    ),
    "CSV with old line ends": ("f.csv", b"text,label\ra,b\rc,d\r", TWO),
    "CSV with mixed line ends": ("f.csv", b"text,label\r\na,b\rc,d\na,b", [*TWO, *ONE]),
    "CSV with quoted line ends": (
        "f.csv",
        b'text,label\n"a\r\nb\rc\nd","e\nf"\n',
        [("a\r\nb\rc\nd", "e\nf")],
    ),
    "CSV with line separators in a text": (
        "f.csv",
        "text,label\na\u2028\u0085\u000b\u000cb,c\n".encode(),
        [("a\u2028\u0085\u000b\u000cb", "c")],
    ),
    # Dialects of CSV.
    "CSV with semicolons": ("f.csv", b"text;label;x\na, or b;c;1\n", [("a, or b", "c")]),
    "CSV with bars": ("f.csv", b"label|text\nb|a\n", ONE),
    "TSV": ("f.tsv", b'text\tlabel\n"a\tb"\tc\n', [("a\tb", "c")]),
    "TSV named CSV": ("f.csv", b"text\tlabel\na\tb\n", ONE),
    "CSV for Excel": ("f.csv", b"\xef\xbb\xbfsep=;\r\ntext;label\r\na;b\r\n", ONE),
    "CSV for Excel with a quoted separator": ("F.CSV", b'"sep=|"\ntext|label\na|b\n', ONE),
    "CSV with blanks around the names": (
        "f.csv",
        b' text , "label"\n"a, b", c\n',
        [("a, b", "c")],
    ),
    "CSV with blanks around names alone": ("f.csv", b"text ,label \n a,b\n", [(" a", "b")]),
    "CSV with leading spaces": (
        "f.csv",
        b'text,label\n  a,b\n"  ""c""",d\n',
        [("  a", "b"), ('  "c"', "d")],
    ),
    "CSV with quotes in a bare cell": ("f.csv", b'text,label\n5" or "6",b\n', [('5" or "6"', "b")]),
    "CSV with blank lines": ("f.csv", b"\n\ntext,label\n\na,b\n  \n\nc,d\n\n", TWO),
    "CSV with an index of pandas": ("f.csv", b",text,label\n0,a,b\n1,c,d\n", TWO),
    "CSV with that index read and written": ("f.csv", b"Unnamed: 0,text,label\n0,a,b\n", ONE),
    "CSV with a column twice that is not read": ("f.csv", b"x,text,x,label,,\n1,a,2,b,,\n", ONE),
    "CSV with a long cell that is not read": (
        "f.csv",
        b"text,label,page\na,b," + b"x" * 200_000 + b"\n",
        ONE,
    ),
    "CSV with numbers for texts": (
        "f.csv",
        b"text,label\n42,7\nNaN,true\n",
        [("42", "7"), ("NaN", "true")],
    ),
    "CSV of many columns": (
        "f.csv",
        (
            ",".join(f"c{n}" for n in range(50_000)) + ",text,label\n" + "," * 50_000 + "a,b\n"
        ).encode(),
        ONE,
    ),
    "CSV of a header": ("f.csv", b"text,label", []),
    # Types of Parquet.
    "Parquet of binary": (
        "f.parquet",
        parquet(
            text=column(pa.binary(), b"where", "é".encode()),
            label=column(pa.large_binary(), b"b", b"c"),
        ),
        [("where", "b"), ("é", "c")],
    ),
    "Parquet of large strings": (
        "f.parquet",
        parquet(text=column(pa.large_string(), "a"), label=column(pa.binary(1), b"b")),
        ONE,
    ),
    "Parquet of categories": (
        "f.parquet",
        parquet(text=dictionary(pa.string(), "a", "c"), label=dictionary(pa.string(), "b", "d")),
        TWO,
    ),
    "Parquet of binary categories": (
        "f.parquet",
        parquet(text=dictionary(pa.binary(), b"a"), label=dictionary(pa.large_string(), "b")),
        ONE,
    ),
    "Parquet of whole numbers for labels": (
        "f.parquet",
        parquet(text=["a", "a"], label=column(pa.uint64(), 7, 2**64 - 1)),
        [("a", "7"), ("a", "18446744073709551615")],
    ),
    "Parquet of categories of numbers": (
        "f.parquet",
        parquet(text=["a"], label=dictionary(pa.int8(), 7)),
        [("a", "7")],
    ),
    "Parquet with nested columns and an index elsewhere": (
        "f.parquet",
        parquet(text=["a"], label=["b"], meta=[{"text": ["x"]}], __index_level_0__=[5]),
        ONE,
    ),
    "Parquet without rows": (
        "f.parquet",
        parquet(text=pa.array([], pa.string()), label=pa.array([], pa.null())),
        [],
    ),
    "Parquet compressed again": (
        "f.parquet.gz",
        gzip.compress(parquet(text=["a"], label=["b"])),
        ONE,
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), READ.values(), ids=READ)
def test_file_is_read(
    name: str, content: bytes, expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows = read_rows(path, Columns(), LIMITS)
    assert [*zip(rows.texts, rows.labels, strict=True)] == expected
    assert rows.digest == sha256(path)


IS_UTF16 = (
    "looks like UTF-16 without a byte order mark. Convert it: iconv -f {} -t utf-8 FILE > NEW."
)
REFUSED: dict[str, tuple[str, bytes, str]] = {
    # The file.
    "no format": (
        "f.xlsx",
        b"a",
        (
            "has a name that does not show its format. Convert it to one of "
            ".jsonl, .ndjson, .csv, .tsv, .parquet, or rename it."
        ),
    ),
    "empty JSONL": ("f.jsonl", b"", "is empty. Write a text and its label in each row."),
    "empty gzip": (
        "f.csv.gz",
        gzip.compress(b""),
        "is empty. Write a text and its label in each row.",
    ),
    "cut gzip": (
        "f.csv.gz",
        gzip.compress(b"text,label\na,b\n")[:-9],
        (
            "is a damaged gzip file (Compressed file ended before the end-of-stream marker was "
            "reached). Compress or copy it again."
        ),
    ),
    "gzip twice": (
        "f.csv.gz",
        gzip.compress(gzip.compress(b"text,label\na,b\n")),
        "is compressed with gzip twice. Unpack it first.",
    ),
    "Excel named CSV": (
        "f.csv",
        b"PK\x03\x04...",
        "is a ZIP archive or an Excel workbook. Unpack it first. Save the sheet as CSV (UTF-8).",
    ),
    "Parquet named JSONL": ("f.jsonl", parquet(text=["a"]), "is a Parquet file. Name it .parquet."),
    "Zstandard": (
        "f.jsonl",
        b"\x28\xb5\x2f\xfd...",
        "is compressed with Zstandard. Unpack it first.",
    ),
    "CSV named Parquet": (
        "f.parquet",
        b"text,label\na,b\n",
        "is not a Parquet file. Name it by its format (.jsonl, .csv), or write it again.",
    ),
    "Feather named Parquet": (
        "f.parquet",
        b"ARROW1\x00\x00",
        "is an Arrow or Feather file. Write it as JSONL, CSV or Parquet.",
    ),
    "UTF-16 LE without a mark": (
        "f.csv",
        "text,label".encode("utf-16-le"),
        IS_UTF16.format("utf-16le"),
    ),
    "UTF-16 BE without a mark": (
        "f.jsonl",
        A.decode().encode("utf-16-be"),
        IS_UTF16.format("utf-16be"),
    ),
    "JSONL in Latin-1": (
        "f.jsonl",
        A + b'{"text": "caf\xe9", "label": "b"}',
        f"line 2: holds the byte 0xe9, which is not utf-8. {TO_UTF8}",
    ),
    "CSV in Latin-1": (
        "f.csv",
        b'text,label\r\n"a\rb",c\r\ncaf\xe9,d\r\n',
        f"line 4: holds the byte 0xe9, which is not utf-8. {TO_UTF8}",
    ),
    "header in Latin-1": (
        "f.csv",
        b"caf\xe9,text,label\n",
        f"line 1: holds the byte 0xe9, which is not utf-8. {TO_UTF8}",
    ),
    "cut UTF-16": (
        "f.jsonl",
        A.decode().encode("utf-16")[:-1],
        f"line 1: holds the byte 0x0a, which is not utf-16-le. {TO_UTF8}",
    ),
    # JSONL.
    "cut JSON": (
        "f.jsonl",
        A + b'\n{"text": ',
        "row 2 (line 3): is not a JSON object (character 9: Expecting value). " + ONE_A_LINE,
    ),
    "JSON array in a line": (
        "f.jsonl",
        b'[{"text": "a", "label": "b"}]',
        "row 1: is not a JSON object. Write one JSON object a line, as `jq -c '.[]'` does.",
    ),
    "JSON array in lines": (
        "f.jsonl",
        b'[\n{"text": "a", "label": "b"}\n]',
        (
            "row 1: is not a JSON object (character 2: Expecting value). "
            "Write one JSON object a line, as `jq -c '.[]'` does."
        ),
    ),
    "pretty JSON": (
        "f.jsonl",
        json.dumps({"text": "a", "label": "b"}, indent=1).encode(),
        "row 1: is not a JSON object "
        "(character 2: Expecting property name enclosed in double quotes). " + ONE_A_LINE,
    ),
    "comma after an object": (
        "f.jsonl",
        b'{"text": "a", "label": "b"},\n',
        "row 1: is not a JSON object (character 28: Extra data). " + ONE_A_LINE,
    ),
    "line end in a JSON string": (
        "f.jsonl",
        b'{"text": "a\rb", "label": "c"}',
        "row 1: is not a JSON object (character 10: Unterminated string starting). " + ONE_A_LINE,
    ),
    "NUL in JSON": (
        "f.jsonl",
        b'{"text": "a\0", "label": "c"}',
        "row 1: is not a JSON object (character 12: Invalid control character). " + ONE_A_LINE,
    ),
    "CSV named JSONL": (
        "f.jsonl",
        b"text,label\na,b\n",
        f"row 1: is not a JSON object (character 1: Expecting value). {BY_FORMAT}",
    ),
    "number for a row": ("f.jsonl", b"7\n", f"row 1: is not a JSON object. {BY_FORMAT}"),
    "deep JSON": (
        "f.jsonl",
        b"[" * 100_000,
        (
            "row 1: is not a JSON object that can be read (it is nested too deep). "
            "Write one JSON object a line, as `jq -c '.[]'` does."
        ),
    ),
    "long number": (
        "f.jsonl",
        b'{"text": "a", "label": ' + b"1" * 5000 + b"}",
        f"row 1: is not a JSON object that can be read (a number in it is too long). {ONE_A_LINE}",
    ),
    "key twice": (
        "f.jsonl",
        A + b'{"text": "a", "label": "b", "label": "c"}',
        "row 2, column 'label': appears twice in the object. Keep the correct one.",
    ),
    "odd key twice": (
        "f.jsonl",
        b'{"\\ud800\\n": 1, "\\ud800\\n": 2}',
        r"row 1, column '\ud800\n': appears twice in the object. Keep the correct one.",
    ),
    "no label": (
        "f.jsonl",
        A + b'\n{"text": "a"}',
        f"row 2 (line 3): has no column 'label' (its columns: 'text'). {NAME_THEM}",
    ),
    "names in another case": (
        "f.jsonl",
        jsonl({"Text": "a", "label\n": "b"}),
        rf"row 1: has no column 'text' (its columns: 'Text', 'label\n'). {NAME_THEM}",
    ),
    "empty object": (
        "f.jsonl",
        b"{}",
        f"row 1: has no column 'text' (its columns: none). {NAME_THEM}",
    ),
    # Values that the API refuses.
    "null text": ("f.jsonl", row(text=None), f"row 1, column 'text': is null. {CORRECT}"),
    "null label": ("f.jsonl", A + row(label=None), f"row 2, column 'label': is null. {CORRECT}"),
    "list": ("f.jsonl", row(text=["a"]), f"row 1, column 'text': is a list, not a text. {AS_TEXT}"),
    "object": (
        "f.jsonl",
        row(text={"0": "a"}),
        f"row 1, column 'text': is an object, not a text. {AS_TEXT}",
    ),
    "number": ("f.jsonl", row(text=7), f"row 1, column 'text': is a number, not a text. {AS_TEXT}"),
    "NaN": (
        "f.jsonl",
        row(text=float("nan")),
        f"row 1, column 'text': is a number, not a text. {AS_TEXT}",
    ),
    "boolean label": (
        "f.jsonl",
        row(label=True),
        f"row 1, column 'label': is a boolean, not a text. {AS_TEXT}",
    ),
    "fraction for a label": (
        "f.jsonl",
        row(label=3.0),
        f"row 1, column 'label': is a number, not a text. {AS_TEXT}",
    ),
    "empty text": ("f.jsonl", row(text=""), f"row 1, column 'text': is empty. {CORRECT}"),
    "blank text": (
        "f.jsonl",
        row(text=" \u3000\u2028\t"),
        f"row 1, column 'text': is empty. {CORRECT}",
    ),
    "blank label": ("f.jsonl", row(label=" "), f"row 1, column 'label': is empty. {CORRECT}"),
    "NUL": (
        "f.jsonl",
        row(text="a\0"),
        f"row 1, column 'text': contains a NUL character. {CORRECT}",
    ),
    "lone surrogate": (
        "f.jsonl",
        row(text="a\ud800"),
        f"row 1, column 'text': contains a lone surrogate, which is not valid Unicode. {CORRECT}",
    ),
    "lone surrogate in a label": (
        "f.jsonl",
        row(label="\udc00a"),
        f"row 1, column 'label': contains a lone surrogate, which is not valid Unicode. {CORRECT}",
    ),
    "long text": (
        "f.jsonl",
        row(text=LONG),
        (
            "row 1, column 'text': has over 20000 characters. "
            "Shorten it, remove the row, or raise gateway.max_text_chars."
        ),
    ),
    "long label": (
        "f.jsonl",
        row(label="x" * 1001),
        f"row 1, column 'label': has over 1000 characters. {CORRECT}",
    ),
    # CSV.
    "no header line": (
        "f.csv",
        b"where is it?,delivery\n",
        f"has no column 'text' (its columns: 'where is it?', 'delivery'). {WITH_HEADER}",
    ),
    "blank CSV": ("f.csv", b"\n \n", f"has no header line. {WITH_HEADER}"),
    "mark alone": ("f.csv", codecs.BOM_UTF8, f"has no header line. {WITH_HEADER}"),
    "other columns": (
        "f.csv",
        b"Text;Category\na;b\n",
        f"has no column 'text' (its columns: 'Text', 'Category'). {WITH_HEADER}",
    ),
    "many other columns": (
        "f.csv",
        ",".join(f"c{n}" for n in range(50_000)).encode(),
        "has no column 'text' (its columns: 'c0', 'c1', 'c2', 'c3', 'c4' and 49995 more). "
        + WITH_HEADER,
    ),
    "JSONL named CSV": (
        "f.csv",
        A,
        (
            'has no column \'text\' (its columns: \'{"text": "a", "label": "b"}\'). '
            "It looks like JSON: name it .jsonl."
        ),
    ),
    "column twice": (
        "f.csv",
        b"text,label,label \na,b,c\n",
        "has the column 'label' twice. Keep the correct one.",
    ),
    "too few cells": (
        "f.csv",
        b'text,label\n"a\nb",c\na\n',
        (
            "row 2 (line 4): the header has 2 cells, and this row 1. "
            "Quote cells that hold ',', and write every cell."
        ),
    ),
    "too many cells": (
        "f.csv",
        b"text,label\n\na, or b,c\n",
        (
            "row 1 (line 3): the header has 2 cells, and this row 3. "
            "Quote cells that hold ',', and write every cell."
        ),
    ),
    "too many cells of a TSV": (
        "f.tsv",
        b"text\tlabel\na\tb\tc\n",
        (
            "row 1 (line 2): the header has 2 cells, and this row 3. "
            "Quote cells that hold '\\t', and write every cell."
        ),
    ),
    "open quote": (
        "f.csv",
        b'text,label\na,b\n"c,d\ne,f\n',
        f"row 2 (line 3): opens a quote that is never closed. {CLOSE}",
    ),
    "open quote in the header": (
        "f.csv",
        b'"text,label\na,b\n',
        f"the header (line 1): opens a quote that is never closed. {CLOSE}",
    ),
    "escaped quotes": (
        "f.csv",
        b'text,label\n"say \\"hi\\"",b\n',
        f"row 1 (line 2): is not valid CSV (',' expected after '\"'). {CLOSE}",
    ),
    "space before a quote": (
        "f.csv",
        b'label,text\nb, "a"\n',
        (
            "row 1 (line 2): has a space before the quote that opens a cell. "
            "Remove the spaces after delimiters."
        ),
    ),
    "empty cell": (
        "f.csv",
        b"sep=,\ntext,label\n,b\n",
        f"row 1 (line 3), column 'text': is empty. {CORRECT}",
    ),
    "NUL in a cell": (
        "f.csv",
        b"text,label\na\0b,c\n",
        f"row 1 (line 2), column 'text': contains a NUL character. {CORRECT}",
    ),
    "long cell": (
        "f.csv",
        b"text,label\n" + b"x" * 200_000 + b",c\n",
        (
            "row 1 (line 2), column 'text': has over 20000 characters. "
            "Shorten it, remove the row, or raise gateway.max_text_chars."
        ),
    ),
    # Parquet.
    "encrypted Parquet": (
        "f.parquet",
        b"PARE....PARE",
        "is an encrypted Parquet file. Write it without encryption.",
    ),
    "other columns of Parquet": (
        "f.parquet",
        parquet(data=[{"text": "a", "label": "b"}]),
        f"has no column 'text' (its columns: 'data'). {NAME_THEM}",
    ),
    "null of Parquet": (
        "f.parquet",
        parquet(text=["a", None], label=["b", "b"]),
        f"row 2, column 'text': is null. {CORRECT}",
    ),
    "column of nulls": (
        "f.parquet",
        parquet(text=["a"], label=column(pa.null(), None)),
        f"row 1, column 'label': is null. {CORRECT}",
    ),
    "category that is null": (
        "f.parquet",
        parquet(text=["a"], label=dictionary(pa.string(), None)),
        f"row 1, column 'label': is null. {CORRECT}",
    ),
    "bytes that are not UTF-8": (
        "f.parquet",
        parquet(text=column(pa.binary(), b"a", b"caf\xe9"), label=["b", "b"]),
        f"row 2, column 'text': holds bytes that are not UTF-8. {CORRECT}",
    ),
    "strings that are not UTF-8": (
        "f.parquet",
        parquet(text=column(pa.binary(), b"caf\xe9").view(pa.string()), label=["b"]),
        f"row 1, column 'text': holds bytes that are not UTF-8. {CORRECT}",
    ),
    "numbers for texts": (
        "f.parquet",
        parquet(text=[1], label=["b"]),
        f"row 1, column 'text': is a number, not a text. {AS_TEXT}",
    ),
    "whole numbers that pandas made fractions": (
        "f.parquet",
        parquet(text=["a"], label=[3.0]),
        f"row 1, column 'label': is a number, not a text. {AS_TEXT}",
    ),
    "booleans of Parquet": (
        "f.parquet",
        parquet(text=["a"], label=[True]),
        f"row 1, column 'label': is a boolean, not a text. {AS_TEXT}",
    ),
    "dates for texts": (
        "f.parquet",
        parquet(text=column(pa.timestamp("ns"), 1), label=["b"]),
        f"row 1, column 'text': is a timestamp[ns], not a text. {AS_TEXT}",
    ),
    "decimals for labels": (
        "f.parquet",
        parquet(text=["a"], label=[Decimal("1.0")]),
        f"row 1, column 'label': is a decimal128(2, 1), not a text. {AS_TEXT}",
    ),
    "lists of Parquet": (
        "f.parquet",
        parquet(text=[["a"]], label=["b"]),
        "column 'text': is of type list<element: string>, not text. Write one text in each row.",
    ),
    "structs of Parquet": (
        "f.parquet",
        parquet(text=["a"], label=[{"name": "b"}]),
        "column 'label': is of type struct<name: string>, not text. Write one text in each row.",
    ),
    "blank of Parquet": (
        "f.parquet",
        parquet(text=["a", " "], label=["b", "b"]),
        f"row 2, column 'text': is empty. {CORRECT}",
    ),
}


def refusal(path: Path, columns: Columns = PLAIN, limits: GatewaySettings = LIMITS) -> str:
    """Return why a file is refused, without its path."""
    with pytest.raises(DataRejected) as caught:
        read_rows(path, columns, limits)
    message = caught.value.message
    assert message.isprintable()
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(("name", "content", "expected"), REFUSED.values(), ids=REFUSED)
def test_file_is_refused_in_one_line(
    name: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal(path) == expected


FEATURES = {f"f{number}": number / 10 for number in range(28)} | {"label": 1}
UNSERVED: dict[str, tuple[str, bytes, str]] = {
    "table of JSONL": ("f.jsonl", jsonl(FEATURES), "tabular models"),
    "table of CSV": ("f.csv", b"f0,f1,label\n0.5,-1e3,yes\n", "tabular models"),
    "table of Parquet": (
        "f.parquet",
        parquet(**{name: [value] * 3 for name, value in FEATURES.items()}),
        "tabular models",
    ),
    "features alone": ("f.csv", b"f0,f1\n1,2\n", "tabular models"),
    "images": ("f.parquet", parquet(image=[{"bytes": b"x"}], label=[1]), "image models"),
    "tokens": ("f.jsonl", jsonl({"tokens": ["a"], "ner_tags": [0]}), "token classifiers"),
    "pairs": ("f.csv", b"premise,hypothesis,label\na,b,c\n", "models of text pairs"),
    "rerankers": ("f.csv", b"query,documents,label\na,b,c\n", "rerankers"),
    "questions": ("f.csv", b"question,context,answer\na,b,c\n", "question answering models"),
    "audio": ("f.parquet", parquet(audio=[b"x"], label=[1]), "audio models"),
}


@pytest.mark.parametrize(("name", "content", "kind"), UNSERVED.values(), ids=UNSERVED)
def test_data_of_a_kind_that_is_not_served_are_refused_as_such(
    name: str, content: bytes, kind: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert "has no column 'text' (its columns: " in message
    assert f"). Kaiten does not serve {kind} yet; it serves text classifiers" in message
    # For data that hold texts all the same.
    assert "--text-column" in message


@pytest.mark.parametrize(
    "content", [b"id,label\n1,2\n", b"id,body,label\n1,a,b\n", b"a,b\n1\n", b'a,b\n"1', b"f0,f1\n"]
)
def test_numbers_beside_a_text_are_no_table(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(content)
    assert "does not serve" not in refusal(path)


def test_cut_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(parquet(text=["a"], label=["b"])[:-20])
    assert refusal(path).startswith("is Parquet that cannot be read (")


def test_parquet_without_pyarrow_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(parquet(text=["a"], label=["b"]))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr(installation, "requires", lambda _: ['pyarrow>=18; extra == "validate"'])
    message = refusal(path)
    assert "Write it as JSONL or CSV, or add it. Run: " in message
    assert message.endswith('pip install "pyarrow>=18"')


@pytest.mark.parametrize("name", WRITTEN)
def test_formats_agree(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(WRITTEN[name])
    rows = read_rows(path, COLUMNS, LIMITS)
    assert [*rows.texts] == [row["text"] for row in ROWS]
    assert [*rows.labels] == [row["label"] for row in ROWS]
    assert [*rows.slices["channel"]] == ["mail", "chat", "mail"]
    assert rows.digest == sha256(path)
    check_rows(rows, LABELS, 3, path, allow_missing_labels=False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("mail", "mail"), (3, "3"), (0.5, "0.5"), (True, "true"), (False, "false")],
)
def test_slice_may_be_a_scalar(value: object, expected: str, tmp_path: Path) -> None:
    for name, content in (
        ("f.jsonl", row(channel=value)),
        ("f.parquet", parquet(text=["a"], label=["b"], channel=[value])),
    ):
        (tmp_path / name).write_bytes(content)
        assert read_rows(tmp_path / name, COLUMNS).slices == {"channel": [expected]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (dt.date(2026, 11, 30), "2026-11-30"),
        (Decimal("1.50"), "1.50"),
        (pa.scalar(1, pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    ],
)
def test_slice_of_parquet_may_be_a_date_or_a_decimal(
    value: object, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(parquet(text=["a"], label=["b"], channel=pa.array([value])))
    assert read_rows(path, COLUMNS).slices == {"channel": [expected]}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "is null"),
        ("", "is empty"),
        (float("nan"), "is a number, not a text"),
        (["mail"], "is a list, not a text"),
    ],
)
def test_slice_is_never_missing(value: object, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(row(channel=value))
    assert refusal(path, COLUMNS).startswith(f"row 1, column 'channel': {problem}. ")


def test_text_that_no_body_can_hold_is_refused(tmp_path: Path) -> None:
    limits = GatewaySettings(max_body_bytes=1024)
    path = tmp_path / "f.jsonl"
    path.write_bytes(row(text="x" * 1013))
    assert len(read_rows(path, Columns(), limits)) == 1
    path.write_bytes(row(text="x" * 1012 + "é"))
    assert refusal(path, limits=limits) == (
        "row 1, column 'text': does not fit into a request of 1024 bytes. "
        "Shorten it, remove the row, or raise gateway.max_body_bytes."
    )


def test_lengths_are_left_to_another_server(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(row(text=LONG))
    assert len(read_rows(path, Columns())) == 1


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.parquet"])
def test_large_files_and_what_unpacks_to_one_are_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(content_module, "MAX_BYTES", 1 << 20)
    content = b"text,label\n" + b"a,b\n" * 300_000
    repeated = dictionary(pa.string(), *["x" * 1000] * 2000)
    path = tmp_path / name
    path.write_bytes(
        {
            "f.csv": content,
            "f.csv.gz": gzip.compress(content),
            "f.parquet": parquet(text=repeated, label=["b"] * 2000),
        }[name]
    )
    assert name == "f.csv" or path.stat().st_size < 100_000
    assert refusal(path) == f"holds over 1 MiB. {SAMPLE}"


def test_pages_of_parquet_that_unpack_to_too_much_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(content_module, "MAX_BYTES", 1 << 20)
    path = tmp_path / "f.parquet"
    path.write_bytes(parquet(text=["x" * 20_000_000], label=["b"]))
    assert path.stat().st_size < 1 << 20
    assert refusal(path) == f"holds over 1 MiB. {SAMPLE}"


def test_too_many_rows_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rows_module, "MAX_ROWS", 2)
    path = tmp_path / "f.jsonl"
    path.write_bytes(A * 2)
    assert len(read_rows(path, Columns())) == 2
    path.write_bytes(A * 3)
    assert refusal(path) == f"has over 2 rows. {SAMPLE}"


def test_link_that_leaves_its_folder_is_not_read(tmp_path: Path) -> None:
    # Its first line would stand in the message as the names of the columns.
    (tmp_path / "rows.csv").symlink_to("/etc/passwd")
    message = refusal(tmp_path / "rows.csv")
    assert "leaves the folder" in message
    assert "root:" not in message


def test_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    assert "is a FIFO" in refusal(tmp_path / "rows.csv")


def test_folder_and_absent_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert refusal(tmp_path / "folder.csv") == "is a folder. Give the path of a file."
    remedy = "Give the path of a file that this user may read."
    assert refusal(tmp_path / "f.csv") == f"cannot be read: No such file or directory. {remedy}"


def test_odd_name_is_escaped(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\n\xff.jsonl")
    path.write_bytes(A)
    with pytest.raises(DataRejected) as caught:
        read_rows(path, Columns())
    assert caught.value.message == f"{str(path)!r}: has a name that is not UTF-8. Rename it."
    assert caught.value.message.isprintable()


def rows(*labels: str) -> Rows:
    return Rows(["a text"] * len(labels), labels)


@pytest.mark.parametrize(
    ("labelled", "reason"),
    [
        (rows(), "has 0 rows, under the 3 of validation.min_rows"),
        (rows("billing", "other"), "has 2 rows"),
        (rows("other", "other", "other"), "has rows of one label only: 'other'"),
        (
            rows("other", "refund", "billing"),
            (
                "row 2, column 'label': 'refund' is not a label of the model "
                "(its labels: 'billing', 'delivery', 'other'). Correct it"
            ),
        ),
        (rows("other", "2", " billing"), "'other'); 2 rows have such labels. "),
        (rows("other", "billing", "billing"), "has no rows of 'delivery'"),
    ],
)
def test_rows_that_say_too_little_are_refused(labelled: Rows, reason: str) -> None:
    with pytest.raises(DataRejected) as caught:
        check_rows(labelled, LABELS, 3, Path("rows.csv"), allow_missing_labels=False)
    assert reason in caught.value.message


def test_unknown_label_is_found_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(b'text,intent\n"a\nb",0\nc,1\n')
    labelled = read_rows(path, Columns(label="intent"))
    check_rows(labelled, ("0", "1"), 2, path, allow_missing_labels=False)
    with pytest.raises(
        DataRejected, match=r"row 2 \(line 4\), column 'intent': '1' is not a label"
    ):
        check_rows(labelled, ("0", "2"), 2, path, allow_missing_labels=False)


def test_some_labels_may_be_left_unmeasured() -> None:
    check_rows(
        rows("other", "billing", "billing"), LABELS, 3, Path("rows.csv"), allow_missing_labels=True
    )


@pytest.mark.parametrize(
    ("labels", "named", "were_indices"),
    [
        (["0", "2", "1"], ["a", "c", "b"], True),
        # With one name, or one number that is not an index, all are taken literally.
        (["0", "b"], ["0", "b"], False),
        (["0", "3"], ["0", "3"], False),
        (["0", "-1"], ["0", "-1"], False),
        (["00", "1"], ["00", "1"], False),
        (["a", "b"], ["a", "b"], False),
    ],
)
def test_indices_stand_for_labels_if_all_of_them_do(
    labels: list[str], named: list[str], *, were_indices: bool
) -> None:
    rows = name_labels(Rows(["text"] * len(labels), labels), ["a", "b", "c"])
    assert ([*rows.labels], rows.labels_were_indices) == (named, were_indices)


def test_numbers_that_are_names_of_labels_are_names() -> None:
    rows = name_labels(Rows(["text"] * 3, ["0", "1", "2"]), ["2", "1", "0"])
    assert ([*rows.labels], rows.labels_were_indices) == (["0", "1", "2"], False)


def test_an_index_that_the_model_lacks_is_refused_with_its_labels(tmp_path: Path) -> None:
    rows = name_labels(Rows(["text"] * 2, ["0", "7"]), ["a", "b"])
    with pytest.raises(DataRejected, match=r"its labels: 'a', 'b'"):
        check_rows(rows, ["a", "b"], 1, tmp_path, allow_missing_labels=True)
