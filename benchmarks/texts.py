"""The texts of each shape, in a fixed order."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

SEED = 20261122
SHORTEST, LONGEST = 5, 400
# Every stretch of so many texts has the same mixture of lengths, so that a fast server, which gets
# further, is not asked for longer or shorter texts than a slow one.
_BLOCK = 64
_BLOCKS = 8
_SINGLES = 2048
_SPECIAL_TOKENS = 2
Counter = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Shape:
    """A load: ``per_request`` texts a request over ``connections``, in closed or open loop."""

    name: str
    per_request: int
    connections: int
    mixed: bool = False
    open_loop: bool = False

    @property
    def in_flight(self) -> int:
        """Texts that a server can hold at once."""
        return self.per_request * self.connections


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("1x1", 1, 1),
        Shape("1x32", 1, 32),
        Shape("1x128", 1, 128),
        Shape("32x4", 32, 4),
        Shape("mixed", 1, 32, mixed=True),
        Shape("open70", 1, 0, open_loop=True),
    )
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its texts, and their tokens, special ones included."""

    texts: tuple[str, ...]
    tokens: int


def requests(
    shape: Shape, short: Sequence[str], mixed: Sequence[str], count: Counter
) -> list[Asked]:
    """Return a shape's requests, in the order that every server is asked them."""
    texts = mixed if shape.mixed else short
    size = shape.per_request
    groups = [tuple(texts[i : i + size]) for i in range(0, len(texts) - size + 1, size)]
    return [Asked(group, sum(count(text) for text in group)) for group in groups]


def counter(tokenizer: Tokenizer) -> Counter:
    """Return what counts a text's tokens, each text once."""
    counts: dict[str, int] = {}

    def count(text: str) -> int:
        if text not in counts:
            counts[text] = len(tokenizer.encode(text).ids)
        return counts[text]

    return count


def short_texts(test: Sequence[str]) -> list[str]:
    """Return the test texts in a fixed random order."""
    unique = sorted(set(test))
    random.Random(SEED).shuffle(unique)
    return unique[:_SINGLES]


def mixed_texts(short: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """Return texts of log-uniform length, made by joining texts and cutting the last."""
    chance = random.Random(SEED)
    lengths: list[int] = []
    for _ in range(_BLOCKS):
        block = [_length((step + chance.random()) / _BLOCK) for step in range(_BLOCK)]
        chance.shuffle(block)
        lengths += block
    count = counter(tokenizer)
    return [_of_length(length, short, tokenizer, chance, count) for length in lengths]


def _length(share: float) -> int:
    """Return the length at a share of the way from the shortest to the longest, by ratio."""
    return round(SHORTEST * math.exp(share * math.log(LONGEST / SHORTEST)))


def _of_length(
    tokens: int,
    short: Sequence[str],
    tokenizer: Tokenizer,
    chance: random.Random,
    count: Counter,
) -> str:
    """Return random texts joined, and cut after a number of tokens, special ones included."""
    joined: list[str] = []
    at_hand, target_tokens = 0, tokens - _SPECIAL_TOKENS
    while at_hand < target_tokens:
        joined.append(chance.choice(short))
        at_hand += count(joined[-1]) - _SPECIAL_TOKENS
    text = " ".join(joined)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return text[: offsets[min(target_tokens, len(offsets)) - 1][1]]


def write_bodies(
    path: Path, shape_requests: Sequence[Asked], body: Callable[[Sequence[str]], object]
) -> None:
    """Write one JSON body a line, as the load generator wants them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(body(request.texts)) for request in shape_requests]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
