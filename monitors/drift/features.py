"""The features of an answer that drift is detected in, and their measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from kaiten.events import Answer

# A column for each feature, all of one length.
Columns = Mapping[str, NDArray[np.float64] | NDArray[np.str_]]
LABEL = "label"
_UPPER_CASE = ascii_uppercase.encode()


class FeatureStage(IntEnum):
    """Where a feature arises on the way from a text to its answer; earlier ones are causes."""

    TEXT = 0
    TOKENS = 1
    EMBEDDING = 2
    ANSWER = 3


@dataclass(frozen=True, slots=True)
class Feature:
    """A number, or a class such as the label; shares are from 0 to 1."""

    name: str
    stage: FeatureStage
    of_classes: bool = False


FEATURES = (
    Feature("text_length", FeatureStage.TEXT),
    Feature("non_ascii_share", FeatureStage.TEXT),
    Feature("upper_case_share", FeatureStage.TEXT),
    Feature("token_count", FeatureStage.TOKENS),
    # Of the tokens, those that the vocabulary lacks.
    Feature("unknown_share", FeatureStage.TOKENS),
    Feature("distance", FeatureStage.EMBEDDING),
    Feature("confidence", FeatureStage.ANSWER),
    Feature("entropy", FeatureStage.ANSWER),
    Feature(LABEL, FeatureStage.ANSWER, of_classes=True),
)


def measure(texts: Sequence[str], labels: Sequence[str], answers: Sequence[Answer]) -> Columns:
    """Return the features of answered texts, one row each; a missing distance is NaN."""
    lengths = _numbers([len(text) for text in texts])
    ascii_texts = [text.encode("ascii", "ignore") for text in texts]
    ascii_lengths = _numbers([len(text) for text in ascii_texts])
    lower_lengths = _numbers([len(text.translate(None, _UPPER_CASE)) for text in ascii_texts])
    tokens = _numbers([answer.tokens for answer in answers])
    return {
        "text_length": lengths,
        "non_ascii_share": _share(lengths - ascii_lengths, lengths),
        "upper_case_share": _share(ascii_lengths - lower_lengths, lengths),
        "token_count": tokens,
        "unknown_share": _share(_numbers([answer.unknown_tokens for answer in answers]), tokens),
        "distance": _numbers([answer.distance for answer in answers]),
        "confidence": _numbers([answer.confidence for answer in answers]),
        "entropy": _numbers([answer.entropy for answer in answers]),
        LABEL: np.array(labels, dtype=str),
    }


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    # None becomes NaN.
    return np.array(values, dtype=np.float64)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
