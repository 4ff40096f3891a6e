"""`make docs`: write docs/reference from the code; ``--check`` fails if a page is out of date.

Settings come from the models and the comments of kaiten.yaml, metrics from a scrape, commands from
Typer, routes from their declarations. `make contract` writes docs/reference/errors.md.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import click
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli import app
from gateway import admin, protocols
from gateway.api_versions import DOCUMENTS
from kaiten.settings.environment import ROOT
from kaiten.settings.reference import SettingReference, setting_sections
from monitors.metrics.collectors import WorkerFileCollector
from monitors.metrics.worker_files import MetricFiles
from tests.exposition import Exposition

MAKE = "make docs"
FOLDER = ROOT / "docs" / "reference"
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
_COMMANDS = """Every command has `--help`. `kaiten --version` prints the version, and
`kaiten --install-completion` lets your shell complete commands and options.
"""
_HEADER = "Generated from the code by `{make}`; do not edit.\n"


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
    lines = ["# Settings\n", _HEADER.format(make=MAKE), _SETTINGS]
    first: dict[str, str] = {}
    for section in setting_sections():
        lines += [f"## {section.name}\n"]
        lines += [f"{section.description}\n"] if section.description else []
        lines += [_setting(setting, first) for setting in section.settings]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _setting(setting: SettingReference, first: dict[str, str]) -> str:
    """Return the line of a setting; one that shares a description refers to the ``first``."""
    if not setting.description:
        raise SystemExit(f"{setting.path} has no comment in kaiten.yaml; write one above it.")
    default = setting.default
    is_empty = default in (None, "", [], {})
    value = "empty" if is_empty else f"`{json.dumps(default)}`".replace('"', "")
    facts = ", ".join([*setting.types, f"default {value}"])
    owner = first.setdefault(setting.description, setting.path)
    description = setting.description if owner == setting.path else f"See `{owner}`."
    return f"- **`{setting.path}`** ({facts}): {description}"


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
            label_names = ", ".join(sorted(labels))
            lines.append(f"| `{name}` | {family.type} | {label_names} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def _in_memory() -> Metric:
    """Return the one metric that only a worker with a folder for its metrics has."""
    with TemporaryDirectory() as folder:
        *_, family = WorkerFileCollector(MetricFiles(Path(folder), lambda: None)).collect()
    return family


def cli_page() -> str:
    """Return every command with its example, arguments and options."""
    lines = ["# Commands\n", _HEADER.format(make=MAKE), _COMMANDS]
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
            requests = " or ".join(f"`{route.method} {path}`" for path in paths)
            scope = f"`{route.scope}`" if route.scope else "none"
            lines.append(
                f"| {requests} | {route.api_version or 'all'} | {scope} | {route.summary} |"
            )
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
