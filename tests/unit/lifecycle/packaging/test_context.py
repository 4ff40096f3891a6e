"""The folder that a bento is built from."""

from pathlib import Path

import pytest
import yaml

from kaiten.errors import BuildRefused
from kaiten.settings.environment import ROOT
from lifecycle.packaging.context import (
    combine_digests,
    included_files,
    pin_models,
    sha256_by_path,
    stage_files,
)

MODELS = ["ours:1.0.0", "theirs:2.0.0"]


def test_pins_replace_the_models_and_nothing_else() -> None:
    text = (ROOT / "kaiten.yaml").read_text(encoding="utf-8")
    pinned = pin_models(text, MODELS)
    assert yaml.safe_load(pinned)["serving"]["models"] == MODELS
    before, after = text.splitlines(), pinned.splitlines()
    assert len(before) == len(after)
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["  models: [ours:1.0.0, theirs:2.0.0]"]


@pytest.mark.parametrize(
    "text",
    [
        "serving:\n  models:\n    - other:1.0.0\n    - more:1.0.0\n  drain_s: 5\n",
        "serving:\n  drain_s: 5\n",
        "serving: {models: [other:1.0.0], drain_s: 5}\n",
    ],
)
def test_models_are_pinned_however_they_are_written(text: str) -> None:
    assert yaml.safe_load(pin_models(text, MODELS)) == {"serving": {"models": MODELS, "drain_s": 5}}


@pytest.mark.parametrize("text", ["", "logging: {level: info}\n", "# nothing\n"])
def test_models_are_pinned_where_none_were_named(text: str) -> None:
    settings = yaml.safe_load(pin_models(text, MODELS))
    assert settings == {**(yaml.safe_load(text) or {}), "serving": {"models": MODELS}}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    for name in ("service.py", "kaiten.yaml", "README.md", "secret.env", "kaiten/a.py", "notes.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    (folder / "bentofile.yaml").write_text(
        "include: [/service.py, /kaiten.yaml, '/kaiten/**/*.py']\n"
    )
    return folder


@pytest.mark.parametrize("name", ["README.md", "kaiten/link.py", "kaiten/more"])
def test_link_that_leaves_the_project_is_refused(name: str, project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.py").write_text("secret")
    (project / name).unlink(missing_ok=True)
    (project / name).symlink_to(tmp_path / "outside" / ("" if name.endswith("more") else "a.py"))
    with pytest.raises(BuildRefused, match="link"):
        stage_files(project, included_files(project), tmp_path / "staged", MODELS)


def test_link_within_the_project_is_staged_as_a_file(project: Path, tmp_path: Path) -> None:
    (project / "kaiten" / "link.py").symlink_to("a.py")
    stage_files(project, included_files(project), tmp_path / "staged", MODELS)
    link = tmp_path / "staged" / "kaiten" / "link.py"
    assert (link.read_text(), link.is_symlink()) == ("# kaiten/a.py\n", False)


def test_only_what_is_listed_is_staged(project: Path, tmp_path: Path) -> None:
    (project / "service.py").chmod(0o777)
    stage_files(project, included_files(project), tmp_path / "staged", MODELS)
    files = sha256_by_path(tmp_path / "staged")
    assert files.keys() == {"service.py", "kaiten.yaml", "README.md", "kaiten/a.py"}
    assert (tmp_path / "staged" / "service.py").stat().st_mode & 0o777 == 0o644


def test_digest_covers_names_and_contents_only(project: Path) -> None:
    before = combine_digests(sha256_by_path(project))
    (project / "notes.py").touch()
    assert combine_digests(sha256_by_path(project)) == before
    (project / "notes.py").write_text("changed")
    changed = combine_digests(sha256_by_path(project))
    (project / "notes.py").rename(project / "others.py")
    assert len({before, changed, combine_digests(sha256_by_path(project))}) == 3


def test_folder_without_a_bentofile_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(BuildRefused, match="from a checkout of Kaiten"):
        included_files(tmp_path)
