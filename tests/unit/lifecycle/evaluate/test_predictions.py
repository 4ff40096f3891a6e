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
        self.calls, self.texts = calls, list[str]()

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if not self.calls:
            raise KeyboardInterrupt
        self.calls -= 1
        self.texts += texts
        numbers = [int(text.split()[0]) for text in texts]
        return np.array([[number, 1000 - number] for number in numbers], dtype=np.float32)


def run(model: Model, cache: Path) -> NDArray[np.float32]:
    return predict_all(TEXTS, 2, model, cache, lambda _: None)


def test_answers_come_in_the_order_of_the_texts(tmp_path: Path) -> None:
    progress: list[int] = []
    predictions = predict_all(TEXTS, 2, Model(), tmp_path / "cache", progress.append)
    np.testing.assert_array_equal(predictions[:, 0], np.arange(300))
    assert progress[0] == 0
    assert progress[-1] == 300
    assert progress == sorted(progress)


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_interrupted_validation_goes_on_where_it_stopped(calls: int, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first, second = Model(calls), Model()
    with pytest.raises(KeyboardInterrupt):
        run(first, cache)
    predictions = run(second, cache)
    np.testing.assert_array_equal(predictions[:, 0], np.arange(300))
    assert sorted(first.texts + second.texts) == sorted(TEXTS)


def test_row_that_was_half_written_is_asked_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        run(Model(2), cache)
    cache.write_bytes(cache.read_bytes()[:-5])
    model = Model()
    np.testing.assert_array_equal(run(model, cache)[:, 0], np.arange(300))
    assert len(model.texts) == 300 - 127


def test_what_is_known_is_not_asked(tmp_path: Path) -> None:
    run(Model(), tmp_path / "cache")
    model = Model()
    run(model, tmp_path / "cache")
    assert model.texts == []


def test_texts_are_timed_one_at_a_time() -> None:
    model = Model()
    assert measure_latencies_ms(TEXTS, model).shape == (100,)
    # One to warm up, and a hundred different ones.
    assert len(model.texts) == 101
    assert len(set(model.texts)) == 100
