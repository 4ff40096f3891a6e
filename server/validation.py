"""What `kaiten validate` does; apart from it, as it imports what serving does not need."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from kaiten.errors import BlankText, DataRejected
from kaiten.events import REFERENCE_FILE
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import RunnerSettings
from lifecycle.audit_log import Action, Event, Stage, serving
from lifecycle.environment import installed_versions
from lifecycle.evaluate import page, rows
from lifecycle.evaluate.report import Report
from lifecycle.evaluate.run import Answers, Asked, Device, Subject, Validator
from lifecycle.operators import Request, operator
from lifecycle.store import ModelStore, StoredModel
from monitors.drift.features import measure
from monitors.drift.whylogs_profiles import Profile
from monitors.feedback import accuracy_estimate
from runners import embedding_distance
from runners.batching.selection import Bounds, choose
from runners.engines import choose_engine
from runners.engines.cuda import reserved_bytes
from runners.tasks import find_task
from runners.tasks.text_classification.serving import Raw

console = Console(stderr=True, highlight=False, soft_wrap=True)
_NONE = "none"
_PROBE = "probe"
_CHECKED_AT_ONCE = 1000


def run(request: Request, *, as_json: bool) -> bool:
    """Validate, keep the report, tell of it, and return whether it passes."""
    settings = load_settings()
    store = ModelStore(settings.signatures)
    model = store.get(request.tag)
    asked = _asked(request, model, settings)
    compared = _compared(store, model, request.against)
    for each in [model] if compared is None else [model, compared]:
        _check_texts(each, asked)
    with _progress() as told:
        device = _device(model, settings.runners)
        validator = Validator(settings.validation, device, settings.home / "validation", told)
        subject = _subject(model, settings)
        load = partial(_subject, compared, settings) if compared else None
        report, answers = validator.validate(subject, load, asked)
    asked_for = _asked_for(request, asked, compared)
    calibrated = _calibration(model, asked.rows, answers.scores)
    report = report.model_copy(update={"estimate_error": calibrated.error})
    others = {
        **_reference(model, asked.rows, answers),
        accuracy_estimate.FILE: calibrated.model_dump_json().encode(),
    }
    digest = _keep(store, model, report, asked_for, others)
    validator.forget()
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        _tell(report, model.reports(digest))
    return report.passed


def _asked(request: Request, model: StoredModel, settings: Settings) -> Asked:
    columns = rows.Columns(request.text_column, request.label_column, request.slices)
    labels, limits = model.card.labels, settings.gateway
    data = rows.read(request.data, columns, limits)
    min_rows = settings.validation.min_rows
    rows.check(data, labels, min_rows, request.data, partly=request.partly)
    golden = None
    if request.golden is not None:
        golden = rows.read(request.golden, rows.Columns(columns.text, columns.label), limits)
        rows.check(golden, labels, 1, request.golden, partly=True)
    return Asked(request.data, data, request.golden, golden)


def _check_texts(model: StoredModel, asked: Asked) -> None:
    """Raise DataRejected for a text that the model's tokenizer leaves nothing of."""
    processor = find_task(model.card.task).load_processor(model.folder, model.card.max_length)
    files = [(asked.file, asked.rows)]
    if asked.golden_file is not None and asked.golden is not None:
        files.append((asked.golden_file, asked.golden))
    for file, data in files:
        for start in range(0, len(data), _CHECKED_AT_ONCE):
            try:
                processor.prepare(data.texts[start : start + _CHECKED_AT_ONCE])
            except BlankText as error:
                where = data.place(start + error.index, data.columns.text)
                reason = f"{where}: is empty to the model {model.card.tag}"
                remedy = "Its tokenizer removes all of the characters: remove the row."
                raise DataRejected(file, reason, remedy) from None


def _compared(store: ModelStore, model: StoredModel, against: str | None) -> StoredModel | None:
    """Return the version to compare with: that which was named, else that in production."""
    if against == _NONE:
        return None
    if against is None:
        entry = serving(store.history(model.card.name).entries(), Stage.PRODUCTION)
        if entry is None or entry.version == model.card.version:
            return None
        against = f"{model.card.name}:{entry.version}"
    return store.get(against)


def _subject(model: StoredModel, settings: Settings) -> Subject:
    family, batching = find_task(model.card.task), settings.batching
    task = family.load(model.folder, model.card.max_length, settings.runners)
    bounds = Bounds(
        items=batching.max_batch_items or task.model.batch_items,
        tokens=batching.max_batch_tokens or task.model.batch_tokens,
        padding=batching.max_padding_ratio,
        packed=task.model.packed,
    )
    task.model.warm_up(bounds.tokens, bounds.items)
    embedded = task.model.infer(task.processor.prepare([_PROBE])).embeddings
    width = 0 if embedded is None else embedded.shape[1]

    def predict(texts: Sequence[str]) -> NDArray[np.float32]:
        items = task.processor.prepare(texts)
        found = np.empty((len(items), len(model.card.labels) + width), np.float32)
        waiting = np.arange(len(items))
        # By the batcher's own choice, so that the batches are like those that callers get.
        while len(waiting):
            costs = [items[index].cost for index in waiting]
            chosen = choose(costs, [False] * len(costs), bounds)
            batch = [items[index] for index in waiting[chosen]]
            raw = task.model.infer(batch, alone=True)
            scores = [each.scores for each in task.processor.finish(batch, raw)]
            known = [scores] if raw.embeddings is None else [scores, raw.embeddings]
            found[waiting[chosen]] = np.hstack(known)
            waiting = np.delete(waiting, chosen)
        return found

    return Subject(model, predict, width)


def _device(model: StoredModel, settings: RunnerSettings) -> Device:
    choice = choose_engine(model.folder, settings)
    names = [
        *model.card.framework_versions,
        *(model.card.engine.versions if model.card.engine else ()),
    ]
    versions = {name: found for name, found in installed_versions(names).items() if found}
    on_cpu = choice.device == "cpu"
    memory = partial(_rss, psutil.Process()) if on_cpu else reserved_bytes
    return Device(f"{choice.engine} on {choice.device}", memory, versions)


def _rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _reference(model: StoredModel, asked: rows.Rows, answers: Answers) -> dict[str, bytes]:
    """Return the files that drift is measured from, by name: a whylogs profile, and centroids."""
    distances, files = _placed(answers)
    processor = find_task(model.card.task).load_processor(model.folder, model.card.max_length)
    # Probabilities are the softmax of their own logarithms.
    logits = np.log(np.maximum(answers.scores, np.finfo(np.float32).tiny))
    found = processor.finish(processor.prepare(asked.texts), Raw(logits, distances))
    labels = [model.card.labels[answer.index] for answer in found]
    columns = measure(asked.texts, labels, found)
    return {REFERENCE_FILE: Profile.of(columns).written(), **files}


def _placed(answers: Answers) -> tuple[NDArray[np.float32], dict[str, bytes]]:
    """Return each row's distance to the centroids of the others, and the file of all centroids.

    Where the network has no embeddings, distances are NaN, and there is no file.
    """
    embeddings, answered = answers.embeddings, answers.scores.argmax(axis=1)
    if not embeddings.shape[1]:
        return np.full(len(answered), np.nan, np.float32), {}
    content = embedding_distance.written(embedding_distance.centroids_of(embeddings, answered))
    found = embedding_distance.distances_within(embeddings, answered)
    return found, {embedding_distance.CENTROIDS_FILE: content}


def _calibration(
    model: StoredModel, asked: rows.Rows, scores: NDArray[np.float32]
) -> accuracy_estimate.Calibration:
    """Return what turns confidence into the accuracy to expect, by the rows' labels."""
    labels = {label: index for index, label in enumerate(model.card.labels)}
    right = np.array([labels.get(label, -1) for label in asked.labels])
    return accuracy_estimate.fit(scores.max(axis=1), scores.argmax(axis=1) == right)


def _asked_for(request: Request, asked: Asked, compared: StoredModel | None) -> dict[str, str]:
    """Return what the trail tells of how much was asked, so that less can be told from more."""
    told = {"partly": "true"} if request.partly else {}
    if compared is not None:
        told["against"] = compared.card.version
    if asked.golden is not None:
        told["golden"] = asked.golden.digest
    return told


def _keep(
    store: ModelStore,
    model: StoredModel,
    report: Report,
    asked_for: dict[str, str],
    others: Mapping[str, bytes],
) -> str:
    """Write the report into the version, then into the trail; return its SHA-256."""
    others = {"report.html": page.render(report).encode(), **others}
    digest = model.add_report(report.model_dump_json(indent=1) + "\n", others)
    with store.history(model.card.name).changing() as draft:
        draft.add(
            Event(
                action=Action.VALIDATED,
                version=model.card.version,
                who=operator(),
                card=report.card,
                reason=report.reason,
                report=digest,
                passed=report.passed,
                evidence=asked_for,
            )
        )
    return digest


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows how many rows of a version are answered."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bars: dict[tuple[str, int], TaskID] = {}

        def told(tag: str, known: int, rows: int) -> None:
            if (tag, rows) not in bars:
                bars[tag, rows] = progress.add_task(tag, total=rows)
            progress.update(bars[tag, rows], completed=known)

        yield told


def _tell(report: Report, folder: Path) -> None:
    measures, comparison = report.measures, report.comparison
    verdict = "[green]passed[/green]" if report.passed else "[red]refused[/red]"
    console.print(
        f"{report.tag} {verdict} on {report.data.rows} rows of {escape(report.data.file)}"
    )
    console.print(
        f"  accuracy {measures.accuracy:.3f}, macro F1 {measures.macro.f1:.3f}, calibration error "
        f"{measures.calibration_error:.3f}, p99 {report.cost.latency_p99_ms:.1f} ms"
    )
    console.print(
        f"  accuracy as estimated without labels is {report.estimate_error:.3f} off, by windows of "
        "these rows"
    )
    if comparison is not None:
        console.print(
            f"  against {comparison.against}: {100 * comparison.difference:+.2f} points "
            f"({100 * comparison.low:+.2f} to {100 * comparison.high:+.2f}), McNemar's p "
            f"{comparison.p_value:.3g}"
        )
    for check in report.checks:
        if not check.passed:
            console.print(f"  [red]refused:[/red] {check}")
    typer.echo(folder / "report.html")
