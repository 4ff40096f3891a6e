"""Texts laid end to end, so that a batch computes its own tokens and no padding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
# Tensor cores are fastest with multiples of it.
_STEP = 64
_GROWTH = 1.25
# No text is shorter, special tokens included, but where a tokenizer adds none.
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """The capacity of a batch in tokens and texts."""

    tokens: int
    texts: int

    @property
    def size(self) -> int:
        """The length of the row of numbers that describes a batch of this shape."""
        return 2 * self.tokens + 2 * self.texts + 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The slices of a shape's row of numbers, which may be an array or a tensor.

    ``ids`` and ``positions`` have one number for each token. ``firsts`` holds the index of each
    text's first token, and ``starts`` the same followed by the end of the last text, for attention.
    """

    shape: Shape

    @property
    def ids(self) -> slice:
        return slice(0, self.shape.tokens)

    @property
    def positions(self) -> slice:
        return slice(self.shape.tokens, 2 * self.shape.tokens)

    @property
    def firsts(self) -> slice:
        return slice(2 * self.shape.tokens, 2 * self.shape.tokens + self.shape.texts)

    @property
    def starts(self) -> slice:
        return slice(2 * self.shape.tokens + self.shape.texts, self.shape.size)


def pack(token_ids: Sequence[Sequence[int]], shape: Shape, first_position: int, into: Ints) -> None:
    """Write a batch into ``into``, shape (shape.size,).

    Positions restart at ``first_position`` with each text. The rest is filled with token 0, which
    belongs to no text, and with empty texts, whose answers are discarded.
    """
    layout, count = Layout(shape), len(token_ids)
    lengths = np.fromiter(map(len, token_ids), np.int32, count)
    into[:] = 0
    starts = into[layout.starts]
    np.cumsum(lengths, out=starts[1 : count + 1])
    total = int(starts[count])
    starts[count + 1 :] = total
    into[layout.firsts][:count] = starts[:count]
    into[layout.ids][:total] = np.fromiter(chain.from_iterable(token_ids), np.int32, total)
    within = np.arange(total, dtype=np.int32) - np.repeat(starts[:count], lengths)
    into[layout.positions][:total] = within + first_position


class Grid:
    """The few shapes that batches are padded to, each a quarter larger than the one before."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._shapes = shapes

    @classmethod
    def up_to(cls, tokens: int, texts: int) -> "Grid":
        """Cover batches of up to so many tokens and texts."""
        sizes = _sizes(tokens, texts)
        return cls([Shape(size, max(1, min(texts, size // _SHORTEST))) for size in sizes])

    def __iter__(self) -> Iterator[Shape]:
        """Yield the shapes, the largest first, whose memory has room for the others."""
        return reversed(self._shapes)

    @property
    def largest(self) -> Shape:
        """The shape that every batch fits into."""
        return self._shapes[-1]

    def fit(self, tokens: int, texts: int) -> Shape:
        """Return the smallest shape with room for a batch.

        Raises:
            ValueError: The batch is larger than the largest shape.

        """
        for shape in self._shapes:
            if shape.tokens >= tokens and shape.texts >= texts:
                return shape
        raise ValueError(f"No shape holds {texts} texts of {tokens} tokens.")


def _sizes(tokens: int, texts: int) -> Iterator[int]:
    last = max(tokens, texts * _SHORTEST)
    size = _STEP
    while size < last:
        yield size
        size = max(size + _STEP, _round_up(int(size * _GROWTH)))
    yield _round_up(last)


def _round_up(size: int) -> int:
    return -(-size // _STEP) * _STEP
