"""The interface of engines, and the padding that they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

PadSide = Literal["left", "right"]
ATTENTION_MASK = "attention_mask"
# Texts that people write to a support desk, a bank or a shop, from one word to a paragraph.
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
class TokenBatch:
    """Texts as a network's named inputs, each with one sequence of numbers a text.

    ``input_ids`` is always among the inputs. Texts are padded to the longest, and to
    ``min_length``, with the input's value in ``pad_values``, on ``pad_side``.
    """

    inputs: Mapping[str, Sequence[Sequence[int]]]
    pad_values: Mapping[str, int]
    pad_side: PadSide = "right"
    min_length: int = 0

    @classmethod
    def of_ids(cls, token_ids: Sequence[Sequence[int]], pad_id: int) -> "TokenBatch":
        """Return a batch whose only inputs are token ids."""
        return cls({"input_ids": token_ids}, {"input_ids": pad_id})

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """The ids of each text's tokens."""
        return self.inputs["input_ids"]

    @property
    def is_plain(self) -> bool:
        """Whether its only inputs are token ids, padded on the right."""
        padded = self.pad_side == "right" and not self.min_length
        return padded and self.inputs.keys() == {"input_ids"}

    def select(self, indices: Sequence[int]) -> "TokenBatch":
        """Return a batch of some of the texts, in this order."""
        inputs = {name: [rows[index] for index in indices] for name, rows in self.inputs.items()}
        return replace(self, inputs=inputs)

    def concat(self, other: "TokenBatch") -> "TokenBatch":
        """Return a batch of these texts and those of another batch with the same inputs."""
        inputs = {name: [*rows, *other.inputs[name]] for name, rows in self.inputs.items()}
        return replace(self, inputs=inputs)

    def arrays(self) -> dict[str, NDArray[np.int64]]:
        """Return each input, and ``attention_mask``, as an array of shape (texts, longest)."""
        shape = len(self), max(self.min_length, *map(len, self.token_ids))
        arrays = {name: np.full(shape, self.pad_values[name], np.int64) for name in self.inputs}
        mask = np.zeros(shape, np.int64)
        for row, ids in enumerate(self.token_ids):
            columns = slice(len(ids)) if self.pad_side == "right" else slice(-len(ids), None)
            mask[row, columns] = 1
            for name, rows in self.inputs.items():
                arrays[name][row, columns] = rows[row]
        return arrays | {ATTENTION_MASK: mask}


class Computed(NamedTuple):
    """The outputs of a network for a batch.

    Logits have shape (texts, labels); embeddings, the input of its last layer, (texts, width), and
    are None if the network has none.
    """

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None = None


class Engine(Protocol):
    """A loaded network.

    ``lanes`` is the number of batches that it computes at once, each on its own permanent thread.
    ``batch_tokens`` and ``batch_items`` are the padded tokens and the texts of a batch beyond which
    throughput does not grow. A ``packed`` engine computes no padding, so that texts of any lengths
    share a batch. An engine with ``express`` computes a small batch beside those of its lanes, on
    one more thread.
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
        """Prepare for batches of up to so many padded tokens and texts.

        Raises:
            OutOfMemory: The device cannot hold such a batch.

        """

    def compute(self, batch: TokenBatch, *, alone: bool = False) -> Computed:
        """Return the logits and embeddings of a batch.

        ``alone`` means that nothing else computes or waits, so that it may use every thread.
        """


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities, shape (texts, labels) as the logits."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores: NDArray[np.float32] = exponents / exponents.sum(axis=1, keepdims=True)
    return scores


def entropy(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the entropy of probabilities, shape (texts, labels), in nats: shape (texts,)."""
    # Probabilities that are rounded to 0 add nothing.
    tiny = np.finfo(np.float32).tiny
    entropies: NDArray[np.float32] = -(scores * np.log(np.maximum(scores, tiny))).sum(axis=1)
    return entropies
