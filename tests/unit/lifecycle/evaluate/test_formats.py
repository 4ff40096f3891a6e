"""Whatever a file holds, it ends in rows that the API accepts, or in one line of DataRejected."""

import codecs
import csv
import gzip
import io
import json
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.feedback import FeedbackRequest
from gateway.parsing import check_lengths, parse
from gateway.protocols.kaiten_v2 import PredictV2Request
from kaiten.errors import DataRejected
from kaiten.settings.models import GatewaySettings
from kaiten.text import text_problem
from lifecycle.evaluate.rows import Columns, Rows, read_rows

LIMITS = GatewaySettings(max_text_chars=50, max_body_bytes=1024)
SUFFIXES = st.sampled_from([".jsonl", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.gz"])
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])


def parquet(**columns: Any) -> bytes:  # noqa: ANN401
    file = io.BytesIO()
    table = import_module("pyarrow").table(columns)
    import_module("pyarrow.parquet").write_table(table, file)
    return file.getvalue()


VALID = [
    (
        b'{"text": "a", "label": "b", "slice": 1}\r\n\n'
        b'{"text": "\\u00e9\\ud83d\\ude00", "label": 7, "slice": "c"}\n'
    ),
    b'text,label,slice\na,b,c\n"a, ""b""\nc",7,d\n',
    b"sep=;\r\nslice;text;label\r\na;b;c\r\n",
    "text\tlabel\tslice\r\né\tb\tc\r\n".encode("utf-16"),
    parquet(text=["a", "é"], label=["b", "c"], slice=[1, 2]),
    parquet(text=[b"a", b"\xc3\xa9"], label=[1, 2], slice=[True, None]),
    gzip.compress(b"text,label,slice\na,b,c\n"),
]
PIECES = st.sampled_from(
    [
        *(b"text", b"label", b"slice", b"null", b"NaN", b"true", b"1", b"x" * 60),
        *(b"{", b"}", b"[", b"]", b":", b'"', b'""', b"\\ud800", b"\\u0000"),
        *(b",", b";", b"\t", b"|", b"\r", b"\n", b"\r\n", b" ", b"\0"),
        *(b"\xe9", "é😀\u2028".encode(), codecs.BOM_UTF8, codecs.BOM_UTF16_LE),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=60),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(start + 8, len(content))))
        content[start:end] = draw(PIECES | st.binary(max_size=4))
    return bytes(content)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    row = st.fixed_dictionaries(
        {"text": ANY_TEXT | JSON, "label": ANY_TEXT | JSON, "slice": ANY_TEXT | JSON}
    )
    rows = draw(st.lists(row, min_size=1, max_size=3))
    return "\n".join(map(json.dumps, rows)).encode()


@st.composite
def encoded(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(["", "text,label,slice\n"])) + draw(st.text(max_size=60))
    return text.encode(draw(ENCODINGS), "replace")


CONTENTS = (
    st.binary(max_size=100)
    | st.lists(PIECES, max_size=20).map(b"".join)
    | st.lists(PIECES, max_size=20).map(lambda pieces: b"text,label,slice\n" + b"".join(pieces))
    | mutated_files()
    | objects()
    | encoded()
)


def accepted_by_api(text: str, label: str) -> None:
    """Ask the API's own parser, with the lone surrogates and NUL that JSON can carry."""
    request = parse(json.dumps({"inputs": [text]}).encode(), PredictV2Request, LIMITS)
    assert request.inputs == [text]
    check_lengths([text], "inputs.{}".format, LIMITS)
    body = json.dumps({"text": text}, ensure_ascii=False, separators=(",", ":")).encode()
    assert len(body) <= LIMITS.max_body_bytes
    feedback = {"feedback": [{"request_id": "a", "item": 0, "label": label}]}
    parse(json.dumps(feedback).encode(), FeedbackRequest, LIMITS)


def read_or_refuse(path: Path) -> Rows | str:
    try:
        return read_rows(path, Columns(slices=("slice",)), LIMITS)
    except DataRejected as error:
        return error.message


@settings(max_examples=400, deadline=None)
@given(SUFFIXES, CONTENTS)
def test_any_file_ends_in_rows_of_the_api_or_in_one_line(suffix: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        rows = read_or_refuse(path)
    if isinstance(rows, str):
        assert rows.isprintable()
        assert rows.startswith(f"{path}: ")
        return
    for text, label, value in zip(rows.texts, rows.labels, rows.slices["slice"], strict=True):
        accepted_by_api(text, label)
        assert value.strip()
        value.encode()


ACCEPTED = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=40).filter(
    lambda text: text_problem(text) is None
)
TABLE = st.lists(st.tuples(ACCEPTED, ACCEPTED), min_size=1, max_size=5)


@st.composite
def separated_values(draw: st.DrawFn, rows: list[tuple[str, str]]) -> tuple[str, bytes]:
    delimiter = draw(st.sampled_from(",;\t|"))
    quoting: Literal[0, 1] = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    file = io.StringIO(newline="")
    file.write(draw(st.sampled_from(["", f"sep={delimiter}\r\n"])))
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting)
    writer.writerows([("", "label", "text"), *((0, label, text) for text, label in rows)])
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
    return ".csv", file.getvalue().encode(encoding)


@st.composite
def lines(draw: st.DrawFn, rows: list[tuple[str, str]]) -> tuple[str, bytes]:
    ascii_only, end = draw(st.booleans()), draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    objects = ({"text": text, "label": label} for text, label in rows)
    text = end.join(json.dumps(row, ensure_ascii=ascii_only) for row in objects)
    return ".jsonl", text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])))


@st.composite
def columnar(draw: st.DrawFn, rows: list[tuple[str, str]]) -> tuple[str, bytes]:
    arrow = import_module("pyarrow")
    columns = {}
    for name, values in zip(("text", "label"), zip(*rows, strict=True), strict=True):
        kind = draw(st.sampled_from([arrow.string(), arrow.large_string(), arrow.binary()]))
        column = arrow.array([value.encode() for value in values], arrow.binary()).cast(kind)
        columns[name] = column.dictionary_encode() if draw(st.booleans()) else column
    return ".parquet", parquet(**columns)


@settings(max_examples=200, deadline=None)
@given(st.data(), TABLE)
def test_what_tools_write_is_read_back(data: st.DataObject, rows: list[tuple[str, str]]) -> None:
    suffix, content = data.draw(separated_values(rows) | lines(rows) | columnar(rows))
    if data.draw(st.booleans()):
        content = gzip.compress(content)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(content)
        written = read_rows(path, Columns())
    assert [*zip(written.texts, written.labels, strict=True)] == rows
