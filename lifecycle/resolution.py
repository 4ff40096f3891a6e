"""Resolves a name in serving.models to a version, and decides whether it may serve here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaiten import model_tags
from kaiten.errors import ModelNotFound, PromotionRefused
from lifecycle.audit_log import AuditLogEntry, Stage, production_lineage, serving_entry
from lifecycle.card import REPORTS
from lifecycle.store import ModelStore, StoredModel


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A version, and whether these bytes were promoted to any stage."""

    model: StoredModel
    promoted: bool


def effective_baseline(model: StoredModel, chosen: Mapping[str, str]) -> Path | None:
    """Return the folder of the report that a version's drift is measured against, if any.

    ``chosen`` maps model tags to the names of folders, as chosen when the server started; the name
    is empty if there was none. A version that is missing there is looked up now: no server has
    started yet.
    """
    if model.card.tag not in chosen:
        return model.baseline
    name = chosen[model.card.tag]
    return model.folder / REPORTS / name if name else None


def resolve_model(reference: str, store: ModelStore, *, in_production: bool) -> ResolvedModel:
    """Return the version that ``name`` or ``name:version`` stands for, with its files checked.

    A name stands for the version that serves in production, by the audit log. A model tag that was
    never promoted may serve only in development.

    Raises:
        ModelNotFound: There is no such version.
        ModelRejected: A file differs from the registered one.
        PromotionRefused: The version may not serve here.

    """
    name, version = model_tags.split(reference)
    entries = store.audit_log(name).entries() or _carried_promotions(name, store)
    if not version:
        return ResolvedModel(_production_model(name, entries, store), promoted=True)
    model = store.get(reference)
    promoted = _is_promoted(entries, model)
    if in_production and not promoted:
        raise PromotionRefused(
            reference,
            "serving.models names it, and it was promoted to no stage",
            f"First: kaiten promote {reference} --to staging --reason REASON.",
        )
    return ResolvedModel(model, promoted)


def _carried_promotions(name: str, store: ModelStore) -> list[AuditLogEntry]:
    """Return the promotions that the versions themselves carry, the oldest first.

    A bento has nothing else. A version without any is in no stage.
    """
    models = (model for model in store if model.card.name == name)
    entries = (entry for model in models for entry in model.promotions)
    return sorted(entries, key=lambda entry: entry.number)


def _production_model(
    name: str, entries: Sequence[AuditLogEntry], store: ModelStore
) -> StoredModel:
    entry = serving_entry(entries, Stage.PRODUCTION)
    if entry is None:
        tags = [model.card.tag for model in store if model.card.name == name]
        if not tags:
            raise ModelNotFound(name, [model.card.tag for model in store])
        raise PromotionRefused(
            name,
            f"none of its versions serves in production (there: {', '.join(tags)})",
            "Promote a version, or name one as name:version.",
        )
    model = store.get(f"{name}:{entry.version}")
    if model.digest != entry.card:
        raise PromotionRefused(
            model.card.tag,
            "it was registered again after its promotion",
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
    # A version that was rolled back from was staged before its promotion to production.
    later_cards = (entry.card for entry in entries if entry.number > staged.number)
    return model.digest not in later_cards
