"""YAML that people write, read so that nothing in it is lost or changed without a word.

YAML's own rules let a key that stands twice lose all but its last value, anchors and merge keys
move values to where nobody looks, and YAML 1.1 read ``012`` as ten and ``1:30`` as ninety. None of
it is needed in a settings file, and all of it is refused by line and key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at a line, counted from 1; ``key`` is a dotted path, empty for the document."""

    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.key or 'the document'} {self.reason}"


class InvalidYaml(Exception):
    """A document that is not read; ``problems`` says why, in the order of its lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class DuplicateKey(ValueError):
    """A key that stands twice in one JSON object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key} stands twice")
        self.key = key


@dataclass(frozen=True, slots=True)
class Entry:
    """A value of a document: its dotted path, the line of its key, and how it is written."""

    path: tuple[str, ...]
    line: int
    node: yaml.Node

    @property
    def key(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether nothing, null or an empty text is written after the key."""
        return self.node.tag == f"{_TAG}null" or self.node.value == ""

    @property
    def boolean(self) -> str | None:
        """The word that is read as true or false, None for any other value."""
        return self.node.value.lower() if self.node.tag == f"{_TAG}bool" else None

    @property
    def is_mapping(self) -> bool:
        """Whether keys stand below it."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_number(self) -> bool:
        """Whether it is read as a number."""
        return self.node.tag in {f"{_TAG}int", f"{_TAG}float"}


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping, and all its entries in the order of their lines, those of lists included."""

    values: dict[str, Any]
    entries: tuple[Entry, ...]


def load(content: bytes) -> Document:
    """Read a document whose top level is a mapping, or which is empty; InvalidYaml names lines."""
    text = _decoded(content)
    try:
        _check_events(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = "holds a control character; write it in quotes, as \\x00 or \\u0000"
        raise InvalidYaml([Problem(line, "", reason)]) from None
    except yaml.MarkedYAMLError as error:
        raise InvalidYaml([_syntax(error)]) from None
    if root is None:
        return Document({}, ())
    if not isinstance(root, yaml.MappingNode):
        reason = "is no mapping; write key: value lines"
        raise InvalidYaml([Problem(_line(root), "", reason)])
    reader = _Reader()
    values = reader.read(root, (), 1)
    if reader.problems:
        raise InvalidYaml(sorted(reader.problems, key=lambda problem: problem.line))
    return Document(values, tuple(reader.entries))


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object's pairs as a dictionary; DuplicateKey for a key that stands twice.

    It is an ``object_pairs_hook`` of the json module.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return found


class _Reader:
    """Turns nodes into values, and keeps what is wrong with them and where they stand."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.entries: list[Entry] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: tuple[str, ...], line: int) -> Any:  # noqa: ANN401
        if path:
            self.entries.append(Entry(path, line, node))
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.read(each, (*path, str(index)), _line(each))
                for index, each in enumerate(node.value)
            ]
        return self._read_scalar(node, path, line)

    def _read_mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == f"{_TAG}merge":
                self._tell(line, path, "has a merge key (<<); write the values out")
                continue
            if key_node.tag != f"{_TAG}str":
                reason = "has a key that YAML does not read as text; write the key in quotes"
                self._tell(line, path, reason)
                continue
            key: str = key_node.value
            first = lines.get(key)
            if first is not None:
                reason = f"is given twice, first at line {first}; keep one of the two"
                self._tell(line, (*path, key), reason)
            lines[key] = line
            values[key] = self.read(value_node, (*path, key), line)
        return values

    def _read_scalar(self, node: Any, path: tuple[str, ...], line: int) -> Any:  # noqa: ANN401
        if node.style is None and node.start_mark.line != node.end_mark.line:
            reason = "goes on in the next line; mend the indentation, or write it in quotes"
            self._tell(line, path, reason)
        if form := _surprise(node):
            # The value is not quoted here: it may be a secret that stands in the wrong file.
            reason = f"is read as {form}; write it in decimal, or in quotes if it is text"
            self._tell(line, path, reason)
        try:
            return self._constructor.construct_document(node)
        except (ValueError, yaml.YAMLError):
            self._tell(line, path, "cannot be read as the date or number that it looks like")
            return None

    def _tell(self, line: int, path: tuple[str, ...], reason: str) -> None:
        self.problems.append(Problem(line, ".".join(path), reason))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidYaml([Problem(line, "", "is not in UTF-8; convert the file")]) from None


def _check_events(text: str) -> None:
    """Refuse what changes values from afar, and nesting that would exhaust the stack."""
    depth = documents = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = _line(event)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                reason = "is a second document in the file; keep one, without a line of ---"
                raise InvalidYaml([Problem(line, "", reason)])
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            reason = "has an anchor (&) or an alias (*); write the value out"
            raise InvalidYaml([Problem(line, "", reason)])
        elif isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise InvalidYaml([Problem(line, "", "has a tag (!); remove it")])
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            reason = f"is nested over {_MAX_DEPTH} levels deep; mend its brackets"
            raise InvalidYaml([Problem(line, "", reason)])


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if "'\\t'" in str(error.problem):
        return Problem(line, "", "is indented or separated by a tab; use spaces")
    return Problem(line, "", f"is no YAML: {error.problem}; mend the indentation or the quotes")


def _surprise(node: Any) -> str | None:  # noqa: ANN401
    """Return what YAML 1.1 takes a plain scalar for where that is not what it looks like."""
    if node.style is not None:
        return None
    text = node.value.replace("_", "").lstrip("+-").lower()
    if node.tag in {f"{_TAG}int", f"{_TAG}float"} and ":" in text:
        return "a number to base 60"
    if node.tag != f"{_TAG}int":
        return None
    if text.startswith(("0x", "0b")):
        return "a hexadecimal or binary number"
    return "an octal number" if len(text) > 1 and text.startswith("0") else None


def _line(node: Any) -> int:  # noqa: ANN401  its types lack the marks
    return int(node.start_mark.line) + 1
