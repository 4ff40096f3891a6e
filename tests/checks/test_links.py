"""The link checker finds links, anchors and mentions of files that lead nowhere."""

from pathlib import Path

import pytest

from tests.checks.links import broken_links


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    (tmp_path / "kaiten").mkdir()
    (tmp_path / "kaiten" / "errors.py").write_text("")
    (tmp_path / "docs" / "b.md").write_text("# Title\n\n## At a *public* address: now\n")
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "[b](b.md) and [part](b.md#at-a-public-address-now)",
        "[here](#own)\n\n## Own\n",
        "[out](https://example.org/x) and `kaiten/errors.py` and `kaiten/`",
        "```\n[shown](nowhere.md)\n```",
        "the annotation `kaiten/first-replicas`",
    ],
)
def test_links_that_lead_somewhere_pass(root: Path, text: str) -> None:
    (root / "docs" / "a.md").write_text(text)
    assert list(broken_links(root, ["docs/a.md"])) == []


@pytest.mark.parametrize(
    ("name", "text", "target"),
    [
        ("docs/a.md", "[b](c.md)", "c.md"),
        ("docs/a.md", "[b](b.md#gone)", "b.md#gone"),
        ("docs/a.md", "![picture](gone.svg)", "gone.svg"),
        ("docs/a.md", "see `kaiten/gone.py`", "/kaiten/gone.py"),
        ("a.py", '"See docs/b.md#gone."', "/docs/b.md#gone"),
        ("deploy.yaml", "runbook: docs/gone.md", "/docs/gone.md"),
    ],
)
def test_link_that_leads_nowhere_is_named(root: Path, name: str, text: str, target: str) -> None:
    (root / name).write_text(f"\n{text}\n")
    assert list(broken_links(root, [name])) == [f"{name}:2: {target}"]
