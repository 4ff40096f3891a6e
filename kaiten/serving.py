"""Served versions and computed batches, as all layers describe them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kaiten.events import PRODUCTION


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version that serves in one arm.

    ``card_digest`` is the SHA-256 of its model card, and ``baseline`` the folder of the validation
    report that its predictions are compared with, None without one.
    """

    model_tag: str
    labels: tuple[str, ...]
    card_digest: str
    baseline: Path | None = None
    arm: str = PRODUCTION


@dataclass(frozen=True, slots=True)
class BatchStats:
    """One computed batch, with the queue delay of each of its items."""

    items: int
    tokens: int
    padded_tokens: int
    queue_delays_s: Sequence[float]
    inference_s: float

    @property
    def padding_ratio(self) -> float:
        """The share of the computed tokens that was padding, from 0 to below 1."""
        # Items may cost nothing: a tokenizer without special tokens finds none in some texts.
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else 0.0
