"""Which version a name in serving.models stands for, and whether it may serve here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaiten import model_tags
from kaiten.errors import ModelNotFound, PromotionRefused
from lifecycle.audit_log import AuditLogEntry, Stage, production_lineage, serving_entry
from lifecycle.card import REPORTS
from lifecycle.store import ModelStore, StoredModel


@dataclass(frozen=True, slots=True)
class Resolved:
    """A version, and whether these bytes were promoted to any stage."""

    model: StoredModel
    promoted: bool


def reference_in_force(model: StoredModel, handed_down: Mapping[str, str]) -> Path | None:
    """Return the folder of the report that a version's drift is told from, if there is one.

    ``handed_down`` is what was chosen at the server's start, by tag: the name of the folder, or
    nothing. What it does not name is looked for: the server has not started yet.
    """
    if model.card.tag not in handed_down:
        return model.reference
    name = handed_down[model.card.tag]
    return model.folder / REPORTS / name if name else None


def resolve(reference: str, store: ModelStore, *, in_production: bool) -> Resolved:
    """Return the version that ``name`` or ``name:version`` stands for, its files checked.

    A name alone stands for the version that serves in production by the trail. A pinned version
    that nobody has promoted serves in development only. ModelNotFound, ModelRejected or
    PromotionRefused.
    """
    name, version = model_tags.split(reference)
    entries = store.audit_log(name).entries() or _carried(name, store)
    if not version:
        return Resolved(_in_production(name, entries, store), promoted=True)
    model = store.get(reference)
    promoted = _is_promoted(entries, model)
    if in_production and not promoted:
        raise PromotionRefused(
            reference,
            "it is pinned in serving.models, and was promoted to no stage",
            f"First: kaiten promote {reference} --to staging --reason REASON.",
        )
    return Resolved(model, promoted)


def _carried(name: str, store: ModelStore) -> list[AuditLogEntry]:
    """Return the promotions that the versions themselves carry, the oldest first.

    That is all there is in a bento; to a version without one, no stage is known.
    """
    ours = (model for model in store if model.card.name == name)
    found = (entry for model in ours for entry in model.promotions)
    return sorted(found, key=lambda entry: entry.number)


def _in_production(name: str, entries: Sequence[AuditLogEntry], store: ModelStore) -> StoredModel:
    entry = serving_entry(entries, Stage.PRODUCTION)
    if entry is None:
        known = [model.card.tag for model in store if model.card.name == name]
        if not known:
            raise ModelNotFound(name, [model.card.tag for model in store])
        raise PromotionRefused(
            name,
            f"no version serves in production (there: {', '.join(known)})",
            "Promote one, or pin one as name:version.",
        )
    model = store.get(f"{name}:{entry.version}")
    if model.digest != entry.card:
        raise PromotionRefused(
            model.card.tag,
            "it was registered again since it was promoted",
            "Validate and promote it again.",
        )
    return model


def _is_promoted(entries: Sequence[AuditLogEntry], model: StoredModel) -> bool:
    """Return whether these very bytes were promoted, and not rolled back from since."""
    if model.digest in [entry.card for entry in production_lineage(entries)]:
        return True
    staged = serving_entry(entries, Stage.STAGING)
    if staged is None or staged.card != model.digest:
        return False
    # What was rolled back from was staged before that.
    since = (entry.card for entry in entries if entry.number > staged.number)
    return model.digest not in since
