"""Checks that every environment variable with our prefix takes effect.

pydantic ignores a variable that names no setting, and one of two spellings of the same name.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic_settings import NoDecode

from kaiten.errors import Detail
from kaiten.settings import strict_yaml
from kaiten.settings.environment import PREFIX
from kaiten.settings.setting_paths import (
    UnknownSetting,
    all_paths,
    annotation_at,
    intended_path,
    is_collection,
    section_of,
)

# Not settings themselves: they say where the settings are.
_SOURCES = ("config", "secrets", "snapshot")
# Kubernetes sets these for a Service whose name begins with "kaiten".
_SET_BY_KUBERNETES = re.compile(r"(.+_)?(SERVICE_(HOST|PORT.*)|PORT(_\d.*)?)")


def variable_name(path: Sequence[str]) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{'__'.join(path)}".upper()


def variable_in_force(path: Sequence[str]) -> str | None:
    """Return the variable that sets a setting, or one that contains it as JSON, if any."""
    names = (variable_name(path[:length]) for length in range(len(path), 0, -1))
    return next((name for name in names if os.environ.get(name)), None)


def variable_problems(root: type[BaseModel]) -> list[Detail]:
    """Return the problems of all variables with our prefix; ``root`` is the settings' model."""
    problems: list[Detail] = []
    for name, value in os.environ.items():
        section = name.upper().removeprefix(PREFIX).partition("__")[0].lower()
        if not name.upper().startswith(PREFIX):
            continue
        if section in root.model_fields:
            problems += _setting_problems(root, name, value)
        elif name.startswith(PREFIX):
            problems += _unknown_variable(root, name)
    return problems


def _unknown_variable(root: type[BaseModel], name: str) -> Iterator[Detail]:
    suffix = name.removeprefix(PREFIX)
    if suffix.lower() in _SOURCES or _SET_BY_KUBERNETES.fullmatch(suffix):
        return
    names = [*_SOURCES, *("__".join(path) for path in all_paths(root))]
    guesses = get_close_matches(suffix.lower(), names, n=1)
    guess = f"; did you mean {PREFIX}{guesses[0].upper()}?" if guesses else "; remove it"
    yield Detail(name, f"is not a setting{guess}")


def _setting_problems(root: type[BaseModel], name: str, value: str) -> Iterator[Detail]:
    if name != name.upper():
        yield Detail(name, f"is not in capitals; write {name.upper()}")
        return
    path = name.removeprefix(PREFIX).lower().split("__")
    try:
        annotation = annotation_at(root, path)
    except UnknownSetting as error:
        intended = intended_path(root, error)
        remedy = f"did you mean {variable_name(intended)}?" if intended else "remove it"
        yield Detail(".".join(error.path), f"is not a setting ({name}); {remedy}")
        return
    if value and section_of(annotation):
        yield Detail(name, "is a section; set each of its keys, as KAITEN_SECTION__KEY")
    elif value.lstrip().startswith(("[", "{")) or (value and _needs_json(root, path)):
        yield from _json_problems(name, value, annotation)


def _needs_json(root: type[BaseModel], path: Sequence[str]) -> bool:
    """Return whether a setting holds several values and has no notation of its own for them."""
    section = section_of(annotation_at(root, path[:-1]))
    field = section.model_fields.get(path[-1]) if section else None
    if field is None:
        return False
    return is_collection(field.annotation) and NoDecode not in field.metadata


def _json_problems(name: str, value: str, annotation: object) -> Iterator[Detail]:
    """Yield why a variable's JSON cannot be parsed, or the first key that occurs twice, if any."""
    try:
        json.loads(value, object_pairs_hook=strict_yaml.reject_duplicate_keys)
    except strict_yaml.DuplicateKey as error:
        yield Detail(name, f"contains the key {error.key} twice; remove one of the two")
    except RecursionError:
        yield Detail(name, "is nested too deeply; check its brackets")
    except json.JSONDecodeError as error:
        if is_collection(annotation):
            # The error's message quotes nothing of the value.
            place = f"is not valid JSON: {error.msg} at character {error.pos + 1}"
            yield Detail(name, f"{place}; write it as {_json_form(annotation)}, with the quotes")
    except ValueError:
        if is_collection(annotation):
            # Python parses no integer of over 4,300 digits.
            yield Detail(name, "contains a number with too many digits; correct it")


def _json_form(annotation: object) -> str:
    if get_origin(annotation) is dict:
        return '{"NAME": "VALUE"}'
    return '[{"KEY": "VALUE"}]' if section_of(get_args(annotation)[0]) else '["VALUE"]'
