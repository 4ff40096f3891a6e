"""The effective value of each setting, and where it was set."""

import os
import re
from dataclasses import dataclass
from typing import Any

from kaiten.settings.environment import secrets_folder, settings_file
from kaiten.settings.loader import Settings
from kaiten.settings.reference import SettingReference, setting_sections
from kaiten.settings.secrets import read_secret_files
from kaiten.settings.settings_yaml import lines_of_settings

DEFAULT = "default"
_HIDDEN = "(not shown)"
# The query of a URL may hold a key.
_QUERY = re.compile(r"(://[^\s?]*)\?\S*")


@dataclass(frozen=True, slots=True)
class EffectiveSetting:
    """A setting, its value in JSON without secrets, and its ``source``.

    The source is a variable, a file with its line, or ``default``.
    """

    setting: SettingReference
    value: Any
    source: str


def effective_settings(settings: Settings) -> list[EffectiveSetting]:
    """Return every setting with its value and its source.

    Raises:
        InvalidSettings: A settings file or a secret file cannot be read.

    """
    sources = _Sources()
    values = settings.model_dump(mode="json")
    return [
        EffectiveSetting(reference, _visible_value(reference, values), sources.find(reference))
        for section in setting_sections()
        for reference in section.settings
    ]


class _Sources:
    """Finds the source that takes precedence, in the order of the loader."""

    def __init__(self) -> None:
        self._file, self._lines = settings_file(), lines_of_settings()
        self._folder, self._secrets = secrets_folder(), read_secret_files()

    def find(self, reference: SettingReference) -> str:
        variable = reference.variable
        # An empty variable sets nothing (env_ignore_empty). A key of a dictionary has its own.
        names = (variable, *(name for name in os.environ if name.startswith(f"{variable}__")))
        if name := next(filter(os.environ.get, names), None):
            return name
        if self._folder is not None and variable.lower() in self._secrets:
            return str(self._folder / variable.lower())
        line = self._lines.get(reference.path)
        return DEFAULT if line is None else f"{self._file}:{line}"


def _visible_value(reference: SettingReference, values: Any) -> Any:  # noqa: ANN401  JSON
    value = values
    for part in reference.path.split("."):
        value = value[part]
    if value is None:
        # Only a limit has a default and may be switched off.
        return None if reference.default is None else "off"
    return _HIDDEN if reference.is_secret else _without_queries(value)


def _without_queries(value: Any) -> Any:  # noqa: ANN401  JSON
    if isinstance(value, dict):
        return {key: _without_queries(item) for key, item in value.items()}
    if isinstance(value, list):
        return [*map(_without_queries, value)]
    return _QUERY.sub(r"\1?(not shown)", value) if isinstance(value, str) else value
