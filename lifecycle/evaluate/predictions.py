"""Predicts every row of a file, and resumes where an interrupted validation stopped."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from kaiten.errors import StateBusy

Floats = NDArray[np.float32]
# Returns the probabilities of some texts and, beside them, their embeddings: shape (texts, labels +
# width).
Predict = Callable[[Sequence[str]], Floats]
_CHUNK_TEXTS = 64
_LATENCY_SAMPLES = 100


def predict_all(
    texts: Sequence[str],
    columns: int,
    predict: Predict,
    cache: Path,
    report_progress: Callable[[int], None],
) -> Floats:
    """Return the predictions for all texts, in order, shape (texts, columns).

    Results are appended to ``cache`` as they are computed, and read from there by the next run.
    ``report_progress`` is called with the number of results. Texts of similar length are predicted
    together.

    Raises:
        StateBusy: Another process is writing to the cache.

    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    row_bytes = columns * np.dtype(np.float32).itemsize
    cache.parent.mkdir(parents=True, exist_ok=True)
    with _locked(cache), cache.open("ab") as file:
        # A row that was written in part is predicted again.
        completed = min(file.tell() // row_bytes, len(texts))
        file.truncate(completed * row_bytes)
        while completed < len(texts):
            report_progress(completed)
            chunk = [texts[index] for index in order[completed : completed + _CHUNK_TEXTS]]
            file.write(np.ascontiguousarray(predict(chunk), dtype=np.float32).tobytes())
            file.flush()
            completed += len(chunk)
    report_progress(completed)
    by_length = np.fromfile(cache, dtype=np.float32).reshape(-1, columns)
    predictions = np.empty_like(by_length)
    predictions[order] = by_length
    return predictions


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    try:
        with FileLock(f"{cache}.lock", timeout=0):
            yield
    except Timeout:
        raise StateBusy("this validation") from None


def measure_latencies_ms(texts: Sequence[str], predict: Predict) -> NDArray[np.float64]:
    """Return how long a fixed random sample of the texts takes, one text at a time."""
    size = min(_LATENCY_SAMPLES, len(texts))
    sample = np.random.default_rng(0).choice(len(texts), size, replace=False)
    predict([texts[int(sample[0])]])
    latencies_ms = []
    for index in sample:
        start = time.perf_counter()
        predict([texts[int(index)]])
        latencies_ms.append((time.perf_counter() - start) * 1000)
    return np.asarray(latencies_ms)
