"""The model that every server serves: MiniLM, fine-tuned on BANKING77, made once and kept."""

import csv
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from benchmarks import places
from examples.quickstart import train as quickstart
from runners.engines.base import TokenBatch
from runners.engines.export import save, trace

SEED = 20261122
TRAINING_TEXTS = 3000
TESTED_TEXTS = 600
EPOCHS = 2
MAX_LENGTH = 512
NAME, VERSION = "benchmark-intent", "1.0.0"
TAG = f"{NAME}:{VERSION}"
console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Data:
    """What to train on and what to ask; ``source`` names it in the report."""

    source: str
    training: list[quickstart.Example]
    test: list[quickstart.Example]


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about the model of the benchmark."""

    source: str
    labels: int
    accuracy: float
    training_texts: int


def read_data(folder: Path) -> Data:
    """Read BANKING77 from a folder; without it the quickstart's utterances, and say so."""
    if not (folder / "test.csv").is_file():
        console.print(f"[yellow]No BANKING77 in {folder}: the quickstart's texts instead.[/yellow]")
        return Data(
            "quickstart", quickstart.read_examples("train"), quickstart.read_examples("test")
        )
    training, test = _rows(folder / "train.csv"), _rows(folder / "test.csv")
    random.Random(SEED).shuffle(training)
    return Data("BANKING77", training[:TRAINING_TEXTS], test)


def held_out(folder: Path) -> list[quickstart.Example]:
    """Return BANKING77's rows that the model is not trained on: of both files, ten thousand."""
    training, test = _rows(folder / "train.csv"), _rows(folder / "test.csv")
    random.Random(SEED).shuffle(training)
    return [*training[TRAINING_TEXTS:], *test]


def _rows(path: Path) -> list[quickstart.Example]:
    with path.open(encoding="utf-8", newline="") as file:
        return [quickstart.Example(row["text"], row["category"]) for row in csv.DictReader(file)]


def ensure_model(data: Data) -> Facts:
    """Return the facts of the kept model, made now if there is none for this data."""
    facts_path = places.HOME / "model.json"
    if facts_path.is_file() and (places.MODEL / "config.json").is_file():
        facts = Facts(**json.loads(facts_path.read_text()))
        if facts.source == data.source:
            return facts
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    random.seed(SEED)
    torch.manual_seed(SEED)
    labels = sorted({row.label for row in data.training})
    model, tokenizer = quickstart.load_base(labels, MAX_LENGTH)
    quickstart.train(data.training, model, tokenizer, EPOCHS)
    accuracy = _accuracy(data.test, model, tokenizer)
    shutil.rmtree(places.MODEL, ignore_errors=True)
    model.save_pretrained(places.MODEL)
    tokenizer.save_pretrained(places.MODEL)
    facts = Facts(data.source, model.config.num_labels, accuracy, len(data.training))
    places.write_json(facts_path, asdict(facts))
    return facts


def _accuracy(
    test: Sequence[quickstart.Example], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> float:
    examples = random.Random(SEED).sample(test, min(TESTED_TEXTS, len(test)))
    labels = quickstart.predict(examples, model, tokenizer)
    right = sum(row.label == label for row, label in zip(examples, labels, strict=True))
    return round(right / len(examples), 3)


def register() -> Path:
    """Register the model anew, in a store of the benchmarks' own, and return its network as ONNX.

    Anew each time, as the code that registers and exports may have changed.
    """
    shutil.rmtree(places.STORE, ignore_errors=True)
    places.STORE.mkdir(parents=True)
    named = ("--name", NAME, "--version", VERSION, "--task", "text-classification")
    run_kaiten("register", str(places.MODEL), *named)
    exported = places.STORE / "models" / NAME / VERSION / "onnx" / "model.onnx"
    if not exported.is_file():
        raise SystemExit("kaiten register made no ONNX of the model; its card says why.")
    return exported


def export_plainly() -> Path:
    """Export the network as any user of ONNX Runtime would, for the peers that serve ONNX."""
    target = places.HOME / "plain" / "model.onnx"
    shutil.rmtree(target.parent, ignore_errors=True)
    network = AutoModelForSequenceClassification.from_pretrained(places.MODEL)
    save(trace(network.eval(), TokenBatch.of_ids([[2, 3], [2, 3, 4, 5]], 0)), target)
    return target


def token() -> str:
    """Make a token as an operator would."""
    return run_kaiten(
        "token", "create", "--subject", "benchmark", "--scope", "predict", "--ttl", "1d"
    )


def run_kaiten(*arguments: str) -> str:
    """Run the kaiten command on the benchmarks' own store and home; return what it prints."""
    return run_module("cli", *arguments)


def run_module(name: str, *arguments: str) -> str:
    """Run a module on the benchmarks' own store and home; return what it prints."""
    done = subprocess.run(
        [str(places.PYTHON), "-m", name, *arguments],
        env=places.environment(**places.KAITEN),
        cwd=places.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name} {arguments[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()
