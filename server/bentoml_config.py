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

# Of the form that new-style services have.
_VERSION = 2
# BentoML takes this key for a service's name, and fills it up as it does those.
_FILLED_UP = "runner_connection"


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


def check(services: Mapping[str, Any], name: str) -> None:
    """Raise InvalidSettings for what would have no effect on the service of this name.

    ``services`` is BentoML's, merged from its defaults, its file and the environment: so a key is
    found wherever it was set.
    """
    problems = [*_of_no_service(services, name), *_unknown(services[name], ServiceConfig, name)]
    if problems:
        raise InvalidSettings(problems, "BentoML's settings")


def _of_no_service(services: Mapping[str, Any], name: str) -> Iterator[Detail]:
    """Yield what stands beside the service: another name, or a value meant for all services."""
    known, defaults = get_type_hints(ServiceConfig), get_default_config(_VERSION)["services"]
    for key, value in services.items():
        if key in {name, _FILLED_UP} or (key in defaults and value == defaults[key]):
            continue
        if key in known:
            reason = f"gives way to what {name} says of itself; write it below services.{name}"
        else:
            reason = f"names no service here{_guess(key, [name, *known])}"
        yield Detail(f"services.{key}", reason)


def _unknown(found: Mapping[Any, Any], schema: type, path: str) -> Iterator[Detail]:
    """Yield every key that BentoML reads nowhere, by its path."""
    known = get_type_hints(schema)
    for key, value in found.items():
        if key not in known:
            reason = f"is no key of BentoML's{_guess(key, [*known])}"
            yield Detail(f"services.{path}.{key}", reason)
        elif isinstance(value, Mapping) and hasattr(known[key], "__required_keys__"):
            # A TypedDict; a plain dictionary may hold any key.
            yield from _unknown(value, known[key], f"{path}.{key}")


def _guess(key: object, known: list[str]) -> str:
    guesses = get_close_matches(str(key), known, n=1)
    return f"; did you mean {guesses[0]}?" if guesses else f"; known: {', '.join(known)}"
