"""Resolves a name in serving.models to a version, and decides whether it may serve here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaiten.errors import ModelNotFound, PromotionRefused
from kaiten.model_tags import ModelReference
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
    """Return the version that a reference stands for, with its files checked.

    ``name@stage`` stands for the version that is in that stage by the audit log, and a name alone
    for the one in production. A model tag that was never promoted may serve only in development.

    Raises:
        ModelNotFound: There is no such version.
        ModelRejected: A file differs from the registered one.
        PromotionRefused: The version may not serve here.

    """
    parsed = ModelReference.parse(reference)
    entries = stage_entries(parsed.name, store)
    if parsed.stage:
        model = _model_in_stage(parsed.name, Stage(parsed.stage), entries, store)
        return ResolvedModel(model, promoted=True)
    model = store.get(reference)
    promoted = _is_promoted(entries, model)
    if in_production and not promoted:
        raise PromotionRefused(
            reference,
            "serving.models names it, and it was promoted to no stage",
            f"First: kaiten promote {reference} --to staging --reason REASON.",
        )
    return ResolvedModel(model, promoted)


def stage_entries(name: str, store: ModelStore) -> list[AuditLogEntry]:
    """Return the entries that decide which version of a model is in which stage."""
    return store.audit_log(name).entries() or _carried_promotions(name, store)


def _carried_promotions(name: str, store: ModelStore) -> list[AuditLogEntry]:
    """Return the promotions that the versions themselves carry, the oldest first.

    A bento has nothing else. A version without any is in no stage.
    """
    models = (model for model in store if model.card.name == name)
    entries = (entry for model in models for entry in model.promotions)
    return sorted(entries, key=lambda entry: entry.number)


def _model_in_stage(
    name: str, stage: Stage, entries: Sequence[AuditLogEntry], store: ModelStore
) -> StoredModel:
    entry = entry_in_stage(entries, stage)
    if entry is None:
        tags = [model.card.tag for model in store.versions(name)]
        if not tags:
            raise ModelNotFound(name, store.tags())
        raise PromotionRefused(
            name,
            f"none of its versions is in {stage.value} (there: {', '.join(tags)})",
            f"Promote a version (kaiten promote {tags[0]} --to {stage.value} --reason REASON), or "
            "name one as name:version.",
        )
    model = store.get(f"{name}:{entry.version}")
    if model.digest != entry.card:
        raise PromotionRefused(
            model.card.tag,
            "it was registered again after its promotion",
            "Validate and promote it again.",
        )
    return model


def entry_in_stage(entries: Sequence[AuditLogEntry], stage: Stage) -> AuditLogEntry | None:
    """Return the entry of the version that is in a stage, None if there is none.

    A version that production was rolled back from is in no stage until it is staged again.
    """
    entry = serving_entry(entries, stage)
    if entry is None or stage is Stage.PRODUCTION:
        return entry
    if entry.card in {served.card for served in production_lineage(entries)}:
        return entry
    # A version that was rolled back from was staged before its promotion to production.
    later_cards = {later.card for later in entries if later.number > entry.number}
    return None if entry.card in later_cards else entry


def _is_promoted(entries: Sequence[AuditLogEntry], model: StoredModel) -> bool:
    """Return whether these very bytes were promoted, and not rolled back from since."""
    staged = entry_in_stage(entries, Stage.STAGING)
    cards = {entry.card for entry in production_lineage(entries)}
    return model.digest in cards or (staged is not None and model.digest == staged.card)
