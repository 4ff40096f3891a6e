"""Renders a model card as a README in the format of Hugging Face's model cards."""

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from yaml import YAMLError

from lifecycle.card import ModelCard

README_FILE = "README.md"
_MAX_LABELS = 20


def render_readme(card: ModelCard, original: str = "") -> str:
    """Return the README of a card; ``original`` is the model's own README, which it includes."""
    limits = ["## Limits", "", card.provenance.limits, ""] if card.provenance.limits else []
    notes = ["## Notes", "", *(f"- {note}" for note in card.notes), ""] if card.notes else []
    rows = [f"| {field} | {value} |" for field, value in _fields(card).items() if value]
    lines = [
        "---",
        _metadata(card).to_yaml().strip(),
        "---",
        "",
        f"# {card.tag}",
        "",
        "| | |",
        "|---|---|",
        *rows,
        "",
        *limits,
        *notes,
    ]
    return "\n".join(lines) + (f"\n{_without_metadata(original)}" if original else "")


def _metadata(card: ModelCard) -> ModelCardData:
    results = [
        EvalResult(
            task_type=card.task,
            dataset_type="own",
            dataset_name="own test rows",
            metric_type=name,
            metric_value=value,
        )
        for name, value in card.provenance.metrics.items()
    ]
    return ModelCardData(
        model_name=card.tag,
        license=card.provenance.licence,
        pipeline_tag=card.task,
        library_name="transformers",
        base_model=None,
        tags=["kaiten", card.architecture],
        eval_results=results or None,
    )


def _fields(card: ModelCard) -> dict[str, str | None]:
    provenance = card.provenance
    labels = ", ".join(card.labels[:_MAX_LABELS])
    more = len(card.labels) - _MAX_LABELS
    trained_at = provenance.trained_at
    training_data, reference_data = provenance.training_data, provenance.reference_data
    return {
        "task": card.task,
        "architecture": card.architecture,
        "labels": labels + (f" and {more} more" if more > 0 else ""),
        "longest input": f"{card.max_length} tokens",
        "source": provenance.source,
        "parent": provenance.parent,
        "trained": f"{trained_at:%Y-%m-%d}" if trained_at else None,
        "training data": f"SHA-256 {training_data}" if training_data else None,
        "reference data": f"SHA-256 {reference_data}" if reference_data else None,
        "git commit": provenance.git_commit,
        "licence": provenance.licence,
    }


def declared_licence(text: str) -> str | None:
    """Return the licence in the metadata of a README, None if it declares none."""
    try:
        licence = huggingface_hub.ModelCard(text, ignore_metadata_errors=True).data.get("license")
    except (ValueError, YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _without_metadata(text: str) -> str:
    """Return a README without the YAML block at its start."""
    head, mark, rest = text.partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    return (rest if mark else text).lstrip() if head or mark else text
