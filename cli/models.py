"""`kaiten register`, `kaiten sign` and `kaiten models`: what there is to serve."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table

from kaiten.confinement import UnsafeFile, open_file
from kaiten.errors import Detail, InvalidSettings, ModelRejected
from kaiten.settings import strict_yaml
from kaiten.settings.loader import load_settings
from lifecycle.card import Provenance
from lifecycle.operators import operator
from lifecycle.registration import Submission
from lifecycle.registration import register as register_model
from lifecycle.sources import fetch
from lifecycle.store import ModelStore
from runners.tasks import find_inspection

Auto = Literal["auto"]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def register(
    source: Annotated[
        str,
        typer.Argument(
            help="A Hugging Face model's folder, hf://owner/name@revision or models:/name/version."
        ),
    ],
    name: Annotated[str, typer.Option(help="The model's name: a-z, 0-9, '-', '_', '.'.")],
    task: Annotated[str, typer.Option(help="Its task, such as text-classification.")],
    version: Annotated[
        str | None, typer.Option(help="Its SemVer version; a version never changes.")
    ] = None,
    bump: Annotated[
        Auto | None, typer.Option(help="auto takes the least version that the rules allow.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option(help="The version that it follows; by default that in production.")
    ] = None,
    details: Annotated[
        Path | None,
        typer.Option(help="YAML of trained_at, metrics, git_commit, licence and limits."),
    ] = None,
    training_data: Annotated[
        Path | None, typer.Option(help="Its file, to note the digest.")
    ] = None,
    reference_data: Annotated[Path | None, typer.Option(help="Its file, likewise.")] = None,
    max_length: Annotated[
        int | None,
        typer.Option(help="The longest text to serve, in tokens; by default the model's maximum."),
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """Check a model folder and add it to the model store.

    Example: kaiten register ./my-model --name my-model --version 1.0.0 --task text-classification
    """
    if (version is None) == (bump is None):
        raise ModelRejected("version", "is not given", "Name it: --version 1.2.3, or --bump auto.")
    data = {"training_data": training_data, "reference_data": reference_data}
    told: dict[str, object] = {key: _digest(key, file) for key, file in data.items() if file}
    provenance = _provenance(details, told | ({"parent": parent} if parent else {}))
    settings, inspect = load_settings(), find_inspection(task).inspect
    store, rules = ModelStore(settings.signatures), settings.versioning
    with TemporaryDirectory(prefix="kaiten-") as fetched:
        fetched_model = fetch(source, Path(fetched))
        submission = Submission(
            fetched_model.folder,
            name,
            version,
            task,
            provenance.model_copy(update={"source": fetched_model.source}),
            max_length,
        )
        stored = register_model(
            submission,
            operator(),
            rules,
            store=store,
            inspect=inspect,
            # Standard output is the result's.
            progress=lambda line: typer.echo(line, err=True),
        )
    if as_json:
        typer.echo(stored.card.model_dump_json())
    else:
        typer.echo(f"Registered {stored.card.tag} in {stored.folder}")
        if engine := stored.card.engine:
            typer.echo(f"On a CPU it is served by {engine.name}: {engine.reason}.")
        for note in stored.card.notes:
            typer.echo(note)


def _digest(name: str, file: Path) -> str:
    with _reading(name, file), open_file(file) as content:
        return file_digest(content, "sha256").hexdigest()


def _provenance(details: Path | None, told: dict[str, object]) -> Provenance:
    """Return where a version comes from, as a file and the options tell."""
    values = _read_details(details) if details else {}
    try:
        return Provenance.model_validate({**values, **told})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelRejected(
            f"details.{field}", first["msg"], "See kaiten register --help."
        ) from None


def _read_details(file: Path) -> dict[str, object]:
    with _reading("details", file), open_file(file) as content:
        text = content.read()
    try:
        return strict_yaml.load(text).values
    except strict_yaml.InvalidYaml as error:
        reason = f"{file}, {error.problems[0]}"
        raise ModelRejected("details", reason, "Mend it, and register again.") from None


@contextmanager
def _reading(name: str, file: Path) -> Iterator[None]:
    """Turn what cannot be read into ModelRejected, by the option's name."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelRejected(name, f"{file} {error.reason}", error.remedy) from None
    except OSError as error:
        reason = f"{file} can not be read: {error.strerror}"
        raise ModelRejected(name, reason, "Give the path of a file.") from None


def sign(
    tag: Annotated[str, typer.Argument(help="The version, as name:version.")],
    *,
    again: Annotated[
        bool, typer.Option("--again", help="Replace a signature that does not hold, by a new key.")
    ] = False,
) -> None:
    """Sign a version that was registered here, such as one of before there was a key.

    Example: KAITEN_SIGNATURES__PRIVATE_KEY=release.key kaiten sign support-intent:1.0.0
    """
    signatures = load_settings().signatures
    if signatures.private_key is None:
        reason = "is not set; name the file of an elliptic curve key in PEM"
        raise InvalidSettings([Detail("signatures.private_key", reason)], "signatures")
    ModelStore(signatures).sign(tag, again=again)
    typer.echo(f"{tag} is signed.")


def list_models(
    tag: Annotated[
        str | None, typer.Argument(help="name:version, to check and show this one only.")
    ] = None,
    *,
    as_json: Json = False,
) -> None:
    """List the registered models, or check that one is there and unchanged.

    Example: kaiten models support-intent:1.0.0
    """
    store = ModelStore(load_settings().signatures)
    cards = [model.card for model in ([store.get(tag)] if tag else store)]
    if as_json:
        typer.echo(json.dumps([card.model_dump(mode="json") for card in cards]))
        return
    whole = [Column(name, no_wrap=True) for name in ("model", "task")]
    table = Table(*whole, "labels", "tokens", "registered", box=SIMPLE, pad_edge=False)
    for card in cards:
        registered = f"{card.registered_at:%Y-%m-%d}"
        table.add_row(card.tag, card.task, str(len(card.labels)), str(card.max_length), registered)
    Console().print(table if cards else "No models yet. Make one: make quickstart")
