"""Every row is predicted once, in order, wherever the validation was interrupted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lifecycle.evaluate.predictions import measure_latencies_ms, predict_all

TEXTS = [f"{number} " * (1 + number % 7) for number in range(300)]


class Model:
    """Scores a text by its number, and may be interrupted."""

    def __init__(self, calls: int = 10**6) -> None:
        self.calls, self.asked = calls, list[str]()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.asked += texts
        numbers = [int(text.split()[0]) for text in texts]
        return np.array([[number, 1000 - number] for number in numbers], dtype=np.float32)


def answered(model: Model, kept: Path) -> NDArray[np.float32]:
    return predict_all(TEXTS, 2, model, kept, lambda known: None)


def test_answers_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    told: list[int] = []
    found = predict_all(TEXTS, 2, Model(), tmp_path / "kept", told.append)
    np.testing.assert_array_equal(found[:, 0], np.arange(300))
    assert told[0] == 0
    assert told[-1] == 300
    assert told == sorted(told)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_interrupted_validation_goes_on_where_it_stopped(calls: int, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    first, second = Model(calls), Model()
    with pytest.raises(KeyboardInterrupt):
        answered(first, kept)
    found = answered(second, kept)
    np.testing.assert_array_equal(found[:, 0], np.arange(300))
    assert sorted(first.asked + second.asked) == sorted(TEXTS)


def test_row_that_was_half_written_is_asked_again(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    with pytest.raises(KeyboardInterrupt):
        answered(Model(2), kept)
    kept.write_bytes(kept.read_bytes()[:-5])
    model = Model()
    np.testing.assert_array_equal(answered(model, kept)[:, 0], np.arange(300))
    assert len(model.asked) == 300 - 127


def test_what_is_known_is_not_asked(tmp_path: Path) -> None:
    answered(Model(), tmp_path / "kept")
    model = Model()
    answered(model, tmp_path / "kept")
    assert model.asked == []


def test_texts_are_timed_one_at_a_time() -> None:
    model = Model()
    assert measure_latencies_ms(TEXTS, model).shape == (100,)
    # One to warm up, and a hundred different ones.
    assert len(model.asked) == 101
    assert len(set(model.asked)) == 100
