"""The prose linter finds the habits that it names, and nothing in plain English."""

import subprocess
from pathlib import Path

import pytest

from tests.checks.prose import findings, passages_of, read_tree


def rules(path: str, text: str) -> list[str]:
    return [finding.rule for finding in findings(passages_of(path, text))]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Port 3000 can not be used.", "can not"),
        ("It returns what is left of it.", "what-is as a noun"),
        ("Until then nobody is let in.", "nobody"),
        ("A caller who waits gets a 503.", "who"),
        ("It stops where there is no secret.", "where there is"),
        ("The operator is told by a metric.", "told"),
        ("It runs, as is its habit.", "as is"),
        ("It must come or not be counted.", "or not be"),
        ("The keys cannot be had.", "be had"),
        ("Redis is away.", "away"),
        ("Mend the file.", "mend"),
        ("The setting is heeded.", "heed"),
        ("The worker goes on without it.", "go on"),
        ("'x' is no duration.", "is no"),
        ("NEVER do that.", "capitals"),
        (f"A {'very ' * 40}long sentence.", "long sentence"),
        (f"| {'Cell. ' * 50} | short |", "long table cell"),
        ("It can\nnot be split over lines.", "can not"),
    ],
)
def test_habit_is_found_in_a_document(text: str, rule: str) -> None:
    assert rules("docs/a.md", text) == [rule]


@pytest.mark.parametrize(
    "text",
    [
        "An operator who rotates a secret restarts the server.",
        "What is a lane? Who may call it?",
        "There is no such path, and it is no longer served.",
        "Set it, such as is shown below.",
        "```\nthis can not be prose\n```",
        "Use `what is` in code.",
        "<!-- can not -->",
    ],
)
def test_plain_english_and_code_pass(text: str) -> None:
    assert rules("docs/a.md", text) == []


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ('"""It can not."""\n', 1),
        ("x = 1\n# It can\n# not.\n", 2),
        ('\nraise ValueError("the file can not be read")\n', 2),
        ('x = 1\nprint(f"{x} can not be the file")\n', 2),
    ],
)
def test_docstrings_comments_and_messages_are_read(source: str, line: int) -> None:
    (finding,) = findings(passages_of("kaiten/a.py", source))
    assert (finding.rule, finding.path, finding.line) == ("can not", "kaiten/a.py", line)


def test_texts_of_tests_are_data() -> None:
    assert rules("tests/unit/test_a.py", 'TEXT = "I can not log in at all"\n') == []


def test_comments_of_other_files_are_read() -> None:
    assert rules("deploy/a.yaml", "# It can not.\nkey: can not be prose\n") == ["can not"]


def test_all_files_of_a_checkout_are_read(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("ignored.md\n")
    for name in ("new.md", "ignored.md"):
        (tmp_path / name).write_text("It can not.\n")
    assert [passage.path for passage in read_tree(tmp_path)] == ["new.md"]
