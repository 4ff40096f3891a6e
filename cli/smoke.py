"""`kaiten smoke`: check that a running deployment does what its callers and operators rely on."""

import asyncio
import json
import re
import ssl
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.options import JsonOption, LabelColumnOption, TextColumnOption, progress_console
from kaiten import model_tags
from kaiten.errors import DataRejected, SetupError
from kaiten.settings.loader import load_settings
from lifecycle.evaluate.rows import Columns, Rows, read_rows
from server.credential_admin import mint_smoke_token
from server.smoke.checks import SmokeCheck, SmokeRequest, run_smoke_checks

_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
_STYLES = {"ok": "green", "failed": "red", "skipped": "yellow"}


def smoke(
    url: Annotated[str, typer.Argument(help="The deployment: https://HOST or http://HOST:PORT.")],
    token_file: Annotated[
        Path | None,
        typer.Option(help="A token with the scopes predict and ops; - is standard input."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The version that must answer, as name:version.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Rows that must all be predicted as labelled.")
    ] = None,
    text_column: TextColumnOption = "text",
    label_column: LabelColumnOption = "label",
    ca: Annotated[
        Path | None, typer.Option(help="The certificate authority of the deployment, in PEM.")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait until it is ready.", min=0, max=3600)
    ] = 60,
    *,
    as_json: JsonOption = False,
) -> None:
    """Use a running deployment as its callers and operators do; exit 1 if a check fails.

    Without --token-file, a token of five minutes is signed with the secret in force here.
    Example: kaiten smoke https://intent.example.org --token-file token --golden golden.jsonl
    """
    request = SmokeRequest(
        url=_check_url(url),
        model=_check_model_tag(model),
        token=_read_token(token_file) if token_file else mint_smoke_token(load_settings()),
        golden=_read_golden(golden, Columns(text_column, label_column)) if golden else None,
        verify=_load_authority(ca),
        wait_s=wait,
    )
    with progress_console.status("Starting ...") as status:
        checks = asyncio.run(run_smoke_checks(request, lambda step: status.update(escape(step))))
    failures = [check for check in checks if check.outcome == "failed"]
    if as_json:
        content = {"ok": not failures, "url": request.url, "checks": [*map(asdict, checks)]}
        typer.echo(json.dumps(content))
    else:
        Console(highlight=False).print(_table(checks))
    if failures:
        lines = "".join(f"\n  {check.name}: {check.seen}. {check.remedy}." for check in failures)
        raise SetupError(f"{request.url} fails {len(failures)} of {len(checks)} checks:{lines}")


def _table(checks: Sequence[SmokeCheck]) -> Table:
    table = Table("check", "", "seen", box=SIMPLE, pad_edge=False)
    for check in checks:
        style = _STYLES[check.outcome]
        table.add_row(check.name, f"[{style}]{check.outcome}[/{style}]", escape(check.seen))
    return table


def _check_url(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise typer.BadParameter("is not a URL; write https://HOST or http://HOST:PORT")
    if parts.userinfo or parts.query or parts.fragment:
        raise typer.BadParameter("holds more than an address; pass a token by --token-file")
    return url.rstrip("/")


def _check_model_tag(model: str | None) -> str | None:
    if model is not None:
        name, _, version = model.partition(":")
        if not (model_tags.is_name(name) and model_tags.is_name(version)):
            raise typer.BadParameter("write name:version", param_hint="--model")
    return model


def _read_token(file: Path) -> str:
    try:
        token = (sys.stdin.read() if file == Path("-") else file.read_text("utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SetupError(f"--token-file {file} cannot be read: {reason}.") from None
    if not _JWT.fullmatch(token):
        # The content is not quoted: it may be another secret.
        raise SetupError(f"--token-file {file} holds no token. Write only the token into it.")
    return token


def _read_golden(file: Path, columns: Columns) -> Rows:
    rows = read_rows(file, columns)
    if not len(rows):
        raise DataRejected(file, "has no rows", "Write a text and its label into each row.")
    return rows


def _load_authority(file: Path | None) -> ssl.SSLContext | bool:
    if file is None:
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        reason = str(error) if isinstance(error, ssl.SSLError) else error.strerror
        message = f"--ca {file} cannot be used: {reason}. Give certificates in PEM."
        raise SetupError(message) from None
