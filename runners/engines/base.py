"""What every engine offers, and the padding that they share."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A loaded network.

    ``lanes`` is how many batches it computes at once, each on a lasting thread of its own;
    ``batch_tokens`` how many tokens, padding included, it wants in a batch: more gains nothing.
    """

    @property
    def lanes(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...

    def logits(
        self, token_ids: Sequence[Sequence[int]], pad_id: int, *, alone: bool = False
    ) -> NDArray[np.float32]:
        """Return the logits of a batch, shape (texts, labels); texts are padded to the longest.

        ``alone`` says that nothing else computes or waits, so that it may use every thread.
        """


def pad(
    token_ids: Sequence[Sequence[int]], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and attention mask, each of shape (texts, longest)."""
    shape = len(token_ids), max(map(len, token_ids))
    ids = np.full(shape, pad_id, dtype=np.int64)
    mask = np.zeros(shape, dtype=np.int64)
    for row, text in enumerate(token_ids):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask
