"""The folder that a bento is built from: the listed files, and settings that pin its models."""

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


def files_of(project: Path) -> list[str]:
    """Return the files that the project's bentofile.yaml includes, and what describes it."""
    included = read_bentofile(project)["include"]
    # The syntax and the library that BentoML matches them with.
    spec = pathspec.PathSpec.from_lines("gitignore", included)
    return sorted([*spec.match_tree_files(project), _README])


def stage(project: Path, files: Sequence[str], target: Path, models: Sequence[str]) -> None:
    """Copy these files of the project, with all modes alike, and pin the models.

    BuildRefused for a link that leaves the project: what it names would go into the image.
    """
    # A hard link is how some tools check a project out.
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
    settings.write_text(pinned(text, models), encoding="utf-8")


def read_bentofile(project: Path) -> dict[str, Any]:
    """Return what bentofile.yaml says; BuildRefused where there is none."""
    try:
        text = (project / BENTOFILE).read_text(encoding="utf-8")
    except OSError:
        raise BuildRefused(
            f"There is no {BENTOFILE} in {project}. A bento is built from a checkout of Kaiten."
        ) from None
    told: dict[str, Any] = yaml.safe_load(text)
    return told


def pinned(settings: str, models: Sequence[str]) -> str:
    """Return the text of kaiten.yaml with serving.models replaced, and all else as it is."""
    value = f"[{', '.join(models)}]"
    serving = _value(yaml.compose(settings), "serving")
    if serving is None:
        return f"{settings}\nserving:\n  models: {value}\n"
    node = _value(serving, "models")
    if node is None:
        at, indent = serving.start_mark.index, " " * serving.start_mark.column
        return f"{settings[:at]}models: {value}\n{indent}{settings[at:]}"
    # A list in lines of its own ends where the next key begins.
    taken = settings[node.start_mark.index : node.end_mark.index]
    rest = taken[len(taken.rstrip()) :] + settings[node.end_mark.index :]
    return settings[: node.start_mark.index] + value + rest


def _value(mapping: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(mapping, yaml.MappingNode):
        return None
    return next((value for name, value in mapping.value if name.value == key), None)


def digest_of(files: Mapping[str, str]) -> str:
    """Return the SHA-256 of a list of files, by path and SHA-256 of each."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def digests(folder: Path, *, without: Iterable[str] = ()) -> dict[str, str]:
    """Return the SHA-256 of each file in a folder, by its path in it."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    left_out = {*without}
    return {
        name: sha256(path)
        for name, path in paths.items()
        if path.is_file() and name not in left_out
    }
