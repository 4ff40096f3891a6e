"""`make docs`: write docs/reference from the code; ``--check`` fails if a page is out of date.

Settings come from the models and the comments of kaiten.yaml, metrics from a scrape, commands from
Typer, routes from their declarations. `make contract` writes docs/reference/errors.md.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli import app
from gateway import admin, protocols
from gateway.api_versions import DOCUMENTS
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import Settings
from monitors.metrics.collectors import WorkerFileCollector
from monitors.metrics.worker_files import MetricFiles
from tests.exposition import Exposition

MAKE = "make docs"
FOLDER = ROOT / "docs" / "reference"
# The process that starts the workers sets these for them.
INTERNAL = {"serving.reports", "runners.sockets", "state.credentials_copy"}
# Settings that kaiten.yaml must not or need not hold.
ELSEWHERE = {
    "environment": "`development` in a checkout, `production` in a bento. See "
    "[environments](../configure.md#environments).",
    "home": "The folder where state is stored.",
    "state.redis_url": "Redis for limits and credentials that workers and hosts share: "
    "`redis://:PASSWORD@HOST:6379/0`, or `rediss://` for TLS. A secret.",
    "state.database_url": "PostgreSQL for predictions and labels: "
    "`postgresql+psycopg://USER:<PASSWORD>@HOST:5432/NAME`. Left empty, an SQLite file in "
    "`KAITEN_HOME`. A secret.",
    "auth.secret": "The secret that signs this service's tokens, 32 bytes or more. A secret.",
    "auth.secret_file": "A file that holds `auth.secret`.",
    "signatures.password": "The password of `signatures.private_key`. A secret.",
    "logging.pseudonym_key": "The key for pseudonyms of subjects in logs. Left empty, it comes "
    "from the signing secret. A secret.",
}
_SETTINGS = """Set each in `kaiten.yaml`, or in the environment as `KAITEN_SECTION__KEY`.
[Configure](../configure.md) explains files, secrets and environments.
"""
_METRICS = """`GET /metrics` shows the metrics of all workers. `route` is a route template, `code`
an HTTP status, `model` and `version` name a served version, and `arm` is `production`. Gauges that
[monitoring](../drift-and-quality.md) has no value for are NaN or missing.
"""
_API = """A running server shows them at `/docs`. On a path that several versions share, the header
`API-Version` selects one. `gateway.docs` and `gateway.metrics` may require the scope `ops`, or
close a route. [Errors](errors.md) lists every status and code. Every request may carry
`X-Request-ID` and `X-Request-Timeout-Ms`.
"""
_HEADER = "Generated from the code by `{make}`; do not edit.\n"
_TYPES = {"array": "list", "object": "mapping"}
_KEY = re.compile(r"^(?P<indent> *)(?P<key>[a-z_0-9]+):(?P<value>.*)$")


def pages() -> dict[Path, str]:
    """Return the content of each page."""
    return {
        FOLDER / "settings.md": settings_page(),
        FOLDER / "metrics.md": metrics_page(),
        FOLDER / "cli.md": cli_page(),
        FOLDER / "api.md": api_page(),
    }


def settings_page() -> str:
    """Return every setting with its type, bounds, default and how to choose it."""
    sections = {name: dict(_settings(name)) for name, _ in _sections()}
    descriptions = _descriptions(path for settings in sections.values() for path in settings)
    lines = ["# Settings\n", _HEADER.format(make=MAKE), _SETTINGS]
    for section, description in _sections():
        lines += [f"## {section}\n", *([f"{description}\n"] if description else [])]
        lines += [
            _setting(path, schema, descriptions[path]) for path, schema in sections[section].items()
        ]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _sections() -> Iterator[tuple[str, str]]:
    yield "general", ""
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield name, (type(field.default).__doc__ or "").partition("\n")[0]


def _settings(section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings of a section, by path, with their JSON schemas."""
    schema = Settings.model_json_schema()
    if section == "general":
        for name, value in schema["properties"].items():
            if name in ELSEWHERE:
                yield name, value
        return
    yield from _flatten(section, schema["properties"][section], schema["$defs"])


def _flatten(
    path: str, schema: dict[str, Any], definitions: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    reference = schema.get("$ref", "").rpartition("/")[2]
    if reference:
        for name, value in definitions[reference]["properties"].items():
            if f"{path}.{name}" not in INTERNAL:
                yield from _flatten(f"{path}.{name}", value, definitions)
    else:
        yield path, schema


def _setting(path: str, schema: dict[str, Any], description: str) -> str:
    default = schema.get("default")
    shown = "empty" if default in (None, "", []) else f"`{json.dumps(default)}`".replace('"', "")
    facts = ", ".join([*_types(schema), f"default {shown}"])
    return f"- **`{path}`** ({facts}): {description}"


def _descriptions(paths: Iterable[str]) -> dict[str, str]:
    """Return the comment of each setting; one that shares a comment refers to the first."""
    comments = yaml_comments((ROOT / "kaiten.yaml").read_text("utf-8")) | ELSEWHERE
    first: dict[str, str] = {}
    descriptions: dict[str, str] = {}
    for path in paths:
        comment = comments.get(path)
        if not comment:
            raise SystemExit(f"{path} has no comment in kaiten.yaml; write one above it.")
        owner = first.setdefault(comment, path)
        descriptions[path] = comment if owner == path else f"See `{owner}`."
    return descriptions


def _types(schema: dict[str, Any]) -> Iterator[str]:
    for variant in schema.get("anyOf", [schema]):
        if "enum" in variant:
            yield " or ".join(f"`{value}`" for value in variant["enum"])
        elif variant.get("type") not in {None, "null"}:
            yield _TYPES.get(variant["type"], variant["type"])
        bounds = {
            "minimum": "at least",
            "exclusiveMinimum": "over",
            "maximum": "at most",
            "exclusiveMaximum": "under",
        }
        yield from (f"{words} {variant[key]}" for key, words in bounds.items() if key in variant)


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


def metrics_page() -> str:
    """Return every metric with its type, labels and help text."""
    lines = [
        "# Metrics\n",
        _HEADER.format(make=MAKE),
        _METRICS,
        "| metric | type | labels | meaning |",
        "|---|---|---|---|",
    ]
    families = [*text_string_to_metric_families(Exposition().page()), _in_memory()]
    for family in sorted(families, key=lambda family: family.name):
        if family.name.startswith(("model_", "kaiten_")) and not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            shown = ", ".join(sorted(labels))
            lines.append(f"| `{name}` | {family.type} | {shown} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def _in_memory() -> Metric:
    """Return the one metric that only a worker with a folder for its metrics has."""
    with TemporaryDirectory() as folder:
        *_, family = WorkerFileCollector(MetricFiles(Path(folder), lambda: None)).collect()
    return family


def cli_page() -> str:
    """Return every command with its example, arguments and options."""
    lines = ["# Commands\n", _HEADER.format(make=MAKE), "Every command has `--help`.\n"]
    for name, command in _commands("kaiten", cast("TyperGroup", get_command(app))):
        description, _, example = (command.help or "").partition("Example:")
        lines += [f"## `{name}`\n", f"{' '.join(description.split())}\n"]
        if example:
            lines += [f"```\n{' '.join(example.split())}\n```\n"]
        context = click.Context(cast("click.Command", command), info_name=name)
        records = [cast("Any", parameter).get_help_record(context) for parameter in command.params]
        rows = [
            f"| `{option}` | {_cell(help_text)} |"
            for option, help_text in filter(None, records)
            if option != "--help"
        ]
        if rows:
            lines += ["| argument or option | meaning |\n|---|---|", *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


def _commands(name: str, command: TyperCommand | TyperGroup) -> Iterator[tuple[str, TyperCommand]]:
    """Yield the commands that `kaiten --help` shows, and those of their groups."""
    if isinstance(command, TyperCommand):
        yield name, command
    elif isinstance(command, TyperGroup):
        for child, value in command.commands.items():
            if not value.hidden:
                yield from _commands(f"{name} {child}", cast("TyperCommand | TyperGroup", value))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """Return every route with its version and scope, as it is declared."""
    versions = ", ".join(f"[v{version}](../openapi/v{version}.json)" for version in DOCUMENTS)
    lines = [
        "# API\n",
        _HEADER.format(make=MAKE),
        f"The OpenAPI documents freeze each version: {versions}.",
        _API,
        "| route | version | scope | summary |",
        "|---|---|---|---|",
    ]
    routes = sorted([*protocols.ROUTES, *admin.ROUTES], key=lambda route: route.path)
    for route in routes:
        if route.summary:
            paths = [route.path, *filter(None, [route.negotiated_path])]
            shown = " or ".join(f"`{route.method} {path}`" for path in paths)
            scope = f"`{route.scope}`" if route.scope else "none"
            lines.append(f"| {shown} | {route.api_version or 'all'} | {scope} | {route.summary} |")
    pages = ", ".join(f"`{route.path}`" for route in routes if not route.summary)
    lines.append(f"\nPages and documents, for browsers and tools: {pages}.")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` name those that are out of date."""
    stale = [
        path
        for path, text in pages().items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for path in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
        if "--check" not in arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(pages()[path], "utf-8")
    if stale and "--check" in arguments:
        sys.stdout.write(f"These pages are not what the code makes; run `{MAKE}`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
