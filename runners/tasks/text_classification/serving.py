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
# The longest text of a warm-up: a CPU would take half a minute for some thousand tokens.
_WARM_UP_TOKENS = 512


class Raw(NamedTuple):
    """The raw results of a batch.

    Logits have shape (texts, labels). Distances to the nearest centroid of the baseline have shape
    (texts,), NaN without a baseline. Embeddings have shape (texts, width); they are None if the
    network has none, or if another process computed them.
    """

    logits: NDArray[np.float32]
    distances: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """The probabilities of one text, shape (labels,), the highest of them, and its tokens.

    ``entropy`` is that of the probabilities, in nats, and ``distance`` that of the embedding to the
    nearest centroid of the baseline, None without a baseline.
    """

    scores: NDArray[np.float32]
    index: int
    confidence: float
    tokens: int
    unknown_tokens: int = 0
    entropy: float = 0.0
    distance: float | None = None
    # Whether the model has read only its beginning (or end).
    truncated: bool = False


class TextProcessor:
    """Tokenises texts, and turns logits into classifications."""

    def __init__(
        self, tokenizer: TextTokenizer, settings: TokenizationSettings, max_length: int
    ) -> None:
        self.settings = settings
        self._tokenizer, self._max_length = tokenizer, max_length
        self._unknown_id = tokenizer.unknown_id
        # Two thread switches take longer than a few short texts, unless Python tokenises them.
        self.inline_chars = _INLINE_CHARS if settings.backend == "tokenizers" else 0

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts, each truncated at the maximum length.

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
            map(self._count_unknown, batch),
            entropy(scores).tolist(),
            (None if math.isnan(value) else value for value in raw.distances.tolist()),
            (text.truncated for text in batch),
        )
        return [
            Classification(row, index, confidence, text.cost, *rest)
            for row, index, confidence, text, *rest in zip(*columns, strict=True)
        ]

    def _count_unknown(self, text: TokenisedText) -> int:
        # A tokenizer of bytes has no unknown id: None is equal to no id.
        return text.ids.count(self._unknown_id)

    def probe(self, length: int) -> TokenisedText:
        """Return a text of this length in tokens, with the model's special tokens."""
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
        """Return a batch to try an engine on: sentences, and a text of the maximum length."""
        sentences = self._tokenizer.encode(SENTENCES)
        return self.batch([*sentences, self.probe(0), self.probe(self._max_length)])


class TextClassifier:
    """A loaded classifier; ``probes`` are a short text and a long one.

    ``centroids`` are those of the baseline, shape (labels, width).
    """

    def __init__(
        self,
        engine: Engine,
        processor: TextProcessor,
        probes: Sequence[TokenisedText],
        centroids: NDArray[np.float32] | None = None,
    ) -> None:
        self._engine, self._processor, self._probes = engine, processor, probes
        self._centroids = centroids

    @property
    def lanes(self) -> int:
        """How many batches the engine computes at once."""
        return self._engine.lanes

    @property
    def batch_tokens(self) -> int:
        """The padded tokens of a batch that suit the engine."""
        return self._engine.batch_tokens

    @property
    def batch_items(self) -> int:
        """The texts of a batch that suit the engine; 1 if texts may not share a batch."""
        return self._engine.batch_items if self._processor.settings.batched else 1

    @property
    def packed(self) -> bool:
        """Whether the engine computes no padding."""
        return self._engine.packed

    @property
    def express(self) -> bool:
        """Whether the engine computes a small batch beside those of its lanes."""
        return self._engine.express

    def infer(self, batch: Sequence[TokenisedText], *, alone: bool = False) -> Raw:
        """Compute a batch, and its distances from the baseline."""
        if not self._processor.settings.batched and len(batch) > 1:
            return _concat([self.infer([text], alone=alone) for text in batch])
        logits, embeddings = self._engine.compute(self._processor.batch(batch), alone=alone)
        if self._centroids is None or embeddings is None:
            distances = np.full(len(batch), np.nan, np.float32)
        else:
            distances = embedding_distance.measure_distances(embeddings, self._centroids)
        return Raw(logits, distances, embeddings)

    def check(self) -> None:
        """Compute a short text; raises if the engine cannot."""
        self.infer(self._probes[:1])

    def warm_up(self, tokens: int, items: int) -> None:
        """Reserve the largest batch; compute a short and a longest text, alone and not."""
        self._engine.reserve(tokens, items)
        for text in self._probes:
            for alone in (False, True):
                self.infer([text], alone=alone)


def _concat(parts: Sequence[Raw]) -> Raw:
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Raw(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.distances for part in parts]),
        np.concatenate(embeddings) if len(embeddings) == len(parts) else None,
    )


class TextCodec:
    """Token ids and types as int32, logits and distances as float32, in the machine's byte order.

    Embeddings stay in the process that computed them.
    """

    def encode_items(self, items: Sequence[TokenisedText]) -> list[bytes]:
        """Return the number of ids, the ids and the types, 4 bytes each."""
        return [array("i", [len(text.ids), *text.ids, *text.types]).tobytes() for text in items]

    def decode_items(self, parts: Sequence[bytes]) -> list[TokenisedText]:
        """Return the texts.

        Raises:
            ValueError: The bytes do not encode token ids.

        """
        texts = []
        for part in parts:
            size, *numbers = array("i", part)
            if len(numbers) not in {size, 2 * size}:
                raise ValueError(f"{len(numbers)} numbers do not encode a text of {size} tokens")
            texts.append(TokenisedText(numbers[:size], numbers[size:]))
        return texts

    def encode_raw(self, raw: Raw) -> list[bytes]:
        """Return 4 bytes for each label of a text, and 4 for its distance."""
        return [row.tobytes() for row in np.column_stack((raw.logits, raw.distances))]

    def decode_raw(self, parts: Sequence[bytes]) -> Raw:
        """Return logits and distances."""
        columns = np.frombuffer(b"".join(parts), dtype=np.float32).reshape(len(parts), -1)
        return Raw(columns[:, :-1], columns[:, -1])


codec = TextCodec()


def load_processor(folder: Path, max_length: int) -> TextProcessor:
    """Load a registered classifier's tokenizer."""
    settings = TokenizationSettings.read(folder)
    return TextProcessor(load_tokenizer(folder, settings, max_length), settings, max_length)


def load(
    folder: Path, max_length: int, settings: RunnerSettings, baseline: Path | None = None
) -> Task[str, TokenisedText, Raw, Classification]:
    """Load a registered classifier, and the centroids of its baseline, if it has any."""
    processor = load_processor(folder, max_length)
    engine = open_engine(folder, settings, processor.samples())
    centroids = None if baseline is None else embedding_distance.read_centroids(baseline)
    return Task(processor, TextClassifier(engine, processor, processor.probes(), centroids))
