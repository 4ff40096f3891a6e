"""Describes each setting: its type, bounds and default, and how to choose it.

The descriptions are the comments of kaiten.yaml. docs/reference/settings.md and `kaiten config
explain` are made from them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

from kaiten.errors import SetupError
from kaiten.settings.environment import PREFIX, ROOT
from kaiten.settings.loader import Settings
from kaiten.settings.secrets import SECRET_SETTINGS

# The process that starts the workers sets these for them.
_INTERNAL = {"serving.reports", "runners.sockets", "state.credentials_copy"}
# Settings that kaiten.yaml must not or need not hold.
_ELSEWHERE = {
    "environment": "`development` in a checkout, `production` in a bento. docs/configure.md says "
    "how they differ.",
    "home": "The folder where state is stored. Left empty, `.kaiten` beside `service.py` in a "
    "checkout, and otherwise the user's data folder, such as `~/.local/share/kaiten`.",
    "state.redis_url": "Redis for limits and credentials that workers and hosts share: "
    "`redis://:PASSWORD@HOST:6379/0`, or `rediss://` for TLS. A secret.",
    "state.database_url": "PostgreSQL for predictions and labels: "
    "`postgresql+psycopg://USER:<PASSWORD>@HOST:5432/NAME`. Left empty, an SQLite file in "
    "`KAITEN_HOME`. A secret.",
    "auth.secret": "The secret that signs this service's tokens, 32 bytes or more. A secret.",
    "auth.secret_file": "A file that holds `auth.secret`."
    " Older secrets may follow in it, one a line. Workers read changes.",
    "signatures.password": "The password of `signatures.private_key`. A secret.",
    "logging.pseudonym_key": "The key for pseudonyms of subjects in logs. Left empty, it comes "
    "from the oldest signing secret. `hex:` may precede its bytes in hexadecimal. A secret.",
}
_TYPES = {"array": "list", "object": "mapping"}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "over",
    "maximum": "at most",
    "exclusiveMaximum": "under",
}
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[a-z_0-9]+):(?P<value>.*)$")


@dataclass(frozen=True, slots=True)
class SettingReference:
    """A setting by its path, such as ``batching.max_queue_items``.

    ``types`` are its types and bounds in words, ``default`` is a JSON value, and ``description`` is
    empty if kaiten.yaml has no comment above the setting.
    """

    path: str
    types: tuple[str, ...]
    default: Any
    description: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"{PREFIX}{self.path.replace('.', '__')}".upper()

    @property
    def is_secret(self) -> bool:
        """Whether its value must not be shown, nor stand in kaiten.yaml."""
        return tuple(self.path.split(".")) in SECRET_SETTINGS


@dataclass(frozen=True, slots=True)
class SectionReference:
    """A section with its settings; ``general`` has those that are in no section."""

    name: str
    description: str
    settings: tuple[SettingReference, ...]


def setting_sections() -> list[SectionReference]:
    """Return every setting that an operator may set, by section, in the order of the models."""
    schema = Settings.model_json_schema()
    file = ROOT / "kaiten.yaml"
    comments = yaml_comments(file.read_text("utf-8")) if file.is_file() else {}
    comments |= _ELSEWHERE
    properties, definitions = schema["properties"], schema["$defs"]
    general = {name: properties[name] for name in properties if name in _ELSEWHERE}
    sections = [SectionReference("general", "", _settings(general, comments))]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            description = (type(field.default).__doc__ or "").partition("\n")[0]
            settings = _settings(dict(_flatten(name, properties[name], definitions)), comments)
            sections.append(SectionReference(name, description, settings))
    return sections


def find_settings(key: str) -> list[SettingReference]:
    """Return a setting, or those of a section; ``key`` is a path, a variable, or a name in one.

    Raises:
        SetupError: There is no such setting.

    """
    settings = [setting for section in setting_sections() for setting in section.settings]
    path = key.lower().removeprefix(PREFIX.lower()).replace("__", ".").replace("-", "_")
    matches = [item for item in settings if f"{item.path}.".startswith(f"{path}.")]
    matches = matches or [item for item in settings if f".{path}." in f".{item.path}."]
    if matches:
        return matches
    guess = get_close_matches(path, _names(settings), n=1)
    remedy = f"Did you mean {guess[0]}?" if guess else "List them with `kaiten config show`."
    raise SetupError(f"{key} is not a setting. {remedy}")


def yaml_comments(text: str) -> dict[str, str]:
    """Return the comment above each key, by its path; a key without one shares the one before."""
    comments: dict[str, str] = {}
    path: list[str] = []
    block: list[str] = []
    shared = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            block.append(line.strip().lstrip("#").strip())
        elif match := _KEY.match(line):
            depth = len(match["indent"]) // 2
            path = [*path[:depth], match["key"]]
            shared = " ".join(block) or shared
            comments[".".join(path)] = shared
            for key in re.findall(r"([a-z_0-9]+):", match["value"].partition("#")[0]):
                comments[".".join([*path, key])] = shared
            block = []
        else:
            block = []
    return comments


def _settings(
    schemas: Mapping[str, dict[str, Any]], comments: Mapping[str, str]
) -> tuple[SettingReference, ...]:
    return tuple(
        SettingReference(path, tuple(_types(schema)), schema.get("default"), comments.get(path, ""))
        for path, schema in schemas.items()
    )


def _flatten(
    path: str, schema: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings of a section and of the sections in it, with their JSON schemas."""
    reference = schema.get("$ref", "").rpartition("/")[2]
    if reference:
        for name, value in definitions[reference]["properties"].items():
            if f"{path}.{name}" not in _INTERNAL:
                yield from _flatten(f"{path}.{name}", value, definitions)
    else:
        yield path, schema


def _types(schema: dict[str, Any]) -> Iterator[str]:
    for variant in schema.get("anyOf", [schema]):
        if "enum" in variant:
            yield " or ".join(f"`{value}`" for value in variant["enum"])
        elif variant.get("type") not in {None, "null"}:
            yield _TYPES.get(variant["type"], variant["type"])
        yield from (f"{words} {variant[key]}" for key, words in _BOUNDS.items() if key in variant)


def _names(settings: Sequence[SettingReference]) -> list[str]:
    """Return the paths of settings and sections, and the settings' names alone."""
    paths = [setting.path for setting in settings]
    sections = [path.rpartition(".")[0] for path in paths if "." in path]
    return [*dict.fromkeys([*paths, *sections, *(path.rpartition(".")[2] for path in paths)])]
