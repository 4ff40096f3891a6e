"""Prediction events of made-up answers."""

from typing import Any

from kaiten.events import PredictionEvent

_USUAL: dict[str, Any] = {
    "request_id": "request-1",
    "item": 0,
    "subject": "kaiten|tester",
    "model_tag": "intent:1.0.0",
    "text": "My invoice",
    "label": "billing",
    "tokens": 3,
    "unknown_tokens": 0,
    "confidence": 0.5,
    "entropy": 0.7,
    "distance": None,
    "truncated": False,
}


def prediction_event(**fields: Any) -> PredictionEvent:  # noqa: ANN401  of many types
    """Return a usual event, but for these fields."""
    return PredictionEvent(**(_USUAL | fields))
