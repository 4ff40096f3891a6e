"""Registering a text classifier: any local AutoModelForSequenceClassification with torch."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from kaiten.errors import ModelRejected
from kaiten.sections import Runners
from runners.engines.export import export
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import ModelFacts
from runners.tasks.text_classification.serving import (
    TOKENIZER_FILE,
    TextClassifier,
    TextProcessor,
    TokenisedText,
)

# In tokens: where a model has no limit of its own, attention's cost needs one.
_MAX_LENGTH_CAP = 8192
_BATCH_TOLERANCE = 1e-3
_INPUT = {"type": "string", "description": "A text; what is over the maximum length is cut off."}


def inspect(folder: Path, made: Path) -> ModelFacts:
    """Load a folder as a classifier, on the CPU; write its tokenizer, and its network if exact."""
    architecture, labels = _read_config(folder)
    try:
        engine = TorchEngine(folder, Runners(device="cpu"))
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_fast=True
        )
        longest = min(engine.positions or _MAX_LENGTH_CAP, _MAX_LENGTH_CAP)
        max_length = min(longest, int(tokenizer.model_max_length))
        made_tokenizer = _write_tokenizer(tokenizer, max_length, made)
        _check_vocabulary(made_tokenizer, engine)
        processor = TextProcessor(made_tokenizer, max_length)
        probes = processor.probes()
        _check_logits(TextClassifier(engine, processor.pad_id, probes), probes, len(labels))
    except ModelRejected:
        raise
    except Exception as error:
        raise _unloadable("model", error) from error
    samples = processor.samples()
    chosen = export(engine, samples.pad_id, samples.texts, made)
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    versions = {name: version(name) for name in packages}
    return ModelFacts(
        labels, max_length, architecture, versions, chosen, _INPUT, _output_schema(labels)
    )


def _output_schema(labels: Sequence[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    properties = {"label": {"type": "string", "enum": [*labels]}, "score": probability}
    return {"type": "object", "properties": properties, "required": [*properties]}


def _read_config(folder: Path) -> tuple[str, list[str]]:
    """Return the architecture and the labels."""
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
    return architecture, labels


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, made: Path) -> Tokenizer:
    """Write the tokenizer as serving uses it: without transformers, all that it needs inside."""
    if not tokenizer.is_fast:
        raise ModelRejected(
            "tokenizer",
            f"is a {type(tokenizer).__name__}, which has no fast form (tokenizer.json)",
            "Convert it to a PreTrainedTokenizerFast and save that beside the model.",
        )
    if tokenizer.pad_token_id is None:
        raise ModelRejected(
            "tokenizer",
            "has no padding token, so texts can not share a batch",
            "Set tokenizer.pad_token and model.config.pad_token_id, and save both again.",
        )
    found = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    found.enable_truncation(max_length, direction=tokenizer.truncation_side)
    found.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    (made / TOKENIZER_FILE).parent.mkdir(parents=True)
    found.save(str(made / TOKENIZER_FILE))
    return found


def _check_vocabulary(tokenizer: Tokenizer, engine: TorchEngine) -> None:
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if highest >= engine.vocabulary_size:
        raise ModelRejected(
            "tokenizer",
            f"has token ids up to {highest}, and the model {engine.vocabulary_size} embeddings",
            "Save the tokenizer that the model was trained with.",
        )


def _check_logits(model: TextClassifier, probes: Sequence[TokenisedText], labels: int) -> None:
    """Raise ModelRejected unless texts, short and longest, score alone as in a batch."""
    alone = np.concatenate([model.infer([text]).logits for text in probes])
    finite = bool(np.isfinite(alone).all())
    if alone.shape[1] != labels or not finite:
        raise ModelRejected(
            "weights",
            f"give {alone.shape[1]} logits, finite: {finite}, for {labels} labels",
            "Check id2label in config.json, and that training did not diverge.",
        )
    together = model.infer(probes).logits
    if not np.allclose(together, alone, rtol=_BATCH_TOLERANCE, atol=_BATCH_TOLERANCE):
        raise ModelRejected(
            "model",
            "answers otherwise in a padded batch than alone",
            "Check pad_token_id in config.json against the tokenizer's.",
        )


def _unloadable(field: str, error: Exception) -> ModelRejected:
    reason = str(error).strip().splitlines()
    return ModelRejected(
        field,
        f"can not be loaded: {type(error).__name__}: {reason[0] if reason else ''}",
        "Load it with transformers once to see why, and save it again.",
    )
