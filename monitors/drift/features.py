"""What of an answer is watched, in the order in which it comes about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kaiten.events import PredictionRecord

# A column of each feature, all of one length.
Columns = Mapping[str, NDArray[np.float64] | NDArray[np.str_]]
LABEL = "label"


class Stage(IntEnum):
    """Where on the way from a text to its answer; what comes first can cause what comes after."""

    TEXT = 0
    TOKENS = 1
    EMBEDDING = 2
    ANSWER = 3


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that is watched, by its name in a record: a number, or a class."""

    name: str
    stage: Stage
    of_classes: bool = False


FEATURES = (
    Feature("text_length", Stage.TEXT),
    Feature("non_ascii_share", Stage.TEXT),
    Feature("upper_case_share", Stage.TEXT),
    Feature("token_count", Stage.TOKENS),
    Feature("unknown_share", Stage.TOKENS),
    Feature("distance", Stage.EMBEDDING),
    Feature("confidence", Stage.ANSWER),
    Feature("entropy", Stage.ANSWER),
    Feature(LABEL, Stage.ANSWER, of_classes=True),
)


def columns_of(records: Sequence[PredictionRecord]) -> Columns:
    """Return records in columns; what a record does not have is NaN."""
    return {
        # None becomes NaN.
        feature.name: np.array(
            [getattr(each, feature.name) for each in records],
            dtype=str if feature.of_classes else np.float64,
        )
        for feature in FEATURES
    }
