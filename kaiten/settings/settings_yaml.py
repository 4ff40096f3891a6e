"""Reads kaiten.yaml strictly: unknown keys, and values that YAML reinterprets, are errors."""

import os
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings import strict_yaml
from kaiten.settings.environment import bentoml_configuration, settings_file
from kaiten.settings.secrets import SECRET_SETTINGS
from kaiten.settings.setting_paths import (
    UnknownSetting,
    accepts,
    annotation_at,
    intended_path,
    section_of,
)
from kaiten.settings.variables import variable_name


def read_settings_file(file: Path, root: type[BaseModel]) -> dict[str, Any]:
    """Return the values of a settings file; ``root`` is the settings' model.

    Raises:
        InvalidSettings: The file is malformed, holds a secret, or has an unknown key.
        OSError: The file cannot be read.

    """
    document = _read_yaml(file)
    if problems := [*_key_problems(document, root), *_secrets_in_file(document)]:
        raise InvalidSettings(problems, str(file))
    return _without_empty_settings(document, root)


def lines_in_force() -> Mapping[str, int]:
    """Return the line of each setting that comes from the settings file, by its path."""
    file = settings_file()
    entries = _read_yaml(file).entries if file else ()
    variables = {name.upper() for name in os.environ}
    return {
        entry.key: entry.line for entry in entries if variable_name(entry.path) not in variables
    }


def lines_of_settings() -> Mapping[str, int]:
    """Return the line of each setting that the settings file sets, by its path."""
    file = settings_file()
    entries = _read_yaml(file).entries if file else ()
    return {entry.key: entry.line for entry in entries if not entry.is_empty}


def check_bentoml_configuration() -> None:
    """Check that BentoML would read its own configuration file as it is written.

    Raises:
        InvalidSettings: The file is malformed or cannot be read.

    """
    if file := bentoml_configuration():
        try:
            _read_yaml(Path(file), "BENTOML_CONFIG")
        except OSError as error:
            problem = Detail("BENTOML_CONFIG", f"{file} cannot be read: {error.strerror}")
            raise InvalidSettings([problem], "environment") from None


def _read_yaml(file: Path, name: str = "file") -> strict_yaml.YamlDocument:
    """Read a YAML file; ``name`` is the field of a problem with the file as a whole."""
    try:
        return strict_yaml.load(file.read_bytes())
    except strict_yaml.InvalidYaml as error:
        problems = [
            Detail(problem.key or name, f"line {problem.line}: {problem.reason}")
            for problem in error.problems
        ]
        raise InvalidSettings(problems, str(file)) from None


def _key_problems(document: strict_yaml.YamlDocument, root: type[BaseModel]) -> Iterator[Detail]:
    rejected: set[tuple[str, ...]] = set()
    for entry in document.entries:
        if any(entry.path[: len(path)] == path for path in rejected):
            continue
        try:
            reason = _value_problem(entry, annotation_at(root, entry.path))
        except UnknownSetting as error:
            reason = f"is not a setting{suggestion(error, root)}"
            rejected.add(error.path)
        if reason:
            rejected.add(entry.path)
            yield Detail(entry.key, f"line {entry.line}: {reason}")


def _secrets_in_file(document: strict_yaml.YamlDocument) -> Iterator[Detail]:
    for entry in document.entries:
        if entry.path in SECRET_SETTINGS:
            variable = variable_name(entry.path)
            yield Detail(
                entry.key,
                "is a secret, and this file goes into every bento; set "
                f"{variable}, or write it to the file {variable.lower()} in the folder that "
                "KAITEN_SECRETS names",
            )


def _without_empty_settings(
    document: strict_yaml.YamlDocument, root: type[BaseModel]
) -> dict[str, Any]:
    """Return the values without the settings that are left empty, so that their defaults apply.

    An empty variable means the same (env_ignore_empty). Read as None, ``tokens:`` in a template
    whose variable is not set would remove a limit; only ``off`` does that.
    """
    for entry in document.entries:
        *parents, name = entry.path
        if entry.is_empty and section_of(annotation_at(root, parents)):
            parent: Any = document.values
            for part in parents:
                parent = parent[int(part) if isinstance(parent, list) else part]
            del parent[name]
    return document.values


def suggestion(error: UnknownSetting, root: type[BaseModel]) -> str:
    """Return what to do about a key of the settings file that names no setting."""
    path = intended_path(root, error)
    if path is None:
        names = f", or use one of {', '.join(error.section.model_fields)}" if error.section else ""
        return f"; remove it{names}"
    if path in SECRET_SETTINGS:
        return f"; did you mean {'.'.join(path)}, a secret? Set {variable_name(path)} instead"
    if path == error.path[-1:]:
        return "; it is a top-level section: remove its indentation"
    if path[-1] == error.path[-1]:
        return f"; write it as {'.'.join(path)}, indented below {path[0]}:"
    return f"; did you mean {'.'.join(path)}?"


def _value_problem(entry: strict_yaml.YamlEntry, annotation: Any) -> str | None:  # noqa: ANN401
    """Return why a value does not fit its setting if pydantic would convert it without an error."""
    if section_of(annotation):
        if entry.is_empty:
            return "is an empty section; indent its keys below it, or remove it"
        return None if entry.is_mapping else "is a section; write key: value lines below it"
    if entry.boolean and not accepts(annotation, bool):
        # rate_limit accepts off, which YAML 1.1 reads as false, for no limit.
        if entry.path[0] == "rate_limit" and entry.boolean in {"off", "false", "no"}:
            return None
        return "is a word that YAML reads as true or false; write a number, or text in quotes"
    if entry.is_number and accepts(annotation, date):
        return "is a number, not a date; write it as 2026-12-31"
    return None
