import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from monitors.feedback.measures import scores


@pytest.mark.parametrize("rows", [1, 2, 10, 500])
@pytest.mark.parametrize("labels", [1, 2, 7, 77])
@pytest.mark.parametrize("shift", [0, 3])
def test_scores_are_those_of_scikit_learn(rows: int, labels: int, shift: int) -> None:
    random = np.random.default_rng(rows * 100 + labels)
    right = [f"label {number}" for number in random.integers(labels, size=rows)]
    # Shifted, some labels are never answered, and some never right.
    answered = [f"label {number + shift}" for number in random.integers(labels, size=rows)]
    macro_scores = scores(answered, right)
    precision, recall, f1, _ = precision_recall_fscore_support(
        right, answered, average="macro", zero_division=0
    )
    assert macro_scores.accuracy == pytest.approx(accuracy_score(right, answered))
    assert macro_scores.precision == pytest.approx(precision)
    assert macro_scores.recall == pytest.approx(recall)
    assert macro_scores.f1 == pytest.approx(f1)
