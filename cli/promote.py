"""`kaiten promote`: let a version serve in a stage."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import (
    JsonOption,
    ModelTagArgument,
    ReasonOption,
    check_reason,
    open_store,
    progress_console,
)
from lifecycle.audit_log import AuditLogEntry, Stage, current_operator
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.release_evidence import ReleaseRepository, gather_evidence


def promote(
    model_tag: ModelTagArgument,
    to: Annotated[Stage, typer.Option(help="The stage to serve in.")],
    reason: ReasonOption,
    repository: Annotated[
        Path, typer.Option(help="The model's git repository, which is searched for evidence.")
    ] = Path(),
    tests: Annotated[
        Path | None, typer.Option(help="JUnit XML of the tests, as evidence that they pass.")
    ] = None,
    *,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the promotion gate; change nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Let a version serve in a stage; it needs a passing report, and staging comes first.

    Example: kaiten promote support-intent:1.0.0 --to staging --reason "first release"
    """
    settings, store = open_store()
    gate = PromotionGate(store, settings.versioning)
    release = ReleaseRepository(repository, tests)
    reason = check_reason(reason)
    with progress_console.status("Checking the version ..."):
        evidence = gather_evidence(
            store.get(model_tag).card, release, settings.versioning.release_process
        )
        request = PromotionRequest(to, current_operator(), reason, evidence)
        entry = None
        if check:
            gate.check(model_tag, request)
        else:
            entry = gate.promote(model_tag, request)
    if entry is None:
        typer.echo(f"{model_tag} may serve in {to.value}.")
        return
    print_entry(entry, model_tag.partition(":")[0], as_json=as_json)


def print_entry(entry: AuditLogEntry, name: str, *, as_json: bool) -> None:
    """Print the audit log's entry for a promotion or rollback of a model."""
    if as_json:
        typer.echo(entry.model_dump_json())
        return
    stage = entry.stage.value if entry.stage else ""
    typer.echo(f"{name}:{entry.version} is now the version in {stage}.")
    typer.echo(
        "Running servers keep what they have loaded until they are restarted, and a bento keeps "
        "the versions that it was built with until it is built again."
    )
    typer.echo(f"The audit log of {name} ends with entry {entry.number}, {entry.digest}.")
