"""The card as a README, in the form that Hugging Face's model cards have."""

import huggingface_hub
from huggingface_hub import EvalResult, ModelCardData
from yaml import YAMLError

from lifecycle.card import ModelCard

README_FILE = "README.md"
_LABELS_SHOWN = 20


def render(card: ModelCard, own: str = "") -> str:
    """Return the README of a card; ``own`` is the one that the model came with."""
    known = card.provenance
    results = [
        EvalResult(
            task_type=card.task,
            dataset_type="own",
            dataset_name="own test rows",
            metric_type=name,
            metric_value=value,
        )
        for name, value in known.metrics.items()
    ]
    data = ModelCardData(
        model_name=card.tag,
        license=known.licence,
        pipeline_tag=card.task,
        library_name="transformers",
        base_model=None,
        tags=["kaiten", card.architecture],
        eval_results=results or None,
    )
    shown = ", ".join(card.labels[:_LABELS_SHOWN])
    more = len(card.labels) - _LABELS_SHOWN
    rows = {
        "task": card.task,
        "architecture": card.architecture,
        "labels": shown + (f" and {more} more" if more > 0 else ""),
        "longest input": f"{card.max_length} tokens",
        "source": known.source,
        "made from": known.parent,
        "trained": known.trained_at and f"{known.trained_at:%Y-%m-%d}",
        "training data": known.training_data and f"SHA-256 {known.training_data}",
        "reference data": known.reference_data and f"SHA-256 {known.reference_data}",
        "git commit": known.git_commit,
        "licence": known.licence,
    }
    table = [f"| {key} | {value} |" for key, value in rows.items() if value]
    limits = ["## Limits", "", known.limits, ""] if known.limits else []
    listed = [f"- {note}" for note in card.notes]
    notes = ["## Notes", "", *listed, ""] if listed else []
    lines = [
        "---",
        data.to_yaml().strip(),
        "---",
        "",
        f"# {card.tag}",
        "",
        "| | |",
        "|---|---|",
        *table,
        "",
        *limits,
        *notes,
    ]
    return "\n".join(lines) + (f"\n{_body(own)}" if own else "")


def declared_licence(text: str) -> str | None:
    """Return the licence in the metadata of a README, None if it declares none."""
    try:
        licence = huggingface_hub.ModelCard(text, ignore_metadata_errors=True).data.get("license")
    except (ValueError, YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _body(text: str) -> str:
    """Return a README without the metadata at its head."""
    head, mark, rest = text.partition("\n---\n") if text.startswith("---\n") else ("", "", text)
    return (rest if mark else text).lstrip() if head or mark else text
