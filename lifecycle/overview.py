"""An overview of versions: their stages, their latest reports, and which of them serve."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lifecycle.audit_log import Stage
from lifecycle.baseline import MeasuredReport, latest_report
from lifecycle.card import REPORTS, ModelCard, card_differences
from lifecycle.resolution import entry_in_stage, stage_entries
from lifecycle.store import ModelStore, StoredModel

_DIGEST_CHARS = 12
_FILES = "files."


@dataclass(frozen=True, slots=True)
class VersionOverview:
    """A version with its stages and its latest report.

    ``serves`` is whether a start with these settings would serve it; a running server may serve
    another.
    """

    card: ModelCard
    stages: tuple[Stage, ...]
    report: MeasuredReport | None
    serves: bool

    def as_json(self) -> dict[str, object]:
        """Return the card's fields, and those of the overview."""
        return {
            **self.card.model_dump(mode="json"),
            "stages": [stage.value for stage in self.stages],
            "serves": self.serves,
            "report": self.report.model_dump(mode="json") if self.report else None,
        }


def overview_of(
    models: Sequence[StoredModel], store: ModelStore, names: Sequence[str]
) -> Iterator[VersionOverview]:
    """Yield the overview of each version; ``names`` are those in serving.models.

    Raises:
        AuditLogCorrupt: An audit log was changed.

    """
    logs = {name: stage_entries(name, store) for name in {model.card.name for model in models}}
    for model in models:
        entries = {stage: entry_in_stage(logs[model.card.name], stage) for stage in Stage}
        digest = model.digest
        stages = tuple(
            stage for stage, entry in entries.items() if entry is not None and entry.card == digest
        )
        references = {model.card.tag, *(f"{model.card.name}@{stage.value}" for stage in stages)}
        if Stage.PRODUCTION in stages:
            references.add(model.card.name)
        report = latest_report(model.folder / REPORTS, digest)
        yield VersionOverview(model.card, stages, report, not references.isdisjoint(names))


def differences(left: VersionOverview, right: VersionOverview) -> dict[str, list[str | None]]:
    """Return what differs between two versions: their measures first, then their cards' fields.

    Values are for people: digests are cut, and of a file it says only that it was changed.
    """
    figures = [side.report.figures if side.report else {} for side in (left, right)]
    rows: dict[str, list[str | None]] = {
        name: [side.get(name) for side in figures]
        for name in dict.fromkeys([*figures[0], *figures[1]])
    }
    for field, values in card_differences(left.card, right.card).items():
        if field.startswith(_FILES):
            rows[field.removeprefix(_FILES)] = [*_file_change(*values)]
        else:
            rows[field] = [value and _shortened(field, value) for value in values]
    return rows


def _file_change(left: str | None, right: str | None) -> tuple[str | None, str | None]:
    """Return a file's presence on either side."""
    if left is None:
        return None, "added"
    return ("present", "changed") if right is not None else ("present", None)


def _shortened(field: str, value: str) -> str:
    is_digest = field.rpartition(".")[2] in {"training_data", "reference_data", "git_commit"}
    return value[:_DIGEST_CHARS] if is_digest else value
