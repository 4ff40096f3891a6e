"""Text classification: any local AutoModelForSequenceClassification with one label a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer

from kaiten.errors import ModelRejected
from kaiten.settings import Runners
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import ModelFacts

# In tokens: where a model has no limit of its own, attention's cost needs one.
_MAX_LENGTH_CAP = 8192
_BATCH_TOLERANCE = 1e-3


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
    """The probabilities of one text, shape (labels,), and its length in tokens."""

    scores: NDArray[np.float32]
    tokens: int


class TextClassification:
    """A loaded classifier; ``max_length`` in tokens, by default the longest that it can take."""

    def __init__(self, folder: Path, settings: Runners, max_length: int | None = None) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        self._engine = TorchEngine(folder, settings)
        if self._tokenizer.pad_token_id is None:
            raise ModelRejected(
                "tokenizer",
                "has no padding token, so texts can not share a batch",
                "Set tokenizer.pad_token and model.config.pad_token_id, and save both again.",
            )
        self._pad_id = int(self._tokenizer.pad_token_id)
        longest = min(self._engine.positions or _MAX_LENGTH_CAP, _MAX_LENGTH_CAP)
        self.max_length = max_length or min(longest, int(self._tokenizer.model_max_length))

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        """Tokenise texts; what is over the maximum length is cut off."""
        encoded = self._tokenizer(
            list(inputs),
            truncation=True,
            max_length=self.max_length,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [TokenisedText(ids) for ids in encoded["input_ids"]]

    def infer(self, batch: Sequence[TokenisedText]) -> NDArray[np.float32]:
        """Return logits, shape (texts, labels)."""
        return self._engine.logits([text.ids for text in batch], self._pad_id)

    def finish(
        self, batch: Sequence[TokenisedText], raw: NDArray[np.float32]
    ) -> list[Classification]:
        """Turn logits into probabilities by softmax."""
        exponents = np.exp(raw - raw.max(axis=1, keepdims=True))
        scores = exponents / exponents.sum(axis=1, keepdims=True)
        return [Classification(row, text.cost) for row, text in zip(scores, batch, strict=True)]

    def warm_up(self) -> None:
        """Compute one short and one longest text."""
        for text in self._probes():
            self.finish([text], self.infer([text]))

    def check(self, labels: int) -> None:
        """Raise ModelRejected unless texts, short and longest, score alone as in a batch."""
        highest = max(self._tokenizer.get_vocab().values())
        if highest >= self._engine.vocabulary_size:
            raise ModelRejected(
                "tokenizer",
                f"has token ids up to {highest}, and the model {self._engine.vocabulary_size} "
                "embeddings",
                "Save the tokenizer that the model was trained with.",
            )
        probes = self._probes()
        alone = np.concatenate([self.infer([text]) for text in probes])
        finite = bool(np.isfinite(alone).all())
        if alone.shape[1] != labels or not finite:
            raise ModelRejected(
                "weights",
                f"give {alone.shape[1]} logits, finite: {finite}, for {labels} labels",
                "Check id2label in config.json, and that training did not diverge.",
            )
        if not np.allclose(self.infer(probes), alone, rtol=_BATCH_TOLERANCE, atol=_BATCH_TOLERANCE):
            raise ModelRejected(
                "model",
                "answers otherwise in a padded batch than alone",
                "Check pad_token_id in config.json against the tokenizer's.",
            )

    def _probes(self) -> list[TokenisedText]:
        """Return a short text and one of the maximum length, with the model's special tokens."""
        (short,) = self.prepare(["probe"])
        special = set(self._tokenizer.all_special_ids)
        filler = next(index for index in range(len(special) + 1) if index not in special)
        filling = [filler] * (self.max_length - short.cost)
        return [short, TokenisedText([*short.ids[:-1], *filling, short.ids[-1]])]


def load(folder: Path, max_length: int, settings: Runners) -> TextClassification:
    """Load a registered classifier."""
    return TextClassification(folder, settings, max_length)


def inspect(folder: Path) -> ModelFacts:
    """Load a folder as a classifier, on the CPU, and tell what it is."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture = (config.architectures or [""])[0]
        labels = [config.id2label[index] for index in range(config.num_labels)]
    except Exception as error:
        raise _unloadable("config.json", error) from error
    if not architecture.endswith("ForSequenceClassification"):
        raise ModelRejected(
            "config.json",
            f"names the architecture {architecture or 'none'}, which is no text classifier",
            "Save an AutoModelForSequenceClassification.",
        )
    if config.problem_type == "multi_label_classification" or len(labels) < 2:  # noqa: PLR2004
        raise ModelRejected(
            "config.json",
            "is multi-label or has fewer than two labels",
            "text-classification takes models with one of several labels a text.",
        )
    try:
        model = TextClassification(folder, Runners(device="cpu"))
        model.check(len(labels))
    except ModelRejected:
        raise
    except Exception as error:
        raise _unloadable("model", error) from error
    packages = ("torch", "transformers", "safetensors", "numpy")
    versions = {name: version(name) for name in packages}
    return ModelFacts(labels, model.max_length, architecture, versions)


def _unloadable(field: str, error: Exception) -> ModelRejected:
    reason = str(error).strip().splitlines()
    return ModelRejected(
        field,
        f"can not be loaded: {type(error).__name__}: {reason[0] if reason else ''}",
        "Load it with transformers once to see why, and save it again.",
    )
