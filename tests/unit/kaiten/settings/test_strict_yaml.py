"""YAML in which something would be lost or changed in silence is refused by line and key."""

import json

import pytest

from kaiten.settings.strict_yaml import DuplicateKey, InvalidYaml, load, reject_duplicate_keys


def problems(content: str | bytes) -> list[tuple[int, str, str]]:
    with pytest.raises(InvalidYaml) as caught:
        load(content.encode() if isinstance(content, str) else content)
    return [(problem.line, problem.key, problem.reason) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("content", "line", "key", "reason"),
    [
        ("a:\n  x: 1\nb: 2\na:\n  y: 2\n", 4, "a", "is given twice, first at line 1"),
        ("a:\n  x: 1\n  x: 1\n", 3, "a.x", "is given twice, first at line 2"),
        ("a: {x: 1, x: 2}\n", 1, "a.x", "is given twice"),
        ("a:\n- b: 1\n  b: 2\n", 3, "a.0.b", "is given twice, first at line 2"),
        ('{"a": {"b": 1, "b": 2}}', 1, "a.b", "is given twice"),
        ("a:\n\tx: 1\n", 2, "", "by a tab; use spaces"),
        ("a:\tx\n  b: 1\n", 1, "", "by a tab; use spaces"),
        ("a: &b 1\n", 1, "", "has an anchor (&) or an alias (*)"),
        ("b: 1\na: *b\n", 2, "", "has an anchor (&) or an alias (*)"),
        ("a:\n  <<: {x: 1}\n", 2, "a", "has a merge key (<<)"),
        ("a: 1\n---\nb: 2\n", 2, "", "is a second document"),
        ("a: !!python/object/apply:os.system ['id']\n", 1, "", "has a tag (!)"),
        ("a: !secret x\n", 1, "", "has a tag (!)"),
        ("1: a\n", 1, "", "has a key that YAML does not read as text"),
        ("a:\n  off: a\n", 2, "a", "has a key that YAML does not read as text"),
        ("? [a, b]\n: c\n", 1, "", "has a key that YAML does not read as text"),
        ("~: a\n", 1, "", "has a key that YAML does not read as text"),
        ("a: 012\n", 1, "a", "is read as an octal number"),
        ("a: 0x1F\n", 1, "a", "is read as a hexadecimal or binary number"),
        ("a: 0b11\n", 1, "a", "is read as a hexadecimal or binary number"),
        ("a: 1:30\n", 1, "a", "is read as a number to base 60"),
        ("a: 1:30.5\n", 1, "a", "is read as a number to base 60"),
        ("a: 2026-13-45\n", 1, "a", "cannot be read as the date or number"),
        (f"a: {'9' * 5000}\n", 1, "a", "cannot be read as the date or number"),
        ("a: one\n  two\n", 1, "a", "continues in the next line"),
        ("- a\n", 1, "", "is not a mapping"),
        ("text\n", 1, "", "is not a mapping"),
        ("a: [1\nb: 2\n", 2, "", "is not valid YAML"),
        ("[" * 50_000, 1, "", "is nested over 20 levels deep"),
        (b"a: 1\nb: \xe9\n", 2, "", "is not in UTF-8"),
        ("a: 1\n".encode("utf-16"), 1, "", "is not in UTF-8"),
        (b"a: 1\nb: \x00\n", 2, "", "contains a control character"),
    ],
)
def test_what_would_be_lost_is_refused_by_line_and_key(
    content: str | bytes, line: int, key: str, reason: str
) -> None:
    (problem,) = problems(content)
    assert problem[:2] == (line, key)
    assert reason in problem[2]


def test_problems_are_sorted_by_line() -> None:
    content = "a: 012\nb: 1:30\na: 3\n"
    assert [line for line, _, _ in problems(content)] == [1, 2, 3]


def test_value_that_may_be_a_secret_is_not_quoted() -> None:
    assert "0123456701234567" not in str(problems("secret: 0123456701234567\n"))


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("---\na: 1\n", {"a": 1}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1_000\nb: -0\nc: 0.5\nd: 1e3\n", {"a": 1000, "b": 0, "c": 0.5, "d": "1e3"}),
        ("a: '012'\nb: \"1:30\"\nc: 'off'\n", {"a": "012", "b": "1:30", "c": "off"}),
        ("a: [x:1.0.0, y:2.0.0]\nb:\n", {"a": ["x:1.0.0", "y:2.0.0"], "b": None}),
        ("a: |\n  one\n  two\nb: >-\n  c\n  d\n", {"a": "one\ntwo\n", "b": "c d"}),
        ("a: true\nb: http://h:3000/x\n", {"a": True, "b": "http://h:3000/x"}),
    ],
)
def test_plain_values_are_read(content: str, values: object) -> None:
    assert load(content.encode()).values == values


def test_entries_tell_the_line_of_each_key() -> None:
    entries = load(b"a:\n  b: 1\nc:\n- d: 2\n").entries
    lines = {entry.key: entry.line for entry in entries}
    assert lines == {"a": 1, "a.b": 2, "c": 3, "c.0": 4, "c.0.d": 4}


def test_keys_that_differ_in_case_or_by_a_dash_are_two() -> None:
    text = b"scope_map: {predictions-write: 1, Predictions_Write: 2, predictions_write: 3}"
    assert list(load(text).values["scope_map"].values()) == [1, 2, 3]


def test_duplicate_json_key_is_rejected() -> None:
    assert json.loads('{"a": {"b": 1}}', object_pairs_hook=reject_duplicate_keys) == {"a": {"b": 1}}
    with pytest.raises(DuplicateKey, match="the key b occurs twice"):
        json.loads('{"a": {"b": 1, "b": 1}}', object_pairs_hook=reject_duplicate_keys)
