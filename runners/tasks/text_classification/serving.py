"""Serving a text classifier. Neither torch nor transformers is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kaiten.errors import ModelRejected
from kaiten.settings import Runners
from runners.engines import open_engine
from runners.engines.base import Engine

# The model's tokenizer as serving uses it: it holds the padding token and the side that is cut.
TOKENIZER_FILE = "serving/tokenizer.json"


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as token ids, special tokens included, cut at the model's maximum length."""

    ids: Sequence[int]

    @property
    def cost(self) -> int:
        """Its length in tokens."""
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Classification:
    """The probabilities of one text, shape (labels,), and the highest; its length in tokens."""

    scores: NDArray[np.float32]
    index: int
    confidence: float
    tokens: int


class TextClassification:
    """A loaded classifier. ``tokenizer`` says by its padding which token fills up a batch."""

    def __init__(self, tokenizer: Tokenizer, engine: Engine, max_length: int) -> None:
        padding = tokenizer.padding
        if padding is None:
            raise ModelRejected(TOKENIZER_FILE, "names no padding token", "Register it again.")
        self._pad_id: int = padding["pad_id"]
        tokenizer.no_padding()
        side = (tokenizer.truncation or {"direction": "right"})["direction"]
        tokenizer.enable_truncation(max_length, direction=side)
        self._tokenizer = tokenizer
        self._engine = engine
        self._max_length = max_length

    @property
    def lanes(self) -> int:
        """How many batches the engine computes at once."""
        return self._engine.lanes

    @property
    def batch_tokens(self) -> int:
        """The padded tokens that the engine wants in a batch."""
        return self._engine.batch_tokens

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts, 20 us for a short one; what is over the maximum length is cut off."""
        # "fast" leaves out the offsets, which nobody asks for.
        return [TokenisedText(found.ids) for found in self._tokenizer.encode_batch_fast(inputs)]

    def infer(self, batch: Sequence[TokenisedText], *, alone: bool = False) -> NDArray[np.float32]:
        """Return logits, shape (texts, labels)."""
        return self._engine.logits([text.ids for text in batch], self._pad_id, alone=alone)

    def finish(
        self, batch: Sequence[TokenisedText], raw: NDArray[np.float32]
    ) -> list[Classification]:
        """Turn logits into probabilities by softmax."""
        exponents = np.exp(raw - raw.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        columns = scores, scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist(), batch
        return [
            Classification(row, index, confidence, text.cost)
            for row, index, confidence, text in zip(*columns, strict=True)
        ]

    def warm_up(self) -> None:
        """Compute one short and one longest text, both as alone and as one of several."""
        for text in self.probes():
            for alone in (False, True):
                self.finish([text], self.infer([text], alone=alone))

    def probes(self) -> tuple[TokenisedText, TokenisedText]:
        """Return a short text and one of the maximum length, with the model's special tokens."""
        (short,) = self.prepare(["probe"])
        known = self._tokenizer.get_added_tokens_decoder()
        special = {index for index, token in known.items() if token.special}
        filler = next(index for index in range(len(special) + 1) if index not in special)
        filling = [filler] * (self._max_length - short.cost)
        return short, TokenisedText([*short.ids[:-1], *filling, short.ids[-1]])


def load(folder: Path, max_length: int, settings: Runners) -> TextClassification:
    """Load a registered classifier."""
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    return TextClassification(tokenizer, open_engine(folder, settings), max_length)
