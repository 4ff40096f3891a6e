"""What every engine offers, and the padding that they share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

# What people write to a support desk, a bank or a shop, from one word to a paragraph.
SENTENCES = (
    "Hello",
    "Refund please!",
    "Where is my parcel?",
    "I was charged twice for the same order, can you check?",
    "The app crashes every time I open the settings page on my phone.",
    "Wie lange dauert die Lieferung nach Österreich, und was kostet sie?",
    "¿Puedo cambiar la dirección de entrega después de hacer el pedido?",
    "My card was declined at the supermarket although there is enough money in the account; why?",
    """I ordered two pairs of shoes on the 3rd of May (order no. 48-22913), one of size 42, one of
    43. Only one pair arrived, in the wrong colour, and the invoice in the box is for somebody
    else. I have written to you three times and got no answer but an automatic one. Please send the
    right shoes, or give me my money back, and tell me what to do with the pair that I have.""",
)


@dataclass(frozen=True, slots=True)
class Samples:
    """Token ids of real texts and of the longest one, to try a network on, and the padding's id."""

    texts: Sequence[Sequence[int]] = ()
    pad_id: int = 0


class Computed(NamedTuple):
    """What a network makes of a batch.

    Logits of shape (texts, labels); embeddings, which its last layer computed them from, of shape
    (texts, width), None where the network has none.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None = None


class Engine(Protocol):
    """A loaded network.

    ``lanes`` is how many batches it computes at once, each on a lasting thread of its own;
    ``batch_tokens`` and ``batch_items`` how many tokens, padding included, and texts it wants in a
    batch: more gains nothing;
    ``packed`` whether it computes no padding, so that texts of any lengths go together; ``express``
    whether it can compute a small batch beside those of its lanes, on one more thread.
    """

    @property
    def lanes(self) -> int: ...
    @property
    def batch_tokens(self) -> int: ...
    @property
    def batch_items(self) -> int: ...
    @property
    def packed(self) -> bool: ...
    @property
    def express(self) -> bool: ...

    def reserve(self, tokens: int, items: int) -> None:
        """Make ready for batches of up to so many tokens, padding included, and texts.

        OutOfMemory where the device can not hold one.
        """

    def compute(
        self, token_ids: Sequence[Sequence[int]], pad_id: int, *, alone: bool = False
    ) -> Computed:
        """Return the logits and embeddings of a batch; texts are padded to the longest.

        ``alone`` says that nothing else computes or waits, so that it may use every thread.
        """


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities, shape (texts, labels) as the logits."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return scores


def entropy(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy of probabilities, shape (texts, labels), in nats: shape (texts,)."""
    # What is no longer told from 0 adds nothing.
    tiny = np.finfo(np.float32).tiny
    found: NDArray[np.float32] = -(scores * np.log(np.maximum(scores, tiny))).sum(axis=1)
    return found


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
