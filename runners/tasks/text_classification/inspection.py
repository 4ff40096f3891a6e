"""Registering a text classifier: any local AutoModelForSequenceClassification with torch."""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import safe_open

from kaiten.errors import ModelRejected
from kaiten.model_facts import EngineFacts, ModelFacts
from kaiten.settings.models import RunnerSettings
from runners.engines import MAX_TOKENS
from runners.engines.base import SENTENCES
from runners.engines.export import export
from runners.engines.torch_engine import TorchEngine
from runners.tasks.text_classification.batch_probes import (
    PROBE_TOKENS,
    LoadedClassifier,
    choose_batching,
    fit_inputs,
    insert_special_tokens,
)
from runners.tasks.text_classification.model_config import read_config, reject_load_errors
from runners.tokenizer_inspection import inspect_tokenizer

_INPUT_SCHEMA = {
    "type": "string",
    "description": "A text. Only a part of a text over the maximum length is read.",
}
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
ReportProgress = Callable[[str], None]


def inspect(
    folder: Path,
    output: Path,
    *,
    max_length: int | None = None,
    progress: ReportProgress = lambda _: None,
) -> ModelFacts:
    """Load a folder as a classifier on the CPU, and find out how it can be served exactly.

    Writes the tokenizer into ``output``, and the network as ONNX if that computes the same.

    Raises:
        ModelRejected: The folder is not a classifier of single texts, or cannot be served exactly.

    """
    architecture, labels = read_config(folder)
    progress("Loading the weights")
    with reject_load_errors("model"):
        engine = TorchEngine(folder, RunnerSettings(device="cpu"))
        _check_weights(engine)
    with reject_load_errors("tokenizer"):
        tokenizer = inspect_tokenizer(folder, output, engine, max_length)
        classifier = fit_inputs(engine, tokenizer)
    progress("Computing texts alone and in batches")
    classifier = choose_batching(classifier, len(labels))
    classifier.settings.write(output)
    progress("Exporting the network to ONNX")
    facts = _export(classifier, output, progress)
    return ModelFacts(
        labels,
        classifier.max_length,
        architecture,
        {name: version(name) for name in _PACKAGES},
        facts,
        _INPUT_SCHEMA,
        _output_schema(labels),
        [*_conversions(folder), *classifier.notes],
        _serving_packages(classifier, facts),
    )


def _check_weights(engine: TorchEngine) -> None:
    """Reject infinite and undefined weights: those of a rare token show in no probe."""
    for name, parameter in engine.network.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelRejected(
                "weights",
                f"are not finite in {name}: there are infinities or NaN",
                "Check that training did not diverge, and save the model again.",
            )


def _export(classifier: LoadedClassifier, output: Path, progress: ReportProgress) -> EngineFacts:
    """Write the network as ONNX if it computes the same; afterwards torch's has no weights."""
    processor = classifier.processor
    short, medium, long = map(processor.probe, (0, PROBE_TOKENS, MAX_TOKENS))
    sentences = classifier.tokenizer.encode(SENTENCES)
    texts = [short, *insert_special_tokens(classifier), *sentences, medium, long]
    return export(
        classifier.engine,
        processor.batch(texts),
        output,
        together=classifier.settings.batched,
        limited=classifier.max_length > MAX_TOKENS,
        progress=progress,
    )


def _output_schema(labels: Sequence[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    properties = {"label": {"type": "string", "enum": [*labels]}, "score": probability}
    return {"type": "object", "properties": properties, "required": [*properties]}


def _conversions(folder: Path) -> Iterator[str]:
    """Yield a note if loading the weights as float32 has converted any."""
    types: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            types |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    names = {"F16": "float16", "BF16": "bfloat16"}
    converted = " and ".join(names[kind] for kind in sorted(types & names.keys()))
    if converted:
        yield f"Weights in {converted} were converted to float32, which changes no weight."


def _serving_packages(classifier: LoadedClassifier, facts: EngineFacts) -> list[str]:
    """Return the packages that serving needs on a CPU besides those of every model."""
    packages = set()
    if facts.name == "torch" or classifier.max_length > MAX_TOKENS:
        packages |= {"torch", "transformers"}
    if classifier.settings.backend == "transformers":
        packages |= {"transformers"}
    return sorted(packages)
