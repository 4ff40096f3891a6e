import math
from typing import Any

import pytest

from kaiten.events import PredictionEvent
from monitors.drift.features import FEATURES, measure
from tests.prediction_events import prediction_event


def measure_event(event: PredictionEvent) -> dict[str, Any]:
    columns = measure([event.text], [event.label], [event])
    assert [*columns] == [feature.name for feature in FEATURES]
    return {name: values[0] for name, values in columns.items()}


@pytest.mark.parametrize(
    ("text", "length", "non_ascii", "upper_case"),
    [
        ("my delivery", 11, 0, 0),
        ("My DELIVERY", 11, 0, 9 / 11),
        ("my über delivery", 16, 1 / 16, 0),
        # Capitals of ASCII alone count.
        ("ÜBER", 4, 1 / 4, 3 / 4),
        ("\U0001f600", 1, 1, 0),
        ("\ud800x", 2, 1 / 2, 0),
        ("", 0, 0, 0),
    ],
)
def test_a_text_is_measured(text: str, length: int, non_ascii: float, upper_case: float) -> None:
    row = measure_event(prediction_event(text=text))
    assert row["text_length"] == length
    assert row["non_ascii_share"] == pytest.approx(non_ascii)
    assert row["upper_case_share"] == pytest.approx(upper_case)


def test_an_answer_is_measured() -> None:
    row = measure_event(
        prediction_event(
            label="other", tokens=8, unknown_tokens=2, confidence=0.25, entropy=1.5, distance=0.125
        )
    )
    assert (row["label"], row["token_count"], row["unknown_share"]) == ("other", 8, 0.25)
    assert (row["confidence"], row["entropy"], row["distance"]) == (0.25, 1.5, 0.125)


def test_a_text_without_tokens_or_distance_is_measured() -> None:
    row = measure_event(prediction_event(tokens=0, distance=None))
    assert row["unknown_share"] == 0
    assert math.isnan(row["distance"])
