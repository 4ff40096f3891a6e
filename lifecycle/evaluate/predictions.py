"""Asking a version about every row, and going on where an interrupted validation stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kaiten.errors import StateBusy

Floats = NDArray[np.float32]
# The probabilities of some texts, and beside them their embeddings: shape (texts, labels + width).
Predict = Callable[[Sequence[str]], Floats]
_AT_ONCE = 64
_LATENCIES = 100


def answer_all(
    texts: Sequence[str], columns: int, predict: Predict, kept: Path, told: Callable[[int], None]
) -> Floats:
    """Return what is predicted of all texts, in order, shape (texts, columns).

    What is known is written to ``kept`` as it comes, and read from there by the next try; ``told``
    is told how many are known. Texts of like length are asked together.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    row_bytes = columns * np.dtype(np.float32).itemsize
    kept.parent.mkdir(parents=True, exist_ok=True)
    with _alone(kept), kept.open("ab") as file:
        # A row that was being written is asked again.
        known = min(file.tell() // row_bytes, len(texts))
        file.truncate(known * row_bytes)
        while known < len(texts):
            told(known)
            asked = [texts[index] for index in order[known : known + _AT_ONCE]]
            file.write(np.ascontiguousarray(predict(asked), dtype=np.float32).tobytes())
            file.flush()
            known += len(asked)
    told(known)
    found = np.fromfile(kept, dtype=np.float32).reshape(-1, columns)
    answers = np.empty_like(found)
    answers[order] = found
    return answers


@contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Keep others from writing the same answers; StateBusy where somebody does already."""
    try:
        with FileLock(f"{kept}.lock", timeout=0):
            yield
    except Timeout:
        raise StateBusy("this validation") from None


def latencies_ms(texts: Sequence[str], predict: Predict) -> NDArray[np.float64]:
    """Return how long texts take one at a time, those of a fixed random choice."""
    chosen = np.random.default_rng(0).choice(len(texts), min(_LATENCIES, len(texts)), replace=False)
    predict([texts[int(chosen[0])]])
    found = []
    for index in chosen:
        start = time.perf_counter()
        predict([texts[int(index)]])
        found.append((time.perf_counter() - start) * 1000)
    return np.asarray(found)
