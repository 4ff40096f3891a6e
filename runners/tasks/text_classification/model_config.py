"""Reading a classifier's config.json at registration: its architecture, labels and kind."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from transformers import AutoConfig
from yaml import YAMLError

from kaiten.errors import ModelRejected
from kaiten.model_kinds import (
    EMBEDDINGS,
    MULTI_LABEL,
    REGRESSION,
    RERANKERS,
    TEXT_PAIRS,
    kind_of_task,
)

_PAIR_TASKS = {
    "mnli",
    "qnli",
    "qqp",
    "rte",
    "mrpc",
    "wnli",
    "stsb",
    "sts-b",
    "snli",
    "xnli",
    "anli",
}
# Without "not". Two of them are needed, as a single text may be a duplicate, too.
_PAIR_LABELS = {
    *("entailment", "entail", "entails", "entailed"),
    *("contradiction", "contradict", "contradicts", "contradictory"),
    *("paraphrase", "equivalent", "duplicate", "semantically equivalent"),
}
_MIN_PAIR_LABELS = 2


@contextmanager
def reject_load_errors(field: str) -> Iterator[None]:
    """Turn any error of transformers into ModelRejected."""
    try:
        yield
    except ModelRejected:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"cannot be loaded: {type(error).__name__}: {lines[0] if lines else ''}"
        remedy = "Load it with transformers once to see why, and save it again."
        raise ModelRejected(field, reason, remedy) from error


def read_config(folder: Path) -> tuple[str, list[str]]:
    """Return the architecture and the labels.

    Raises:
        ModelRejected: The folder holds no classifier of single texts into one of several labels.

    """
    content = json.loads((folder / "config.json").read_bytes())
    _check_precision(content)
    with reject_load_errors("config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    architectures = config.architectures
    is_listed = isinstance(architectures, list | tuple) and architectures
    architecture = str(architectures[0]) if is_listed else ""
    if not architecture.endswith("ForSequenceClassification"):
        embeds, kind = f"{EMBEDDINGS.refusal}. ", "no text classifier"
        if (folder / "modules.json").is_file():
            kind = "a sentence-transformers model: it embeds texts, and has no labels"
        elif not architecture.endswith("Model"):
            embeds = ""
        raise ModelRejected(
            "config.json",
            f"names the architecture {architecture or 'none'}, which is {kind}",
            f"{embeds}Fine-tune and save an AutoModelForSequenceClassification.",
        )
    labels = _read_labels(config.id2label)
    _check_problem_type(config.problem_type, labels)
    _check_cross_encoder(content)
    _check_pipeline_tag(folder / "README.md")
    evidence = _find_pair_evidence(content, labels)
    if evidence:
        raise ModelRejected(
            "config.json",
            f"is of a model of sentence pairs ({evidence})",
            f"{TEXT_PAIRS.refusal}. If it was trained on single texts, correct what "
            "says otherwise, and repeat the registration.",
        )
    return architecture, labels


def _check_precision(content: dict[str, Any]) -> None:
    if "quantization_config" not in content:
        return
    quantization = content["quantization_config"]
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    raise ModelRejected(
        "config.json",
        f"is of a model quantised by {method or 'some method'}, which a CPU cannot compute exactly",
        "Register the model that it was made from, in full or half precision.",
    )


def _read_labels(id2label: Any) -> list[str]:  # noqa: ANN401  transformers has no types
    """Return the labels in order."""
    remedy = 'Set id2label in config.json to one text a label: {"0": "billing", "1": "delivery"}.'
    try:
        labels = [id2label[index] for index in range(len(id2label))]
    except (KeyError, TypeError):
        reason = "has an id2label that does not number its labels from 0"
        raise ModelRejected("config.json", reason, remedy) from None
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            reason = f"has the label {label!r} under {index} in id2label, which is not a text"
            raise ModelRejected("config.json", reason, remedy)
    duplicates = sorted({label for label in labels if labels.count(label) > 1})
    if duplicates:
        reason = f"has the label {duplicates[0]!r} more than once in id2label"
        raise ModelRejected("config.json", reason, "Give each label in id2label a name of its own.")
    return labels


def _check_problem_type(problem_type: str | None, labels: Sequence[str]) -> None:
    if problem_type == "regression":
        reason = "is of a regression (problem_type)"
        raise ModelRejected("config.json", reason, f"{REGRESSION.refusal}.")
    if len(labels) < 2:  # noqa: PLR2004
        reason = "has fewer than two labels, as a reranker has"
        raise ModelRejected("config.json", reason, f"{RERANKERS.refusal}.")
    if problem_type == "multi_label_classification":
        reason = "is of a multi-label classifier (problem_type)"
        raise ModelRejected("config.json", reason, f"{MULTI_LABEL.refusal}.")


def _check_cross_encoder(content: dict[str, Any]) -> None:
    if "sentence_transformers" in content or "sbert_ce_default_activation_function" in content:
        reason = "is of a sentence-transformers cross-encoder"
        raise ModelRejected("config.json", reason, f"{RERANKERS.refusal}.")


def _check_pipeline_tag(readme: Path) -> None:
    """Reject a kind of model that is not served, as the model's own README.md names it."""
    pipeline_tag = _read_pipeline_tag(readme)
    if kind := kind_of_task(str(pipeline_tag or "")):
        reason = f"says pipeline_tag: {pipeline_tag}"
        raise ModelRejected(readme.name, reason, f"{kind.refusal}. If it is wrong, correct it.")


def _find_pair_evidence(content: dict[str, Any], labels: Sequence[str]) -> str | None:
    """Return what shows that the model was trained on pairs of texts; None if nothing does."""
    task = str(content.get("finetuning_task") or "").lower()
    if task in _PAIR_TASKS:
        return f"finetuning_task is {task} in config.json"
    words = (label.lower().replace("_", " ").replace("-", " ") for label in labels)
    pair_labels = [word for word in words if word.removeprefix("not ").strip() in _PAIR_LABELS]
    if len(pair_labels) >= _MIN_PAIR_LABELS:
        return f"its labels are {', '.join(labels[:3])}"
    return None


def _read_pipeline_tag(readme: Path) -> str | None:
    if not readme.is_file():
        return None
    try:
        tag: str | None = ModelCard.load(readme, ignore_metadata_errors=True).data.get(
            "pipeline_tag"
        )
    except (ValueError, OSError, YAMLError):
        return None
    return tag
