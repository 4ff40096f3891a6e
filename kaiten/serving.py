"""What serves: the description of a served version that all layers share."""

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
