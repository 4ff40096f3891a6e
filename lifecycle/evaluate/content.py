"""Reads a data file once, and decodes it: size limit, gzip, file signatures, byte order marks."""

import codecs
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kaiten.confinement import UnsafeFile, open_file, printable

# Of the file, and of its content once unpacked: a megabyte of gzip can hold a gigabyte.
MAX_BYTES = 512 * 1024 * 1024
SAMPLE = "Use a sample of it."
PARQUET_SIGNATURE = b"PAR1"
_GZIP_SIGNATURE = b"\x1f\x8b"
_UNPACK = "Unpack it first."
_SAVE_SHEET = "Save the sheet as CSV (UTF-8)."
_WRITE_TEXT = "Write it as JSONL, CSV or Parquet."
_SIGNATURES = (
    (PARQUET_SIGNATURE, "a Parquet file", "Name it .parquet."),
    (b"PARE", "an encrypted Parquet file", "Write it without encryption."),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", f"{_UNPACK} {_SAVE_SHEET}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook (.xls)", _SAVE_SHEET),
    (_GZIP_SIGNATURE, "compressed with gzip twice", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"BZh91AY&SY", "compressed with bzip2", _UNPACK),
    (b"ARROW1\x00\x00", "an Arrow or Feather file", _WRITE_TEXT),
    (b"Obj\x01", "an Avro file", _WRITE_TEXT),
    (b"SQLite format 3\x00", "an SQLite database", _WRITE_TEXT),
    (b"%PDF-", "a PDF file", _WRITE_TEXT),
)
# The marks of UTF-32 begin with those of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_MAX_NAMES = 5
_MAX_NAME_CHARS = 60


class InvalidData(Exception):
    """Data that cannot be used: the ``reason`` and the ``remedy``, each in one line."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason, self.remedy = reason, remedy


def place(row: int, line: int | None, column: str | None = None) -> str:
    """Return where a cell is; row 0 is the header, and Parquet has no lines."""
    text = f"row {row}" if row else "the header"
    if line not in {None, row}:
        text += f" (line {line})"
    return text if column is None else f"{text}, column {shown(column)}"


def shown(name: str) -> str:
    """Return a name or label in quotes, shortened, with control characters escaped."""
    return repr(name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}...")


def listed(names: Iterable[str]) -> str:
    """Return the first few of the names, and the number of the others."""
    names = [*names]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(map(shown, names[:_MAX_NAMES])) + more


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file as it is stored.

    Raises:
        InvalidData: It is not a regular file, cannot be read, or is too large.

    """
    try:
        if path.is_dir():
            raise InvalidData("is a folder", "Give the path of a file.")
        with open_file(path) as file:
            content = file.read(MAX_BYTES + 1)
    except UnsafeFile as error:
        raise InvalidData(error.reason, error.remedy) from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise InvalidData(reason, "Give the path of a file that this user may read.") from None
    check_size(len(content))
    return content


def unpack(content: bytes) -> bytes:
    """Return the content of a gzip file, and any other content as it is.

    Raises:
        InvalidData: It is empty, damaged or too large.

    """
    if content.startswith(_GZIP_SIGNATURE):
        content = _gunzip(content)
    if not content:
        raise InvalidData("is empty", "Write a text and its label in each row.")
    return content


def _gunzip(content: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = f"is a damaged gzip file ({printable(str(error))})"
        raise InvalidData(reason, "Compress or copy it again.") from None
    check_size(len(unpacked))
    return unpacked


def check_size(size_bytes: int) -> None:
    """Raise InvalidData for content over the limit."""
    if size_bytes > MAX_BYTES:
        raise InvalidData(f"holds over {MAX_BYTES >> 20} MiB", SAMPLE)


def check_signature(content: bytes, expected: bytes | None = None) -> None:
    """Raise InvalidData for content that begins as another format than ``expected`` does."""
    for signature, kind, remedy in _SIGNATURES:
        if content.startswith(signature) and signature != expected:
            raise InvalidData(f"is {kind}", remedy)


@dataclass(frozen=True, slots=True)
class Text:
    """Encoded text: ``start`` is the number of bytes of its byte order mark."""

    content: bytes
    encoding: str
    start: int = 0

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Detect the encoding: UTF-8, or by its byte order mark UTF-16 or UTF-32.

        Raises:
            InvalidData: It is not text, or looks like UTF-16 without a mark.

        """
        check_signature(content)
        for mark, encoding in _BYTE_ORDER_MARKS:
            if content.startswith(mark):
                return cls(content, encoding, len(mark))
        if content[:2].count(0) == 1:
            source = "utf-16be" if content.startswith(b"\0") else "utf-16le"
            remedy = f"Convert it: iconv -f {source} -t utf-8 FILE > NEW."
            raise InvalidData("looks like UTF-16 without a byte order mark", remedy)
        return cls(content, "utf-8")

    def lines(self, newline: str | None) -> Iterator[str]:
        r"""Yield the lines, which end with ``\n``, ``\r\n`` or ``\r``.

        ``newline`` is None to translate their ends to ``\n``, and empty to leave them as they are.

        Raises:
            InvalidData: A byte is not in the encoding.

        """
        buffer = io.BytesIO(self.content)
        buffer.seek(self.start)
        try:
            yield from io.TextIOWrapper(buffer, self.encoding, newline=newline)
        except UnicodeDecodeError:
            raise self._undecodable() from None

    def _undecodable(self) -> InvalidData:
        """Return the error with its line; TextIOWrapper knows the position in a chunk only."""
        content = self.content[self.start :]
        try:
            content.decode(self.encoding)
        except UnicodeDecodeError as error:
            before, byte = content[: error.start].decode(self.encoding), content[error.start]
        line = len(_LINE_END.findall(before)) + 1
        reason = f"line {line}: holds the byte 0x{byte:02x}, which is not {self.encoding}"
        remedy = "Convert it to UTF-8; from Latin-1: iconv -f latin1 -t utf-8 FILE > NEW."
        return InvalidData(reason, remedy)
