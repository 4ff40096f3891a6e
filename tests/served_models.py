"""Versions that serve, for what asks a registry."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kaiten.serving import ServedModel


def served_models(
    baselines: Mapping[str, Path | None], labels: Sequence[str] = ()
) -> dict[str, ServedModel]:
    """Return versions by model tag, with their baselines, all of the same labels."""
    return {tag: ServedModel(tag, (*labels,), "", baseline) for tag, baseline in baselines.items()}
