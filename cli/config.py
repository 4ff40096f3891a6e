"""`kaiten config`: show, check and explain the settings."""

import json
import textwrap
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from cli.options import JsonOption, table_width
from kaiten.errors import InvalidSettings
from kaiten.settings.effective import DEFAULT, EffectiveSetting, effective_settings
from kaiten.settings.loader import load_settings
from kaiten.settings.reference import SettingReference, find_settings
from server.diagnosis import check_settings

_WIDTH = 100
KeyArgument = Annotated[
    str, typer.Argument(help="A setting, a section, or a variable, such as batching.")
]
config = typer.Typer(help="Show, check and explain the settings.", no_args_is_help=True)


@config.command()
def show(key: KeyArgument = "", *, as_json: JsonOption = False) -> None:
    """Show the value of each setting, and the file, line or variable that sets it.

    Secrets are not shown.
    Example: kaiten config show batching
    """
    settings = effective_settings(load_settings())
    if key:
        paths = {setting.path for setting in find_settings(key)}
        settings = [item for item in settings if item.setting.path in paths]
    if as_json:
        rows = [
            {"setting": item.setting.path, "value": item.value, "source": item.source}
            for item in settings
        ]
        typer.echo(json.dumps(rows))
        return
    columns = (Column(name, overflow="fold") for name in ("setting", "value", "set in"))
    table = Table(*columns, box=SIMPLE, pad_edge=False)
    for item in settings:
        table.add_row(*map(escape, (item.setting.path, _text(item.value), item.source)))
    Console(width=table_width(), highlight=False).print(table)


@config.command()
def check() -> None:
    """Check the settings without starting anything, and exit 1 if one is invalid.

    Models, devices and other servers are not checked; `kaiten doctor` checks these too.
    Example: KAITEN_CONFIG=new.yaml kaiten config check
    """
    typer.echo(f"The settings are valid ({check_settings()}).")


@config.command()
def explain(key: KeyArgument) -> None:
    """Explain a setting or each setting of a section: its meaning, type, default and value.

    Example: kaiten config explain batching.max_queue_items
    """
    references = find_settings(key)
    try:
        settings = {item.setting.path: item for item in effective_settings(load_settings())}
    except InvalidSettings:
        # The setting to look up may be the invalid one.
        settings = {}
    for reference in references:
        typer.echo(_explanation(reference, settings.get(reference.path)))


def _explanation(reference: SettingReference, setting: EffectiveSetting | None) -> str:
    value = "unknown: the settings are invalid; see kaiten config check"
    if setting is not None:
        source = "the default" if setting.source == DEFAULT else f"set in {setting.source}"
        value = f"{_text(setting.value)} ({source})"
    variable = reference.variable
    if reference.is_secret:
        variable += f", or the file {variable.lower()} in the folder KAITEN_SECRETS"
    rows = {
        "type": ", ".join(reference.types).replace("`", ""),
        "default": _text(reference.default),
        "value": value,
        "variable": variable,
    }
    description = textwrap.fill(
        reference.description, _WIDTH, initial_indent="  ", subsequent_indent="  "
    )
    lines = [f"  {name:<9} {text}" for name, text in rows.items()]
    return "\n".join([reference.path, *filter(None, [description]), *lines, ""])


def _text(value: Any) -> str:  # noqa: ANN401  JSON
    """Return a value as kaiten.yaml has it."""
    if value in (None, [], {}):
        return "empty"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, str) else json.dumps(value)
