"""Validates a version: measures it, and writes its report, drift baseline and calibration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from kaiten import model_tags
from kaiten.errors import BlankText, DataRejected, Detail, InvalidSettings
from kaiten.events import BASELINE_FILE
from kaiten.settings.loader import Settings, describe_sources, load_settings
from kaiten.settings.models import RunnerSettings
from lifecycle.audit_log import Action, AuditLogEvent, Stage, current_operator, serving_entry
from lifecycle.environment import installed_versions
from lifecycle.evaluate import page
from lifecycle.evaluate.report import ValidationReport
from lifecycle.evaluate.rows import Columns, Rows, check_rows, name_labels, read_rows
from lifecycle.evaluate.run import (
    Candidate,
    InferenceDevice,
    ReportProgress,
    RowPredictions,
    ValidationData,
    Validator,
)
from lifecycle.promotion import BASELINE_EVIDENCE, GOLDEN_EVIDENCE, MISSING_LABELS_EVIDENCE
from lifecycle.store import ModelStore, StoredModel
from monitors.drift.features import measure
from monitors.drift.whylogs_profiles import Profile
from monitors.feedback import accuracy_estimate
from monitors.logging.setup import add_audit_file
from runners import embedding_distance
from runners.engines import choose_engine
from runners.engines.cuda import reserved_bytes
from runners.offline import OfflinePredictor
from runners.tasks import find_task
from runners.tasks.text_classification.serving import Raw

_NO_BASELINE = "none"
_CHECKED_TEXTS = 1000


@dataclass(frozen=True, slots=True)
class ValidationRequest:
    """The version to validate, and the files and columns to validate it on.

    ``baseline`` is the version to compare with: a model tag, ``none``, or None for the version in
    production.
    """

    model_tag: str
    data: Path
    golden: Path | None = None
    baseline: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    slices: tuple[str, ...] = ()
    allow_missing_labels: bool = False


def validate_version(
    request: ValidationRequest, report_progress: ReportProgress = lambda *_: None
) -> tuple[ValidationReport, Path]:
    """Validate a version; return its report and the folder that now holds it.

    Raises:
        DataRejected: The rows cannot be used.
        SetupError: A version is missing or changed, or cannot be loaded here, or its thresholds
            are set for a misspelled name.

    """
    settings = load_settings()
    add_audit_file(settings.audit_folder)
    store = ModelStore(settings.signatures)
    model = store.get(request.model_tag)
    _check_threshold_names(settings, store, model.card.name)
    data = _read_data(request, model, settings)
    baseline = _find_baseline(store, model, request.baseline)
    for version in [model] if baseline is None else [model, baseline]:
        _check_texts(version, data)
    device = _describe_device(model, settings.runners)
    validator = Validator(
        settings.validation, device, settings.home / "validation", report_progress
    )
    load_baseline = partial(_load_candidate, baseline, settings) if baseline else None
    report, predictions = validator.validate(_load_candidate(model, settings), load_baseline, data)
    calibration = _fit_calibration(model, data.rows, predictions.scores)
    report = report.model_copy(update={"estimate_error": calibration.error})
    files = {
        **_baseline_files(model, data.rows, predictions),
        accuracy_estimate.FILE: calibration.model_dump_json().encode(),
    }
    digest = save_report(store, model, report, _evidence(request, data, baseline), files)
    validator.remove_cache()
    return report, model.reports(digest)


def save_report(
    store: ModelStore,
    model: StoredModel,
    report: ValidationReport,
    evidence: Mapping[str, str],
    files: Mapping[str, bytes],
) -> str:
    """Write a report into the version, then into the audit log; return its SHA-256."""
    files = {"report.html": page.render(report).encode(), **files}
    digest = model.add_report(report.model_dump_json(indent=1) + "\n", files)
    event = AuditLogEvent(
        action=Action.VALIDATED,
        version=model.card.version,
        who=current_operator(),
        card=report.card,
        reason=report.reason,
        report=digest,
        passed=report.passed,
        evidence=dict(evidence),
    )
    with store.audit_log(model.card.name).transaction() as transaction:
        transaction.add(event)
    return digest


def _check_threshold_names(settings: Settings, store: ModelStore, name: str) -> None:
    """Reject thresholds that are meant for the model but name it wrongly.

    Without them, the thresholds of all models would decide. Other unknown names are accepted,
    because the models of one settings file may be registered on several machines.
    """
    configured = settings.validation.models
    if name in configured:
        return
    unknown = configured.keys() - {model_tags.split(tag)[0] for tag in store.tags()}
    if guess := get_close_matches(name, unknown, n=1):
        reason = f"no model of this name is registered; did you mean {name}? Correct or remove it"
        raise InvalidSettings([Detail(f"validation.models.{guess[0]}", reason)], describe_sources())


def _read_data(
    request: ValidationRequest, model: StoredModel, settings: Settings
) -> ValidationData:
    columns = Columns(request.text_column, request.label_column, request.slices)
    labels, limits = model.card.labels, settings.gateway
    rows = name_labels(read_rows(request.data, columns, limits), labels)
    min_rows, setting = settings.validation.threshold(model.card.name, "min_rows")
    check_rows(
        rows,
        labels,
        int(min_rows),
        request.data,
        allow_missing_labels=request.allow_missing_labels,
        setting=setting,
    )
    golden = None
    if request.golden is not None:
        golden = read_rows(request.golden, Columns(columns.text, columns.label), limits)
        golden = name_labels(golden, labels)
        check_rows(golden, labels, 1, request.golden, allow_missing_labels=True)
    return ValidationData(request.data, rows, request.golden, golden)


def _check_texts(model: StoredModel, data: ValidationData) -> None:
    """Raise DataRejected for a text of which the model's tokenizer leaves no token."""
    processor = find_task(model.card.task).load_processor(model.folder, model.card.max_length)
    files = [(data.file, data.rows)]
    if data.golden_file is not None and data.golden is not None:
        files.append((data.golden_file, data.golden))
    for file, rows in files:
        for start in range(0, len(rows), _CHECKED_TEXTS):
            try:
                processor.prepare(rows.texts[start : start + _CHECKED_TEXTS])
            except BlankText as error:
                place = rows.place(start + error.index, rows.columns.text)
                reason = f"{place}: is empty to the model {model.card.tag}"
                remedy = "Its tokenizer removes all of the characters: remove the row."
                raise DataRejected(file, reason, remedy) from None


def _find_baseline(
    store: ModelStore, model: StoredModel, baseline: str | None
) -> StoredModel | None:
    """Return the version to compare with: the one that was named, or the one in production."""
    if baseline == _NO_BASELINE:
        return None
    if baseline is None:
        entry = serving_entry(store.audit_log(model.card.name).entries(), Stage.PRODUCTION)
        if entry is None or entry.version == model.card.version:
            return None
        baseline = f"{model.card.name}:{entry.version}"
    return store.get(baseline)


def _load_candidate(model: StoredModel, settings: Settings) -> Candidate:
    task_module = find_task(model.card.task)
    task = task_module.load(model.folder, model.card.max_length, settings.runners)
    predictor = OfflinePredictor(task, settings.batching)
    return Candidate(model, predictor.predict, predictor.embedding_width)


def _describe_device(model: StoredModel, settings: RunnerSettings) -> InferenceDevice:
    choice = choose_engine(model.folder, settings)
    packages = [
        *model.card.framework_versions,
        *(model.card.engine.versions if model.card.engine else ()),
    ]
    versions = {
        package: version for package, version in installed_versions(packages).items() if version
    }
    memory_bytes: Callable[[], int] = reserved_bytes
    if choice.device == "cpu":
        memory_bytes = partial(_resident_bytes, psutil.Process())
    return InferenceDevice(f"{choice.engine} on {choice.device}", memory_bytes, versions)


def _resident_bytes(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


def _baseline_files(
    model: StoredModel, rows: Rows, predictions: RowPredictions
) -> dict[str, bytes]:
    """Return the files that drift is measured against: a whylogs profile, and centroids."""
    distances, files = _measure_distances(predictions)
    processor = find_task(model.card.task).load_processor(model.folder, model.card.max_length)
    # Probabilities are the softmax of their own logarithms.
    logits = np.log(np.maximum(predictions.scores, np.finfo(np.float32).tiny))
    finished = processor.finish(processor.prepare(rows.texts), Raw(logits, distances))
    labels = [model.card.labels[prediction.index] for prediction in finished]
    profile = Profile.of(measure(rows.texts, labels, finished))
    return {BASELINE_FILE: profile.serialize(), **files}


def _measure_distances(
    predictions: RowPredictions,
) -> tuple[NDArray[np.float32], dict[str, bytes]]:
    """Return each row's distance to the centroids of the other rows, and the file of centroids.

    If the network has no embeddings, distances are NaN and there is no file.
    """
    embeddings, predicted = predictions.embeddings, predictions.scores.argmax(axis=1)
    if not embeddings.shape[1]:
        return np.full(len(predicted), np.nan, np.float32), {}
    content = embedding_distance.serialize_centroids(
        embedding_distance.compute_centroids(embeddings, predicted)
    )
    distances = embedding_distance.measure_distances_within(embeddings, predicted)
    return distances, {embedding_distance.CENTROIDS_FILE: content}


def _fit_calibration(
    model: StoredModel, rows: Rows, scores: NDArray[np.float32]
) -> accuracy_estimate.Calibration:
    """Fit the map from confidence to expected accuracy on labelled rows."""
    labels = {label: index for index, label in enumerate(model.card.labels)}
    correct_labels = np.array([labels.get(label, -1) for label in rows.labels])
    return accuracy_estimate.fit(scores.max(axis=1), scores.argmax(axis=1) == correct_labels)


def _evidence(
    request: ValidationRequest, data: ValidationData, baseline: StoredModel | None
) -> dict[str, str]:
    """Return what the validation covered, which the promotion gate requires to be enough."""
    evidence = {MISSING_LABELS_EVIDENCE: "true"} if request.allow_missing_labels else {}
    if baseline is not None:
        evidence[BASELINE_EVIDENCE] = baseline.card.version
    if data.golden is not None:
        evidence[GOLDEN_EVIDENCE] = data.golden.digest
    return evidence
