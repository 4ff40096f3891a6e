"""A strict YAML loader for configuration files: nothing is lost or reinterpreted silently.

PyYAML keeps only the last value of a duplicate key, anchors and merge keys copy values between
distant lines, and YAML 1.1 reads ``012`` as ten and ``1:30`` as ninety. A settings file needs none
of these, so each is refused with its line and key.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class YamlProblem:
    """A problem at a line, counted from 1; ``key`` is a dotted path, empty for the document."""

    line: int
    key: str
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.key or 'the document'} {self.reason}"


class InvalidYaml(Exception):
    """A refused document; ``problems`` says why, sorted by line."""

    def __init__(self, problems: Sequence[YamlProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


class DuplicateKey(ValueError):
    """A key that occurs twice in one JSON object."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key} occurs twice")
        self.key = key


@dataclass(frozen=True, slots=True)
class YamlEntry:
    """A value of a document: its path, the line of its key, and its node."""

    path: tuple[str, ...]
    line: int
    node: yaml.Node

    @property
    def key(self) -> str:
        """The dotted path."""
        return ".".join(self.path)

    @property
    def is_empty(self) -> bool:
        """Whether the value is missing, null or an empty text."""
        return self.node.tag == f"{_TAG}null" or self.node.value == ""

    @property
    def boolean(self) -> str | None:
        """The word, in lower case, that YAML reads as true or false; None for any other value."""
        return self.node.value.lower() if self.node.tag == f"{_TAG}bool" else None

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping."""
        return isinstance(self.node, yaml.MappingNode)

    @property
    def is_number(self) -> bool:
        """Whether YAML reads the value as a number."""
        return self.node.tag in {f"{_TAG}int", f"{_TAG}float"}


@dataclass(frozen=True, slots=True)
class YamlDocument:
    """The values of a mapping, and all its entries, list items included, sorted by line."""

    values: dict[str, Any]
    entries: tuple[YamlEntry, ...]


def load(content: bytes) -> YamlDocument:
    """Read a UTF-8 document that is a mapping or empty.

    Raises:
        InvalidYaml: The document is malformed, or uses a feature that this module refuses.

    """
    text = _decoded(content)
    try:
        _check_events(text)
        root = yaml.compose(text, yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        reason = "contains a control character; write it in quotes, as \\x00 or \\u0000"
        raise InvalidYaml([YamlProblem(line, "", reason)]) from None
    except yaml.MarkedYAMLError as error:
        raise InvalidYaml([_syntax_problem(error)]) from None
    if root is None:
        return YamlDocument({}, ())
    if not isinstance(root, yaml.MappingNode):
        reason = "is not a mapping; write key: value lines"
        raise InvalidYaml([YamlProblem(_line(root), "", reason)])
    reader = _Reader()
    values = reader.read(root, (), 1)
    if reader.problems:
        raise InvalidYaml(sorted(reader.problems, key=lambda problem: problem.line))
    return YamlDocument(values, tuple(reader.entries))


def reject_duplicate_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dictionary: an ``object_pairs_hook`` for json.

    Raises:
        DuplicateKey: A key occurs twice.

    """
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise DuplicateKey(next(key for key, count in counts.items() if count > 1))
    return values


class _Reader:
    """Turns nodes into values, and collects their entries and problems."""

    def __init__(self) -> None:
        self.problems: list[YamlProblem] = []
        self.entries: list[YamlEntry] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: tuple[str, ...], line: int) -> Any:  # noqa: ANN401
        if path:
            self.entries.append(YamlEntry(path, line, node))
        if isinstance(node, yaml.MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.read(item, (*path, str(index)), _line(item))
                for index, item in enumerate(node.value)
            ]
        return self._read_scalar(node, path, line)

    def _read_mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == f"{_TAG}merge":
                self._report(line, path, "has a merge key (<<); write the values out")
                continue
            if key_node.tag != f"{_TAG}str":
                reason = "has a key that YAML does not read as text; write the key in quotes"
                self._report(line, path, reason)
                continue
            key: str = key_node.value
            first = lines.get(key)
            if first is not None:
                reason = f"is given twice, first at line {first}; keep one of the two"
                self._report(line, (*path, key), reason)
            lines[key] = line
            values[key] = self.read(value_node, (*path, key), line)
        return values

    def _read_scalar(self, node: Any, path: tuple[str, ...], line: int) -> Any:  # noqa: ANN401
        if node.style is None and node.start_mark.line != node.end_mark.line:
            reason = "continues in the next line; correct the indentation, or write it in quotes"
            self._report(line, path, reason)
        if form := _misread_number(node):
            # The message does not show the value, which may be a misplaced secret.
            reason = f"is read as {form}; write it in decimal, or in quotes if it is text"
            self._report(line, path, reason)
        try:
            return self._constructor.construct_document(node)
        except (ValueError, yaml.YAMLError):
            self._report(line, path, "cannot be read as the date or number that it looks like")
            return None

    def _report(self, line: int, path: tuple[str, ...], reason: str) -> None:
        self.problems.append(YamlProblem(line, ".".join(path), reason))


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InvalidYaml([YamlProblem(line, "", "is not in UTF-8; convert the file")]) from None


def _check_events(text: str) -> None:
    """Refuse anchors, aliases, tags, second documents, and nesting that exhausts the stack."""
    depth = documents = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = _line(event)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                reason = "is a second document in the file; keep one, without a line of ---"
                raise InvalidYaml([YamlProblem(line, "", reason)])
        elif isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            reason = "has an anchor (&) or an alias (*); write the value out"
            raise InvalidYaml([YamlProblem(line, "", reason)])
        elif isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None):
            raise InvalidYaml([YamlProblem(line, "", "has a tag (!); remove it")])
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            reason = f"is nested over {_MAX_DEPTH} levels deep; check its brackets"
            raise InvalidYaml([YamlProblem(line, "", reason)])


def _syntax_problem(error: yaml.MarkedYAMLError) -> YamlProblem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if "'\\t'" in str(error.problem):
        return YamlProblem(line, "", "is indented or separated by a tab; use spaces")
    return YamlProblem(
        line, "", f"is not valid YAML: {error.problem}; correct the indentation or the quotes"
    )


def _misread_number(node: Any) -> str | None:  # noqa: ANN401
    """Return the notation in which YAML 1.1 reads a number that looks decimal, else None."""
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
