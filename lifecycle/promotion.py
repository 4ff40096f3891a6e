"""The promotion gate: the rules that a version must pass before it serves in a stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import semver

from kaiten import model_tags
from kaiten.errors import ModelLost, ModelRejected, ModelUnusable, PromotionRefused
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import (
    Action,
    AuditLogEntry,
    AuditLogEvent,
    AuditLogTransaction,
    Stage,
    production_lineage,
    serving_entry,
)
from lifecycle.card import ModelCard
from lifecycle.store import ModelStore, StoredModel

# The stage that a version must serve in before it may serve in another.
_PREVIOUS_STAGE = {Stage.PRODUCTION: Stage.STAGING}
# Keys of the evidence of a validation, as audit logs store them.
BASELINE_EVIDENCE, MISSING_LABELS_EVIDENCE, GOLDEN_EVIDENCE = "against", "partly", "golden"
# The key of a promotion's evidence for the version in production that nothing could be compared
# with any more.
UNUSABLE_EVIDENCE = "unusable"


@dataclass(frozen=True, slots=True)
class PromotionRequest:
    """The stage to promote to, the operator and the reason, and the evidence of the release.

    ``evidence`` maps kinds of evidence in versioning.release_process to what proves each.
    """

    stage: Stage
    operator: str
    reason: str
    evidence: Mapping[str, str]


class PromotionGate:
    """Promotes and rolls back the versions in a store."""

    def __init__(self, store: ModelStore, rules: VersioningSettings) -> None:
        self._store, self._rules = store, rules

    def promote(self, model_tag: str, request: PromotionRequest) -> AuditLogEntry:
        """Let a version serve in a stage.

        Raises:
            PromotionRefused: These bytes have no passing report, have not been through the stage
                before, or lack the evidence that a release needs.
            ModelRejected: A file differs from the registered one.
            StateBusy: Another process is changing the audit log.

        """
        name, _ = model_tags.split(model_tag)
        # Before the audit log is locked, because it reads every file of the version.
        model = self._store.get(model_tag)
        with self._store.audit_log(name).transaction() as transaction:
            report, unusable = self._check(transaction.entries, model, request)
            event = AuditLogEvent(
                action=Action.PROMOTED,
                version=model.card.version,
                who=request.operator,
                card=model.digest,
                reason=request.reason,
                stage=request.stage,
                report=report.report,
                evidence={**request.evidence, **unusable},
            )
            return _record(transaction, event, model)

    def check(self, model_tag: str, request: PromotionRequest) -> None:
        """Raise as promote would, and change nothing."""
        model = self._store.get(model_tag)
        self._check(self._store.audit_log(model.card.name).entries(), model, request)

    def rollback(self, name: str, operator: str, reason: str) -> AuditLogEntry:
        """Let the version that served in production before the current one serve again.

        Raises:
            PromotionRefused: There is no such version, or its files have changed.

        """
        with self._store.audit_log(name).transaction() as transaction:
            target = _rollback_target(transaction, name)
            # Its report may be old: the version has served already.
            model = self._store.get(f"{name}:{target.version}")
            _check_unchanged(model, target)
            event = AuditLogEvent(
                action=Action.ROLLED_BACK,
                version=target.version,
                who=operator,
                card=model.digest,
                reason=reason,
                stage=Stage.PRODUCTION,
                report=target.report,
            )
            return _record(transaction, event, model)

    def _check(
        self, entries: Sequence[AuditLogEntry], model: StoredModel, request: PromotionRequest
    ) -> tuple[AuditLogEntry, dict[str, str]]:
        """Return the entry of the passing report, and the evidence of a comparison left out.

        Raises:
            PromotionRefused: A condition is not met.

        """
        report, unusable = passing_report(entries, model), dict[str, str]()
        _check_order(entries, model, request.stage)
        if request.stage is Stage.PRODUCTION:
            _check_release(model.card)
            unusable = _check_comparison(entries, report, model.card.tag, self._store)
            _check_validation_scope(entries, report, model.card.tag)
            self._check_evidence(model.card.tag, request)
        return report, unusable

    def _check_evidence(self, model_tag: str, request: PromotionRequest) -> None:
        missing = [kind for kind in self._rules.release_process if not request.evidence.get(kind)]
        if missing:
            raise PromotionRefused(
                model_tag,
                f"the release process requires evidence that is missing: {', '.join(missing)}",
                "Provide it (kaiten promote --help), or change versioning.release_process.",
            )


def passing_report(entries: Sequence[AuditLogEntry], model: StoredModel) -> AuditLogEntry:
    """Return the entry of the newest report on these bytes.

    Raises:
        PromotionRefused: There is none, it does not pass, or its file is missing or changed.

    """
    tag, version = model.card.tag, model.card.version
    remedy = f"Validate it: kaiten validate {tag} --data FILE."
    reports = [
        entry for entry in entries if entry.action is Action.VALIDATED and entry.version == version
    ]
    if not reports:
        raise PromotionRefused(tag, "it has no report", remedy)
    newest = reports[-1]
    if newest.card != model.digest:
        raise PromotionRefused(tag, "its report is about other files than it has now", remedy)
    if not newest.passed:
        reason = f"its newest report ({newest.at:%Y-%m-%d %H:%M} UTC) did not pass: {newest.reason}"
        remedy = "Train a better version, or change the threshold and validate it again."
        raise PromotionRefused(tag, reason, remedy)
    if newest.report is None or not model.has_report(newest.report):
        raise PromotionRefused(tag, "its report is missing or was changed", remedy)
    return newest


def _check_comparison(
    entries: Sequence[AuditLogEntry], report: AuditLogEntry, model_tag: str, store: ModelStore
) -> dict[str, str]:
    """Refuse a report without a comparison with the version in production.

    If that version can be loaded no more, return the evidence of it.
    """
    current = serving_entry(entries, Stage.PRODUCTION)
    if (
        current is None
        or current.card == report.card
        or report.evidence.get(BASELINE_EVIDENCE) == current.version
    ):
        return {}
    if _is_unusable(f"{model_tags.split(model_tag)[0]}:{current.version}", store):
        return {UNUSABLE_EVIDENCE: current.version}
    raise PromotionRefused(
        model_tag,
        f"its report does not compare it with {current.version}, which serves in production",
        "Validate it again, without --baseline.",
    )


def _check_validation_scope(
    entries: Sequence[AuditLogEntry], report: AuditLogEntry, model_tag: str
) -> None:
    """Refuse a report that passes because the validation covered less than it could have."""
    evidence = report.evidence
    if MISSING_LABELS_EVIDENCE in evidence:
        reason = "its report is about rows that lack some of its labels (--allow-missing-labels)"
        raise PromotionRefused(model_tag, reason, "Validate it on rows of all labels.")
    golden_digests = [
        entry.evidence[GOLDEN_EVIDENCE]
        for entry in entries
        if entry.card == report.card and GOLDEN_EVIDENCE in entry.evidence
    ]
    if golden_digests and evidence.get(GOLDEN_EVIDENCE) != golden_digests[-1]:
        reason = "its report leaves out the golden rows of an earlier report"
        raise PromotionRefused(model_tag, reason, "Validate it again, with --golden.")


def _is_unusable(model_tag: str, store: ModelStore) -> bool:
    """Return whether files of a version are lost or changed, so that nothing compares with it.

    An added file, an unreadable file or a missing signature does not count: its remedy is easy.
    """
    try:
        store.get(model_tag)
    except (ModelLost, ModelUnusable):
        return True
    except ModelRejected:
        return False
    return False


def _check_order(entries: Sequence[AuditLogEntry], model: StoredModel, stage: Stage) -> None:
    card, current = model.card, serving_entry(entries, stage)
    if current is not None and current.card == model.digest:
        raise PromotionRefused(card.tag, f"it already serves in {stage}", "There is nothing to do.")
    previous_stage = _PREVIOUS_STAGE.get(stage)
    if previous_stage is None:
        return
    current = serving_entry(entries, previous_stage)
    if current is None or current.card != model.digest:
        raise PromotionRefused(
            card.tag,
            f"it does not serve in {previous_stage} ({current.version if current else 'none'} "
            "does)",
            f"First: kaiten promote {card.tag} --to {previous_stage} --reason REASON.",
        )


def _check_release(card: ModelCard) -> None:
    if semver.Version.parse(card.version).prerelease:
        raise PromotionRefused(
            card.tag,
            "a pre-release cannot serve in production",
            "Register the same files as a release.",
        )


def _check_unchanged(model: StoredModel, entry: AuditLogEntry) -> None:
    if model.digest != entry.card:
        raise PromotionRefused(
            model.card.tag,
            "it is not the version that served: its card has changed",
            "Promote another version.",
        )


def _rollback_target(transaction: AuditLogTransaction, name: str) -> AuditLogEntry:
    """Return the entry of the version that served in production before the current one.

    A version that was rolled back from cannot be a target.
    """
    lineage = production_lineage(transaction.entries)
    if len(lineage) < 2:  # noqa: PLR2004  the current version, and one before it
        raise PromotionRefused(
            name, "no other version served in production before", "Promote another version."
        )
    return lineage[-2]


def _record(
    transaction: AuditLogTransaction, event: AuditLogEvent, model: StoredModel
) -> AuditLogEntry:
    """Write an event to the audit log, then into the version, which carries it into bentos."""
    entry = transaction.add(event)
    transaction.save()
    model.add_promotion(entry)
    return entry
