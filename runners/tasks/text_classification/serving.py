"""Serving a text classifier. Neither torch nor transformers is imported here."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kaiten.errors import BlankText
from kaiten.settings.models import RunnerSettings
from runners import embedding_distance
from runners.engines import open_engine
from runners.engines.base import SENTENCES, Engine, TokenBatch, entropy, softmax
from runners.tasks.base import Task
from runners.tokenization import (
    TOKEN_TYPES,
    TextTokenizer,
    TokenisedText,
    TokenizationSettings,
    load_tokenizer,
)

_INLINE_CHARS = 512
# The longest text of a warm-up: some thousand tokens would take a CPU half a minute.
_WARM_UP_TOKENS = 512


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
    # Whether the model has read its beginning (or end) only.
    truncated: bool = False


class TextProcessor:
    """A model's tokenizer, and what becomes of its logits."""

    def __init__(
        self, tokenizer: TextTokenizer, settings: TokenizationSettings, max_length: int
    ) -> None:
        self.settings = settings
        self._tokenizer, self._max_length = tokenizer, max_length
        self._unknown_id = tokenizer.unknown_id
        # A thread's two switches cost more than a few short texts, unless Python tokenises them.
        self.inline_chars = _INLINE_CHARS if settings.backend == "tokenizers" else 0

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts; what is over the maximum length is cut off.

        Raises:
            BlankText: A text has nothing left after the tokenizer's normaliser.

        """
        texts = self._tokenizer.encode(inputs)
        for index, text in enumerate(texts):
            if text.blank:
                raise BlankText(index)
        return texts

    def batch(self, texts: Sequence[TokenisedText]) -> TokenBatch:
        """Return texts as the network's inputs."""
        inputs = {"input_ids": [text.ids for text in texts]}
        pad_values = {"input_ids": self.settings.pad_id}
        if self.settings.token_types:
            inputs[TOKEN_TYPES] = [text.types for text in texts]
            pad_values[TOKEN_TYPES] = self.settings.pad_type
        settings = self.settings
        return TokenBatch(inputs, pad_values, settings.pad_side, settings.min_length)

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
            (text.truncated for text in batch),
        )
        return [
            Classification(row, index, confidence, text.cost, *rest)
            for row, index, confidence, text, *rest in zip(*columns, strict=True)
        ]

    def _unknown_in(self, text: TokenisedText) -> int:
        # None: a tokenizer by bytes knows every token, and no id is equal to it.
        return text.ids.count(self._unknown_id)

    def probe(self, length: int) -> TokenisedText:
        """Return a text of so many tokens, with the model's special tokens."""
        (short,) = self._tokenizer.encode(["probe"])
        filler = next(index for index in count() if index not in self._tokenizer.special_ids)
        filling = max(0, min(length, self._max_length) - short.cost)
        types = [*short.types]
        types[-1:-1] = types[-2:-1] * filling
        return TokenisedText([*short.ids[:-1], *[filler] * filling, short.ids[-1]], types)

    def probes(self) -> list[TokenisedText]:
        """Return a short text and a long one, to warm an engine up with."""
        return [self.probe(0), self.probe(_WARM_UP_TOKENS)]

    def samples(self) -> TokenBatch:
        """Return what to try an engine on: real sentences from short to long, and the longest."""
        sentences = self._tokenizer.encode(SENTENCES)
        return self.batch([*sentences, self.probe(0), self.probe(self._max_length)])


class TextClassifier:
    """A loaded classifier; ``probes`` are a short text and a long one.

    ``reference`` are the centroids that distances are taken to, shape (labels, width).
    """

    def __init__(
        self,
        engine: Engine,
        processor: TextProcessor,
        probes: Sequence[TokenisedText],
        reference: NDArray[np.float32] | None = None,
    ) -> None:
        self._engine, self._processor, self._probes = engine, processor, probes
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
        """The texts that the engine wants in a batch; 1 if its answers would depend on others."""
        return self._engine.batch_items if self._processor.settings.batched else 1

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
        if not self._processor.settings.batched and len(batch) > 1:
            return _joined([self.infer([text], alone=alone) for text in batch])
        logits, embeddings = self._engine.compute(self._processor.batch(batch), alone=alone)
        if self._reference is None or embeddings is None:
            distances = np.full(len(batch), np.nan, np.float32)
        else:
            distances = embedding_distance.measure_distances(embeddings, self._reference)
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


def _joined(parts: Sequence[Raw]) -> Raw:
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Raw(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.distances for part in parts]),
        np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
    )


class TextCodec:
    """Token ids and types as int32, logits and distances as float32, in the machine's byte order.

    Embeddings stay where they were computed.
    """

    def encode_items(self, items: Sequence[TokenisedText]) -> list[bytes]:
        """Return the number of ids, the ids and the types, 4 bytes each."""
        return [array("i", [len(text.ids), *text.ids, *text.types]).tobytes() for text in items]

    def decode_items(self, parts: Sequence[bytes]) -> list[TokenisedText]:
        """Return the texts; ValueError for bytes that are no token ids."""
        texts = []
        for part in parts:
            size, *numbers = array("i", part)
            if len(numbers) not in {size, 2 * size}:
                raise ValueError(f"{len(numbers)} numbers are no text of {size} tokens")
            texts.append(TokenisedText(numbers[:size], numbers[size:]))
        return texts

    def encode_raw(self, raw: Raw) -> list[bytes]:
        """Return 4 bytes a label for each text, and 4 for its distance."""
        return [row.tobytes() for row in np.column_stack((raw.logits, raw.distances))]

    def decode_raw(self, parts: Sequence[bytes]) -> Raw:
        """Return logits and distances."""
        found = np.frombuffer(b"".join(parts), dtype=np.float32).reshape(len(parts), -1)
        return Raw(found[:, :-1], found[:, -1])


codec = TextCodec()


def load_processor(folder: Path, max_length: int) -> TextProcessor:
    """Load a registered classifier's tokenizer."""
    settings = TokenizationSettings.read(folder)
    return TextProcessor(load_tokenizer(folder, settings, max_length), settings, max_length)


def load(
    folder: Path, max_length: int, settings: RunnerSettings, reference: Path | None = None
) -> Task[str, TokenisedText, Raw, Classification]:
    """Load a registered classifier, and the centroids of a report, if it has any."""
    processor = load_processor(folder, max_length)
    engine = open_engine(folder, settings, processor.samples())
    centroids_ = None if reference is None else embedding_distance.read_centroids(reference)
    return Task(processor, TextClassifier(engine, processor, processor.probes(), centroids_))
