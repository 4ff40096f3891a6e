"""The folder that a bento is built from: the included files, and settings that pin its models."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pathspec
import yaml

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import BuildRefused
from lifecycle.card import sha256

BENTOFILE = "bentofile.yaml"
_SETTINGS = "kaiten.yaml"
_README = "README.md"


def included_files(project: Path) -> list[str]:
    """Return the files that the project's bentofile.yaml includes, and the README."""
    patterns = read_bentofile(project)["include"]
    # BentoML matches the patterns with the same library and syntax.
    spec = pathspec.PathSpec.from_lines("gitignore", patterns)
    return sorted([*spec.match_tree_files(project), _README])


def stage_files(project: Path, files: Sequence[str], target: Path, models: Sequence[str]) -> None:
    """Copy files of the project with equal modes, and pin the models in the settings.

    Raises:
        BuildRefused: A file cannot be copied, or is a link out of the project, whose target would
            go into the image.

    """
    # Some tools check a project out as hard links.
    with ConfinedFolder(project, hard_links=True) as folder:
        for name in files:
            try:
                folder.copy(name, target / name)
            except UnsafeFile as error:
                raise BuildRefused(f"{project / name}: {error.reason}. {error.remedy}") from None
            except OSError as error:
                reason = f"cannot be copied: {error.strerror}"
                raise BuildRefused(f"{project / name} {reason}.") from None
            (target / name).chmod(0o644)
    settings = target / _SETTINGS
    text = settings.read_text(encoding="utf-8")
    settings.write_text(pin_models(text, models), encoding="utf-8")


def read_bentofile(project: Path) -> dict[str, Any]:
    """Return the content of bentofile.yaml.

    Raises:
        BuildRefused: There is none.

    """
    try:
        text = (project / BENTOFILE).read_text(encoding="utf-8")
    except OSError:
        raise BuildRefused(
            f"There is no {BENTOFILE} in {project}. Build a bento from a checkout of Kaiten."
        ) from None
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def pin_models(settings: str, models: Sequence[str]) -> str:
    """Return the text of kaiten.yaml with serving.models replaced, and all else unchanged."""
    value = f"[{', '.join(models)}]"
    serving = _find_value(yaml.compose(settings), "serving")
    if serving is None:
        return f"{settings}\nserving:\n  models: {value}\n"
    node = _find_value(serving, "models")
    if node is None:
        start, indent = serving.start_mark.index, " " * serving.start_mark.column
        return f"{settings[:start]}models: {value}\n{indent}{settings[start:]}"
    # A block list ends where the next key begins.
    replaced = settings[node.start_mark.index : node.end_mark.index]
    rest = replaced[len(replaced.rstrip()) :] + settings[node.end_mark.index :]
    return settings[: node.start_mark.index] + value + rest


def _find_value(mapping: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(mapping, yaml.MappingNode):
        return None
    return next((value for name, value in mapping.value if name.value == key), None)


def combine_digests(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 over the paths and SHA-256 of files."""
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_by_path(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its path in it."""
    excluded = {*without}
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    return {
        name: sha256(path)
        for name, path in paths.items()
        if path.is_file() and name not in excluded
    }
