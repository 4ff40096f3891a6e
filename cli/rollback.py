"""`kaiten rollback`: let the previous version serve in production again."""

from typing import Annotated

import typer

from cli.options import (
    JsonOption,
    ReasonOption,
    check_reason,
    open_store,
    progress_console,
)
from cli.promote import print_entry
from lifecycle.audit_log import current_operator
from lifecycle.promotion import PromotionGate


def rollback(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    reason: ReasonOption,
    *,
    as_json: JsonOption = False,
) -> None:
    """Let the last good version serve in production again.

    Example: kaiten rollback support-intent --reason "wrong answers on refunds"
    """
    settings, store = open_store()
    gate = PromotionGate(store, settings.versioning)
    reason = check_reason(reason)
    with progress_console.status("Checking the version ..."):
        entry = gate.rollback(name, current_operator(), reason)
    print_entry(entry, name, as_json=as_json)
