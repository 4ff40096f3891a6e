"""`kaiten smoke`: whether a running deployment is what its callers and operators rely on."""

import asyncio
import json
import re
import ssl
import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.auth.minting import mint
from gateway.auth.signing_secret import configured_secret, signing_secret
from kaiten import model_tags
from kaiten.errors import DataRejected, SetupError
from kaiten.settings.loader import load_settings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE
from lifecycle.evaluate.rows import Columns, Rows, read
from server.smoke.checks import Asked, Check, try_out

_HOLDS = timedelta(minutes=5)
_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
_STYLES = {"ok": "green", "failed": "red", "skipped": "yellow"}


def smoke(
    url: Annotated[str, typer.Argument(help="Where it is, as https://HOST or http://HOST:PORT.")],
    token_file: Annotated[
        Path | None,
        typer.Option(help="A token with the scopes predict and ops; - is standard input."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The version that has to answer, as name:version.")
    ] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Rows that must be answered as they are labelled.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column with the text.")] = "text",
    label_column: Annotated[str, typer.Option(help="The column with the label.")] = "label",
    ca: Annotated[
        Path | None, typer.Option(help="The authority of its certificate, in PEM.")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds for it to become ready.", min=0, max=3600)
    ] = 60,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Try a running deployment as its callers and operators use it; exit 1 if anything fails.

    Without --token-file, a token of five minutes is made with the signing secret in force here.
    Example: kaiten smoke https://intent.example.org --token-file token --golden golden.jsonl
    """
    asked = Asked(
        url=_address(url),
        model=_version(model),
        token=_token(token_file),
        golden=_rows(golden, Columns(text_column, label_column)) if golden else None,
        verify=_authority(ca),
        wait_s=wait,
    )
    with Console(stderr=True, highlight=False).status("Starting ...") as status:
        checks = asyncio.run(try_out(asked, lambda now: status.update(escape(now))))
    failed = [each for each in checks if each.outcome == "failed"]
    if as_json:
        content = {"ok": not failed, "url": asked.url, "checks": [*map(asdict, checks)]}
        typer.echo(json.dumps(content))
    else:
        Console(highlight=False).print(_table(checks))
    if failed:
        lines = "".join(f"\n  {each.name}: {each.seen}. {each.remedy}." for each in failed)
        raise SetupError(f"{asked.url} fails {len(failed)} of {len(checks)} checks:{lines}")


def _table(checks: list[Check]) -> Table:
    table = Table("check", "", "seen", box=SIMPLE, pad_edge=False)
    for each in checks:
        style = _STYLES[each.outcome]
        table.add_row(each.name, f"[{style}]{each.outcome}[/{style}]", escape(each.seen))
    return table


def _address(url: str) -> str:
    try:
        parts = httpx.URL(url)
    except httpx.InvalidURL:
        parts = httpx.URL()
    if parts.scheme not in {"http", "https"} or not parts.host:
        raise typer.BadParameter("is no address; write https://HOST or http://HOST:PORT")
    if parts.userinfo or parts.query or parts.fragment:
        raise typer.BadParameter("holds more than an address; tokens come by --token-file")
    return url.rstrip("/")


def _version(model: str | None) -> str | None:
    if model is not None:
        name, _, version = model.partition(":")
        if not (model_tags.is_name(name) and model_tags.is_name(version)):
            raise typer.BadParameter("write name:version", param_hint="--model")
    return model


def _token(file: Path | None) -> str:
    """Return the token of a file, or one that is made; SetupError where there is neither."""
    if file is None:
        return _minted()
    try:
        token = (sys.stdin.read() if file == Path("-") else file.read_text("utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SetupError(f"--token-file {file} can not be read: {told}.") from None
    if not _JWT.fullmatch(token):
        # Not quoted: it may be a secret that was meant for elsewhere.
        raise SetupError(f"--token-file {file} holds no token; write one there, and nothing else.")
    return token


def _minted() -> str:
    settings = load_settings()
    known = settings.home / DEVELOPMENT_SECRET_FILE
    if configured_secret(settings) is None and not known.exists():
        raise SetupError(
            "There is no token, and no signing secret here to make one with. Give a token with the "
            "scopes predict and ops by --token-file, or set the deployment's KAITEN_AUTH__SECRET."
        )
    secret = signing_secret(settings)
    return mint("smoke", ["predict", "ops"], _HOLDS, settings.auth, secret.value)


def _rows(file: Path, columns: Columns) -> Rows:
    rows = read(file, columns)
    if not len(rows):
        raise DataRejected(file, "has no rows", "Write a text and its label for each.")
    return rows


def _authority(file: Path | None) -> ssl.SSLContext | bool:
    if file is None:
        return True
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        told = str(error) if isinstance(error, ssl.SSLError) else error.strerror
        raise SetupError(
            f"--ca {file} can not be used: {told}; give certificates in PEM."
        ) from None
