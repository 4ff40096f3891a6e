from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from kaiten.settings.models import BatchingSettings
from runners.offline import OfflinePredictor
from runners.tasks.base import Task

LABELS = 2


class Text(NamedTuple):
    text: str

    @property
    def cost(self) -> int:
        return len(self.text)


class Computed(NamedTuple):
    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32] | None


class Prediction(NamedTuple):
    scores: NDArray[np.float32]


class Processor:
    inline_chars = 0.0

    def prepare(self, inputs: Sequence[str]) -> list[Text]:
        return [Text(text) for text in inputs]

    def finish(self, batch: Sequence[Text], raw: Computed) -> list[Prediction]:
        return [Prediction(row) for row in raw.logits]


@dataclass
class Network:
    """Scores a text by its length, and embeds it as that; remembers its batches."""

    embeds: bool = True
    lanes: int = 1
    batch_tokens: int = 8
    batch_items: int = 4
    packed: bool = False
    express: bool = False
    warmed_up: tuple[int, int] | None = None
    batches: list[list[str]] = field(default_factory=list)

    def infer(self, batch: Sequence[Text], *, alone: bool = False) -> Computed:
        if alone:
            self.batches.append([item.text for item in batch])
        lengths = np.array([[item.cost] for item in batch], np.float32)
        return Computed(np.hstack([lengths, -lengths]), lengths if self.embeds else None)

    def check(self) -> None: ...

    def warm_up(self, tokens: int, items: int) -> None:
        self.warmed_up = tokens, items


def predictor(network: Network, settings: BatchingSettings | None = None) -> OfflinePredictor:
    return OfflinePredictor(Task(Processor(), network), settings or BatchingSettings())


@pytest.mark.parametrize(("embeds", "width"), [(True, 1), (False, 0)])
def test_each_text_has_its_scores_and_embedding_in_order(*, embeds: bool, width: int) -> None:
    offline = predictor(Network(embeds=embeds))
    texts = ["a", "bbbb", "cc", "dddd", "e", "fff"]
    predictions = offline.predict(texts)
    assert offline.embedding_width == width
    assert predictions.shape == (len(texts), LABELS + width)
    assert [row[0] for row in predictions] == [len(text) for text in texts]
    assert all(row[-1] == (row[0] if embeds else -row[0]) for row in predictions)


def test_texts_of_similar_lengths_share_a_batch_within_the_engines_bounds() -> None:
    network = Network()
    predictor(network).predict(["aaaa", "b", "cccc", "d", "e", "f", "g"])
    assert network.warmed_up == (8, 4)
    assert network.batches == [["aaaa", "cccc"], ["b", "d", "e", "f"], ["g"]]


def test_batches_have_the_bounds_of_the_settings() -> None:
    network = Network()
    predictor(network, BatchingSettings(max_batch_items=1)).predict(["a", "b"])
    assert network.batches == [["a"], ["b"]]


def test_no_texts_give_no_rows() -> None:
    assert predictor(Network()).predict([]).shape == (0, LABELS + 1)
