"""Models of a long maximum and in half precision, registered by the command and served."""

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.client import Pool
from tests.acceptance.load import closed_loop
from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.servers import BIN, copied_store, environment, quickstart_texts

_LONG, _SHORT = 8192, 512
_READY_S, _SLOWER, _TOLERANCE = 20.0, 1.5, 1e-4
# Within the default of serving.request_timeout_s a slow machine may not compute 8,000 tokens.
_PATIENT = {
    "KAITEN_SERVING__REQUEST_TIMEOUT_S": "300",
    "KAITEN_BATCHING__HANG_TIMEOUT_S": "300",
    # Of 8,000 tokens there are some 30,000 characters.
    "KAITEN_GATEWAY__MAX_TEXT_CHARS": "100000",
    "BENTOML_CONFIG_OPTIONS": "services.kaiten_service.traffic.timeout=310",
}
_ROUNDS, _REPEATS = 3, 20
_SPEED_ROUNDS = 8
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run both parts."""
    await _long_texts(report, folder / "long")
    await _half_precision(report, store, folder / "half")


async def _long_texts(report: Report, folder: Path) -> None:
    """Serve a model of ModernBERT-base's size at its own maximum and at a short one."""
    source, store = folder / "source", folder / "bentoml"
    _save_modern_bert(source)
    start = time.monotonic()
    _register(source, store, folder, f"long-{_LONG}")
    report.tell("long texts", registration_s=time.monotonic() - start)
    _register(source, store, folder, f"long-{_SHORT}", "--max-length", str(_SHORT))
    text = _text_of(source, 8000)
    short = "Where is my parcel?"
    with (
        _ready(store, folder, f"long-{_SHORT}") as (ready_short_s, at_short),
        _ready(store, folder, f"long-{_LONG}") as (ready_long_s, at_long),
    ):
        async with at_short.pool() as pool_short, at_long.pool() as pool_long:
            short_s, long_s = [], []
            for _ in range(_ROUNDS):
                short_s.append(await _median_s(pool_short, at_short, short))
                long_s.append(await _median_s(pool_long, at_long, short))
            sent = time.monotonic()
            answer = await pool_long.ask(at_long.target.v2([text, short]))
            report.tell("long texts", answer_of_8000_tokens_s=time.monotonic() - sent)
    report.tell("long texts", ready_s_at_512=ready_short_s, short_text_s=long_s, at_512_s=short_s)
    report.check(
        "ready within 20 s at a maximum of 8,192", ready_long_s, passed=ready_long_s <= _READY_S
    )
    ratio = statistics.median(long / short for long, short in zip(long_s, short_s, strict=True))
    report.check(
        "a short text within 1.5 times of a maximum of 512", ratio, passed=ratio <= _SLOWER
    )
    predictions = json.loads(answer.body)["predictions"]
    difference = max(
        abs(prediction["score"] - expected)
        for prediction, expected in zip(predictions, _reference(source, [text, short]), strict=True)
    )
    report.check(
        "a text of 8,000 tokens is answered as by transformers",
        difference,
        passed=difference <= _TOLERANCE and not predictions[0]["truncated"],
    )


async def _half_precision(report: Report, store: Path, folder: Path) -> None:
    """Serve the quickstart model in three precisions, by turns."""
    version = next((store / "models" / "support-intent").glob("*/model_card.json")).parent
    copied_store(store, folder / "bentoml")
    cards = {name: _register_as(version, name, folder) for name in _DTYPES}
    notes = {name: card["notes"] for name, card in cards.items()}
    report.check(
        "the card says what was converted",
        notes,
        passed=not notes["float32"]
        and all(any(name in note for note in notes[name]) for name in ("float16", "bfloat16")),
    )
    engines = {name: card["engine"]["name"] for name, card in cards.items()}
    report.check("the same engine", engines, passed=len({*engines.values()}) == 1)
    texts = quickstart_texts()
    labels: dict[str, list[str]] = {}
    rates: dict[str, list[float]] = {name: [] for name in _DTYPES}
    async with AsyncExitStack() as stack:
        # All at once, and asked by turns: a server that has just started is slower.
        servers = {
            name: stack.enter_context(_ready(folder / "bentoml", folder, f"half-{name}"))[1]
            for name in _DTYPES
        }
        pools = {
            name: await stack.enter_async_context(server.pool()) for name, server in servers.items()
        }
        for name, server in servers.items():
            labels[name] = await _labels(pools[name], server, texts)
        for turn in range(_SPEED_ROUNDS):
            for name in [*_DTYPES] if turn % 2 else [*_DTYPES][::-1]:
                requests = cycle([servers[name].target.v1(text) for text in texts])
                rates[name].append((await closed_loop(pools[name], requests, 32, 3)).rate())
    expected = {name: _labels_by_transformers(folder / name, texts) for name in _DTYPES}
    for name in _DTYPES:
        other = _changes(labels[name], expected[name])
        report.check(f"{name}: labels unlike those of transformers", other, passed=not other)
    # Rounding the weights changes a network, so the converted weights are compared.
    for name in ("float16", "bfloat16"):
        served_changes = _changes(labels[name], labels["float32"])
        rounded = _changes(expected[name], expected["float32"])
        report.tell(
            f"{name} against float32", served=served_changes, transformers=rounded, texts=len(texts)
        )
    for name in ("float16", "bfloat16"):
        ratio = statistics.median(
            half / full for half, full in zip(rates[name], rates["float32"], strict=True)
        )
        report.check(f"{name} as fast as float32", ratio, passed=ratio >= 0.95)


def _save_modern_bert(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=[*_SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(quickstart_texts(), trainer)
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[*ids.items()]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=_LONG,
    ).save_pretrained(folder)
    torch.manual_seed(20261130)
    # Its defaults are those of ModernBERT-base: 22 layers of width 768.
    config = ModernBertConfig(
        num_labels=8, pad_token_id=0, bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3
    )
    network: Any = ModernBertForSequenceClassification(config)
    # Labels that are far apart, as after training.
    network.classifier.weight.data.normal_(std=0.5)
    network.save_pretrained(folder)


def _register(source: Path, store: Path, home: Path, name: str, *options: str) -> Any:  # noqa: ANN401
    """Register a version 1.0.0 by the command, and return its card."""
    command = [str(BIN / "kaiten"), "register", str(source), "--name", name, "--version", "1.0.0"]
    finished = subprocess.run(
        [*command, "--task", "text-classification", "--json", *options],
        env=environment(store, home / "home"),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(finished.stdout)


def _register_as(version: Path, name: str, folder: Path) -> Any:  # noqa: ANN401
    """Register a copy of a version with its weights in another precision."""
    source = folder / name
    shutil.copytree(version, source, ignore=shutil.ignore_patterns("onnx", "serving", "reports"))
    (source / "model_card.json").unlink()
    weights = load_file(source / "model.safetensors")
    converted = {key: weight.to(_DTYPES[name]) for key, weight in weights.items()}
    save_file(converted, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_bytes())
    (source / "config.json").write_text(json.dumps(config | {"dtype": name}), encoding="utf-8")
    return _register(source, folder / "bentoml", folder, f"half-{name}")


@contextmanager
def _ready(store: Path, folder: Path, name: str) -> Iterator[tuple[float, WatchedServer]]:
    """Serve a version, and tell in how many seconds it was ready."""
    settings: Mapping[str, str] = _PATIENT | {
        "KAITEN_SERVING__MODELS": json.dumps([f"{name}:1.0.0"])
    }
    start = time.monotonic()
    with serve(store, folder / f"home-{name}", settings) as server:
        yield time.monotonic() - start, server


async def _median_s(pool: Pool, server: WatchedServer, text: str) -> float:
    """Return the median time of one text at a time."""
    answers = [await pool.ask(server.target.v1(text)) for _ in range(_REPEATS)]
    return statistics.median(answer.seconds for answer in answers)


async def _labels(pool: Pool, server: WatchedServer, texts: list[str]) -> list[str]:
    """Return the label of every text."""
    batches = (texts[start : start + 32] for start in range(0, len(texts), 32))
    answers = [await pool.ask(server.target.v2(batch)) for batch in batches]
    predictions = [row for answer in answers for row in json.loads(answer.body)["predictions"]]
    return [prediction["label"] for prediction in predictions]


def _changes(labels: list[str], other_labels: list[str]) -> int:
    """Return the number of texts that have another label."""
    return sum(label != other for label, other in zip(labels, other_labels, strict=True))


@torch.inference_mode()
def _labels_by_transformers(folder: Path, texts: list[str]) -> list[str]:
    """Return the label of each text alone, computed by transformers in float32."""
    network = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = network.config.id2label
    return [
        labels[int(network(**tokenizer(text, return_tensors="pt")).logits.argmax())]
        for text in texts
    ]


def _text_of(folder: Path, tokens: int) -> str:
    """Return a text of so many tokens, special tokens included."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = " ".join(quickstart_texts()).split()
    # A word is one token at least.
    low, high = 0, min(len(words), tokens)
    while low < high:
        middle = (low + high + 1) // 2
        if len(tokenizer.encode(" ".join(words[:middle])).ids) <= tokens:
            low = middle
        else:
            high = middle - 1
    return " ".join(words[:low])


@torch.inference_mode()
def _reference(folder: Path, texts: list[str]) -> list[float]:
    """Return the highest probability of each text, as transformers computes it."""
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scores = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        logits = network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        scores.append(float(np.max(torch.softmax(logits, dim=1).numpy())))
    return scores
