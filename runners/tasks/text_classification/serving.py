"""Serving a text classifier. Neither torch nor transformers is imported here."""

import json
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from kaiten.errors import ModelRejected
from kaiten.sections import Runners
from runners import centroids
from runners.engines import open_engine
from runners.engines.base import SENTENCES, Engine, Samples, entropy, softmax
from runners.tasks.base import Task

# The model's tokenizer as serving uses it: it holds the padding token and the side that is cut.
TOKENIZER_FILE = "serving/tokenizer.json"
# Of a long text, so many characters for each token that the model takes are tokenised first.
_CHARS_PER_TOKEN = 8


@dataclass(frozen=True, slots=True)
class TokenisedText:
    """A text as token ids, special tokens included, cut at the model's maximum length."""

    ids: Sequence[int]

    @property
    def cost(self) -> int:
        """Its length in tokens."""
        return len(self.ids)


class Raw(NamedTuple):
    """What was computed of some texts.

    Logits of shape (texts, labels); distances to the nearest reference centroid, shape (texts,),
    NaN where there is none; embeddings of shape (texts, width), None where the network has none,
    and where they were computed in another process.
    """

    logits: NDArray[np.float32]
    distances: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """The probabilities of one text, shape (labels,), and the highest; its length in tokens.

    ``entropy`` is that of the probabilities, in nats; ``distance`` the embedding's to the nearest
    reference centroid, None where there is none.
    """

    scores: NDArray[np.float32]
    index: int
    confidence: float
    tokens: int
    unknown_tokens: int = 0
    entropy: float = 0.0
    distance: float | None = None


class TextProcessor:
    """A model's tokenizer as serving uses it, and what becomes of its logits.

    Its tokenizer says by its padding what fills up a batch (``pad_id``).
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        padding = tokenizer.padding
        if padding is None:
            raise ModelRejected(TOKENIZER_FILE, "names no padding token", "Register it again.")
        self.pad_id: int = padding["pad_id"]
        tokenizer.no_padding()
        side = (tokenizer.truncation or {"direction": "right"})["direction"]
        tokenizer.enable_truncation(max_length, direction=side)
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._cuts_end = side == "right"
        self._margin_words = _margin_words(tokenizer)
        self._unknown_id = _unknown_id(tokenizer)

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts, 20 us for a short one; what is over the maximum length is cut off."""
        starts = [self._sufficient_start(text) for text in inputs]
        # "fast" leaves out the offsets, which nobody asks for.
        return [TokenisedText(found.ids) for found in self._tokenizer.encode_batch_fast(starts)]

    def _sufficient_start(self, text: str) -> str:
        """Return a start of a long text that has the same tokens, as far as the model takes them.

        A tokenizer splits a text into words before anything else, so a cut changes the words next
        to it alone. A start suffices if the model takes no token of its last words. A tokenizer
        that knows no words gets the whole text.
        """
        chars = _CHARS_PER_TOKEN * self._max_length
        while self._cuts_end and 2 * chars < len(text):
            start = text[:chars]
            (encoding,) = self._tokenizer.encode_batch([start])
            if encoding.overflowing:
                left_words = _last_word(encoding.overflowing[-1]) - _last_word(encoding)
                if left_words >= self._margin_words:
                    return start
            chars *= 4
        return text

    def finish(self, batch: Sequence[TokenisedText], raw: Raw) -> list[Classification]:
        """Turn logits into probabilities by softmax."""
        scores = softmax(raw.logits)
        columns = (
            scores,
            scores.argmax(axis=1).tolist(),
            scores.max(axis=1).tolist(),
            batch,
            map(self._unknown_in, batch),
            entropy(scores).tolist(),
            (None if math.isnan(each) else each for each in raw.distances.tolist()),
        )
        return [
            Classification(row, index, confidence, text.cost, *rest)
            for row, index, confidence, text, *rest in zip(*columns, strict=True)
        ]

    def _unknown_in(self, text: TokenisedText) -> int:
        # None: a tokenizer by bytes knows every token, and no id is equal to it.
        return text.ids.count(self._unknown_id)

    def probes(self) -> tuple[TokenisedText, TokenisedText]:
        """Return a short text and one of the maximum length, with the model's special tokens."""
        (short,) = self.prepare(["probe"])
        known = self._tokenizer.get_added_tokens_decoder()
        special = {index for index, token in known.items() if token.special}
        filler = next(index for index in range(len(special) + 1) if index not in special)
        filling = [filler] * (self._max_length - short.cost)
        return short, TokenisedText([*short.ids[:-1], *filling, short.ids[-1]])

    def samples(self) -> Samples:
        """Return what to try an engine on: real sentences, short to long, and the longest text."""
        texts = [*self.prepare(SENTENCES), *self.probes()]
        return Samples([text.ids for text in texts], self.pad_id)


class TextClassifier:
    """A loaded classifier; ``probes`` are a short text and one of the maximum length.

    ``reference`` are the centroids that distances are taken to, shape (labels, width).
    """

    def __init__(
        self,
        engine: Engine,
        pad_id: int,
        probes: Sequence[TokenisedText],
        reference: NDArray[np.float32] | None = None,
    ) -> None:
        self._engine, self._pad_id, self._probes = engine, pad_id, probes
        self._reference = reference

    @property
    def lanes(self) -> int:
        """How many batches the engine computes at once."""
        return self._engine.lanes

    @property
    def batch_tokens(self) -> int:
        """The padded tokens that the engine wants in a batch."""
        return self._engine.batch_tokens

    @property
    def batch_items(self) -> int:
        """The texts that the engine wants in a batch."""
        return self._engine.batch_items

    @property
    def packed(self) -> bool:
        """Whether the engine computes a batch's own tokens, and no padding."""
        return self._engine.packed

    @property
    def express(self) -> bool:
        """Whether the engine computes a small batch beside those of its lanes."""
        return self._engine.express

    def infer(self, batch: Sequence[TokenisedText], *, alone: bool = False) -> Raw:
        """Return what the network computes, and how far that is from the reference."""
        logits, embeddings = self._engine.compute(
            [text.ids for text in batch], self._pad_id, alone=alone
        )
        if self._reference is None or embeddings is None:
            distances = np.full(len(batch), np.nan, np.float32)
        else:
            distances = centroids.distances(embeddings, self._reference)
        return Raw(logits, distances, embeddings)

    def check(self) -> None:
        """Compute a short text; raises where the engine can not."""
        self.infer(self._probes[:1])

    def warm_up(self, tokens: int, items: int) -> None:
        """Reserve the largest batch; compute a short and a longest text, alone and not."""
        self._engine.reserve(tokens, items)
        for text in self._probes:
            for alone in (False, True):
                self.infer([text], alone=alone)


class TextCodec:
    """Token ids as int32, logits and distances as float32, in the byte order of the machine.

    Embeddings stay where they were computed.
    """

    def encode_items(self, items: Sequence[TokenisedText]) -> list[bytes]:
        """Return 4 bytes a token."""
        return [array("i", text.ids).tobytes() for text in items]

    def decode_items(self, parts: Sequence[bytes]) -> list[TokenisedText]:
        """Return the texts; ValueError for bytes that are no token ids."""
        return [TokenisedText(array("i", part)) for part in parts]

    def encode_raw(self, raw: Raw) -> list[bytes]:
        """Return 4 bytes a label for each text, and 4 for its distance."""
        return [row.tobytes() for row in np.column_stack((raw.logits, raw.distances))]

    def decode_raw(self, parts: Sequence[bytes]) -> Raw:
        """Return logits and distances."""
        found = np.frombuffer(b"".join(parts), dtype=np.float32).reshape(len(parts), -1)
        return Raw(found[:, :-1], found[:, -1])


codec = TextCodec()


def _margin_words(tokenizer: Tokenizer) -> int:
    """Return how many words a cut may change: one, or all that the longest added token covers."""
    added = tokenizer.get_added_tokens_decoder().values()
    return 1 + max((len(token.content) for token in added), default=0)


def _last_word(encoding: Encoding) -> int:
    return max((word for word in encoding.word_ids if word is not None), default=0)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id of the token that stands for what the vocabulary has not, if there is one."""
    model = json.loads(tokenizer.to_str())["model"]
    if "unk_id" in model:
        return cast("int | None", model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def load_processor(folder: Path, max_length: int) -> TextProcessor:
    """Load a registered classifier's tokenizer."""
    return TextProcessor(Tokenizer.from_file(str(folder / TOKENIZER_FILE)), max_length)


def load(
    folder: Path, max_length: int, settings: Runners, reference: Path | None = None
) -> Task[str, TokenisedText, Raw, Classification]:
    """Load a registered classifier, and the centroids of a report, if it has any."""
    processor = load_processor(folder, max_length)
    engine = open_engine(folder, settings, processor.samples())
    known = None if reference is None else centroids.read(reference)
    return Task(processor, TextClassifier(engine, processor.pad_id, processor.probes(), known))
