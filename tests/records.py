"""Records of answers that nobody asked for."""

from typing import Any

from kaiten.events import PRODUCTION, PredictionRecord

_USUAL = PredictionRecord(
    request_id="request-1",
    item=0,
    subject="kaiten|tester",
    model="intent:1.0.0",
    arm=PRODUCTION,
    text_length=10,
    token_count=3,
    unknown_share=0.0,
    non_ascii_share=0.0,
    upper_case_share=0.1,
    label="billing",
    confidence=0.5,
    entropy=0.7,
    distance=None,
)


def recorded(**fields: Any) -> PredictionRecord:  # noqa: ANN401  of many types
    """Return a usual record, but for these fields."""
    return _USUAL._replace(**fields)
