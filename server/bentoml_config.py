"""The service's own BentoML settings, and a check of what else stands below ``services``."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, get_type_hints

from _bentoml_sdk.service.config import ServiceConfig  # type: ignore[import-untyped]
from bentoml._internal.configuration.helpers import get_default_config
from bentoml.images import Image

from kaiten import tls
from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.loader import Settings

# Not plain "kaiten": `bentoml serve kaiten:1.2.3` would first import the package of that name, from
# wherever it is installed, and then serve the bento with that code.
SERVICE_NAME = "kaiten_service"
# BentoML's own "debian" would put a compiler into it, for packages that have all been compiled.
_IMAGE = Image(base_image="python:3.11-slim-bookworm", python_version="3.11", distro="python").run(
    "command -v uv >/dev/null || pip install --no-cache-dir uv==0.13.9"
)

# The version of the configuration of new-style services.
_VERSION = 2
# BentoML takes this key for a service's name, and adds defaults to it.
_PSEUDO_SERVICE = "runner_connection"


def service_options(settings: Settings) -> dict[str, Any]:
    """Return the options of ``bentoml.service``.

    They are the values of configuration.yaml, for a `bentoml serve` that names no such file.
    """
    return {
        "name": SERVICE_NAME,
        "workers": 1,
        "traffic": {"timeout": 60},
        "metrics": {"enabled": False},
        "logging": {"access": {"enabled": False}},
        "http": {"host": "0.0.0.0" if settings.in_production else "127.0.0.1"},  # noqa: S104  a container's own address
        "ssl": tls.bentoml_ssl(settings.tls),
        "image": _IMAGE,
    }


def check_services(services: Mapping[str, Any]) -> None:
    """Check that every key below ``services`` has an effect.

    ``services`` are merged from BentoML's defaults, its file and the environment.

    Raises:
        InvalidSettings: A key has no effect on this service.

    """
    problems = [
        *_find_other_services(services),
        *_find_unknown_keys(services[SERVICE_NAME], ServiceConfig, SERVICE_NAME),
    ]
    if problems:
        raise InvalidSettings(problems, "BentoML's settings")


def _find_other_services(services: Mapping[str, Any]) -> Iterator[Detail]:
    """Yield keys beside the service: another name, or a setting for all services."""
    settings, defaults = get_type_hints(ServiceConfig), get_default_config(_VERSION)["services"]
    for key, value in services.items():
        is_default = key in defaults and value == defaults[key]
        if is_default or key in {SERVICE_NAME, _PSEUDO_SERVICE}:
            continue
        if key in settings:
            reason = f"is overridden by {SERVICE_NAME}'s own value; move it below "
            reason += f"services.{SERVICE_NAME}"
        else:
            reason = f"names no service here{_suggest(key, [SERVICE_NAME, *settings])}"
        yield Detail(f"services.{key}", reason)


def _find_unknown_keys(section: Mapping[Any, Any], schema: type, path: str) -> Iterator[Detail]:
    """Yield every key that BentoML does not read, by its path."""
    types = get_type_hints(schema)
    for key, value in section.items():
        if key not in types:
            reason = f"is not a key of BentoML's{_suggest(key, [*types])}"
            yield Detail(f"services.{path}.{key}", reason)
        elif isinstance(value, Mapping) and hasattr(types[key], "__required_keys__"):
            # A TypedDict; a plain dictionary may have any key.
            yield from _find_unknown_keys(value, types[key], f"{path}.{key}")


def _suggest(key: object, names: list[str]) -> str:
    matches = get_close_matches(str(key), names, n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; known: {', '.join(names)}"
