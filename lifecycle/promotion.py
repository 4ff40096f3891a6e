"""Promotion: which version may serve where, and nothing in production without evidence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import semver

from kaiten import model_tags
from kaiten.errors import PromotionRefused
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Action, Draft, Entry, Event, Stage, good_in_production, serving
from lifecycle.card import ModelCard
from lifecycle.store import ModelStore, StoredModel

# What a version must have served as, or be serving as, before it may serve in a stage.
_BEFORE = {Stage.PRODUCTION: Stage.STAGING}


@dataclass(frozen=True, slots=True)
class Request:
    """Who wants a version to serve where, why, and what they bring as evidence of its release.

    ``evidence`` maps what versioning.release_process may ask for to what was found of it.
    """

    stage: Stage
    who: str
    reason: str
    evidence: Mapping[str, str]


class Promotions:
    """Moves the versions of the models in a store through the stages."""

    def __init__(self, store: ModelStore, rules: VersioningSettings) -> None:
        self._store, self._rules = store, rules

    def promote(self, tag: str, request: Request) -> Entry:
        """Let a version serve in a stage.

        PromotionRefused, saying why, unless these very bytes have a passing report, have been
        through the stage before, and come with the evidence that a release needs. ModelRejected
        where a file is not as it was registered; StateBusy where somebody else promotes.
        """
        name, _ = model_tags.split(tag)
        # Before the trail is held: it reads every file of the version.
        model = self._store.get(tag)
        with self._store.history(name).changing() as draft:
            report = self._checked(draft.entries, model, request)
            entry = draft.add(
                Event(
                    action=Action.PROMOTED,
                    version=model.card.version,
                    who=request.who,
                    card=model.digest,
                    reason=request.reason,
                    stage=request.stage,
                    report=report.report,
                    evidence=dict(request.evidence),
                )
            )
            draft.save()
            model.add_promotion(entry)
            return entry

    def check(self, tag: str, request: Request) -> None:
        """Raise as promote would, and change nothing."""
        model = self._store.get(tag)
        self._checked(self._store.history(model.card.name).entries(), model, request)

    def _checked(self, entries: Sequence[Entry], model: StoredModel, request: Request) -> Entry:
        """Return the entry of the report that lets a version serve in a stage."""
        report = passing_report(entries, model)
        _check_order(entries, model, request.stage)
        if request.stage is Stage.PRODUCTION:
            _check_release(model.card)
            _check_asked_enough(entries, report, model.card.tag)
            self._check_evidence(model.card.tag, request)
        return report

    def _check_evidence(self, tag: str, request: Request) -> None:
        missing = [each for each in self._rules.release_process if not request.evidence.get(each)]
        if missing:
            raise PromotionRefused(
                tag,
                f"the release process asks for evidence that is missing: {', '.join(missing)}",
                "Bring it (kaiten promote --help), or change versioning.release_process.",
            )

    def rollback(self, name: str, who: str, reason: str) -> Entry:
        """Let the version serve in production again that did before the one that does now.

        PromotionRefused where there is none, or its files are not as they were.
        """
        with self._store.history(name).changing() as draft:
            target = _last_good(draft, name)
            # Its report need not be new: it has served.
            model = self._store.get(f"{name}:{target.version}")
            _check_same_bytes(model, target)
            entry = draft.add(
                Event(
                    action=Action.ROLLED_BACK,
                    version=target.version,
                    who=who,
                    card=model.digest,
                    reason=reason,
                    stage=Stage.PRODUCTION,
                    report=target.report,
                )
            )
            draft.save()
            model.add_promotion(entry)
            return entry


def passing_report(entries: Sequence[Entry], model: StoredModel) -> Entry:
    """Return the entry of the newest report on these bytes, which must have passed."""
    tag, version = model.card.tag, model.card.version
    remedy = f"Validate it: kaiten validate {tag} --data FILE."
    reports = [
        entry for entry in entries if entry.action is Action.VALIDATED and entry.version == version
    ]
    if not reports:
        raise PromotionRefused(tag, "it has no report", remedy)
    newest = reports[-1]
    if newest.card != model.digest:
        raise PromotionRefused(tag, "its report is on other files than it has now", remedy)
    if not newest.passed:
        why = (
            f"its newest report, of {newest.at:%Y-%m-%d %H:%M} UTC, does not pass: {newest.reason}"
        )
        raise PromotionRefused(tag, why, "Train a better one; a threshold is in validation.")
    if newest.report is None or not model.has_report(newest.report):
        raise PromotionRefused(tag, "its report is missing or was changed", remedy)
    return newest


def _check_asked_enough(entries: Sequence[Entry], report: Entry, tag: str) -> None:
    """Refuse a report that passes because it asked for less than it could have."""
    current, told = serving(entries, Stage.PRODUCTION), report.evidence
    others = current is not None and current.card != report.card
    if others and current is not None and told.get("against") != current.version:
        reason = (
            f"its report does not compare it with {current.version}, which serves in production"
        )
        raise PromotionRefused(tag, reason, "Validate it again, without --against.")
    if "partly" in told:
        reason = "its report was made on rows that lack some of its labels (--partly)"
        raise PromotionRefused(tag, reason, "Validate it on rows of all labels.")
    before = [
        entry.evidence["golden"]
        for entry in entries
        if entry.card == report.card and "golden" in entry.evidence
    ]
    if before and told.get("golden") != before[-1]:
        reason = "its report leaves out the golden rows that an earlier one had"
        raise PromotionRefused(tag, reason, "Validate it again, with --golden.")


def _check_order(entries: Sequence[Entry], model: StoredModel, stage: Stage) -> None:
    card, current = model.card, serving(entries, stage)
    if current is not None and current.card == model.digest:
        raise PromotionRefused(card.tag, f"it serves in {stage} already", "There is nothing to do.")
    before = _BEFORE.get(stage)
    if before is None:
        return
    current = serving(entries, before)
    if current is None or current.card != model.digest:
        there = current.version if current else "none"
        raise PromotionRefused(
            card.tag,
            f"it does not serve in {before} (there: {there})",
            f"First: kaiten promote {card.tag} --to {before} --reason REASON.",
        )


def _check_release(card: ModelCard) -> None:
    if semver.Version.parse(card.version).prerelease:
        raise PromotionRefused(
            card.tag,
            "a pre-release never reaches production",
            "Register the same files as a release.",
        )


def _check_same_bytes(model: StoredModel, entry: Entry) -> None:
    if model.digest != entry.card:
        raise PromotionRefused(
            model.card.tag,
            "it is not the version that served: its card has changed",
            "Promote another version.",
        )


def _last_good(draft: Draft, name: str) -> Entry:
    """Return the entry of the version that production served before the present one.

    What has been rolled back from is not good, and is not come back to.
    """
    good = good_in_production(draft.entries)
    if len(good) < 2:  # noqa: PLR2004  the present one, and one before it
        raise PromotionRefused(
            name, "no version served in production before", "Promote another version."
        )
    return good[-2]
