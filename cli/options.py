"""Options that several commands share, and how their values are parsed."""

import re
import sys
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from gateway.auth.credentials import MAX_LIFETIME
from kaiten.errors import SetupError
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import SCOPE
from lifecycle.store import ModelStore
from monitors.logging.setup import add_audit_file

_SCOPE = re.compile(SCOPE)
_SCOPES = "predict, predict:NAME, feedback, feedback:NAME, ops or admin"
_PIPE_WIDTH = 240
_DURATION = re.compile(r"(\d+)([smhd])")
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
ModelTagArgument = Annotated[str, typer.Argument(help="The version, as name:version.")]
ReasonOption = Annotated[str, typer.Option(help="The reason; the audit log keeps it.")]
SubjectOption = Annotated[str, typer.Option(help="The caller: a user, a service or a job.")]
ScopesOption = Annotated[list[str], typer.Option("--scope", help=f"{_SCOPES}; repeatable.")]
_MAX_TTL = f"{MAX_LIFETIME.days}d"
LifetimeOption = Annotated[
    str, typer.Option("--ttl", help=f"The lifetime, such as 30m, 1h or 7d; at most {_MAX_TTL}.")
]
TextColumnOption = Annotated[str, typer.Option(help="The column with the text.")]
LabelColumnOption = Annotated[str, typer.Option(help="The column with the label.")]
MissingLabelsOption = Annotated[
    bool, typer.Option("--allow-missing-labels", help="Accept rows that lack some of the labels.")
]
# Standard output carries a command's result, so progress goes to standard error.
progress_console = Console(stderr=True, highlight=False, soft_wrap=True)


class _Unit(StrEnum):
    s = "seconds"
    m = "minutes"
    h = "hours"
    d = "days"


def check_subject(subject: str) -> str:
    """Return the subject unless it is blank."""
    if not subject.strip():
        raise typer.BadParameter("is empty", param_hint="--subject")
    return subject


def check_scopes(scopes: list[str]) -> list[str]:
    """Return the scopes if all of them are valid."""
    for scope in scopes:
        if not _SCOPE.fullmatch(scope):
            raise typer.BadParameter(
                f"{scope!r} is not a scope; use {_SCOPES}", param_hint="--scope"
            )
    return scopes


def check_reason(reason: str) -> str:
    """Return the reason without surrounding white space, unless it is blank."""
    if not reason.strip():
        raise SetupError("--reason is empty. Write why, for later readers of the audit log.")
    return reason.strip()


def parse_lifetime(text: str) -> timedelta:
    """Parse the lifetime of a credential, from --ttl."""
    return parse_duration(text, "--ttl", MAX_LIFETIME)


def parse_duration(text: str, option: str, maximum: timedelta) -> timedelta:
    """Parse a duration such as 30m, 1h or 7d."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        reason = f"{text!r} is not a duration; write it as 30m, 1h or 7d"
        raise typer.BadParameter(reason, param_hint=option)
    try:
        duration = timedelta(**{_Unit[match[2]]: int(match[1])})
    except OverflowError:
        duration = timedelta.max
    if duration > maximum:
        reason = f"{text!r} is longer than the maximum; give at most {maximum.days}d"
        raise typer.BadParameter(reason, param_hint=option)
    return duration


def open_store() -> tuple[Settings, ModelStore]:
    """Return the settings and the model store, with changes to it recorded in the log files."""
    settings = load_settings()
    add_audit_file(settings.audit_folder)
    return settings, ModelStore(settings.signatures)


def table_width() -> int | None:
    """Return the width of a table: that of the terminal, and room for every column in a pipe."""
    return None if sys.stdout.isatty() else _PIPE_WIDTH
