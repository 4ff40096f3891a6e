"""Checks that every environment variable with our prefix takes effect.

pydantic ignores a variable that names no setting, and one of two spellings of the same name.
"""

import json
import os
import re
from collections.abc import Iterator
from difflib import get_close_matches

from pydantic import BaseModel

from kaiten.errors import Detail
from kaiten.settings import strict_yaml
from kaiten.settings.environment import PREFIX
from kaiten.settings.setting_paths import UnknownSetting, annotation_at, section_of

# Not settings themselves: they say where the settings are.
_SOURCES = ("config", "secrets", "snapshot")
# Kubernetes sets these for a Service whose name begins with "kaiten".
_SET_BY_KUBERNETES = re.compile(r"(.+_)?(SERVICE_(HOST|PORT.*)|PORT(_\d.*)?)")


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
    section, names = suffix.lower().split("__")[0], [*root.model_fields, *_SOURCES]
    if section in names or _SET_BY_KUBERNETES.fullmatch(suffix):
        return
    guesses = get_close_matches(section, names, n=1)
    guess = f"; did you mean {PREFIX}{guesses[0].upper()}?" if guesses else "; remove it"
    yield Detail(name, f"is not a setting{guess}")


def _setting_problems(root: type[BaseModel], name: str, value: str) -> Iterator[Detail]:
    if name != name.upper():
        yield Detail(name, f"is not in capitals; write {name.upper()}")
        return
    try:
        annotation = annotation_at(root, name.removeprefix(PREFIX).lower().split("__"))
    except UnknownSetting as error:
        guess = PREFIX + "__".join((*error.path[:-1], error.closest or "")).upper()
        remedy = f"did you mean {guess}?" if error.closest else "remove it"
        yield Detail(".".join(error.path), f"is not a setting ({name}); {remedy}")
        return
    if value and section_of(annotation):
        yield Detail(name, "is a section; set each of its keys, as KAITEN_SECTION__KEY")
    yield from _duplicate_keys(name, value)


def _duplicate_keys(name: str, value: str) -> Iterator[Detail]:
    """Yield the first key that occurs twice in a variable's JSON, if any."""
    if not value.lstrip().startswith(("[", "{")):
        return
    try:
        json.loads(value, object_pairs_hook=strict_yaml.reject_duplicate_keys)
    except strict_yaml.DuplicateKey as error:
        yield Detail(name, f"contains the key {error.key} twice; remove one of the two")
    except RecursionError:
        yield Detail(name, "is nested too deeply; check its brackets")
    except ValueError:
        # The field's own validation reports it.
        return
