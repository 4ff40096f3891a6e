"""Profiles of made-up answers, usual and unusual."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from monitors.drift.features import Columns
from monitors.drift.whylogs_profiles import Profile

LABELS = np.array([f"label-{index:02}" for index in range(20)])


def answers(random: np.random.Generator, rows: int, **changed: NDArray[np.float64]) -> Columns:
    """Return columns of answers as they usually are, but for those that are given."""
    length = random.gamma(4, 15, rows).round()
    confidence = random.beta(5, 1, rows)
    usual: Mapping[str, NDArray[np.float64] | NDArray[np.str_]] = {
        "text_length": length,
        "non_ascii_share": np.zeros(rows),
        "upper_case_share": random.beta(1, 20, rows).round(2),
        "token_count": (length / 5).round() + 2,
        "unknown_share": np.zeros(rows),
        "distance": random.normal(0.6, 0.1, rows),
        "confidence": confidence,
        "entropy": 1 - confidence,
        "label": random.choice(LABELS, rows),
    }
    return {**usual, **changed}


def usual(random: np.random.Generator, rows: int = 1000) -> Profile:
    """Return a profile of usual answers."""
    return Profile.of(answers(random, rows))
