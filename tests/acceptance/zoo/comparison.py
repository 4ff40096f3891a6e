"""Comparing served answers with those of transformers for each text alone."""

import inspect
import json
import math
import random
import re
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from kaiten.errors import BlankText, ModelRejected
from kaiten.settings.models import RunnerSettings, VersioningSettings
from lifecycle.registration import Submission, register_model
from lifecycle.store import ModelStore, StoredModel
from runners.probe_texts import PROBE_TEXTS
from runners.tasks import find_inspection, find_task
from runners.tasks.base import Task
from tests.acceptance.zoo.corpus import BLANK_TEXTS, LONG_TEXTS, TEXTS, texts_with
from tests.acceptance.zoo.specimens import Refused, Served, Specimen, Truth

TASK = "text-classification"
SIZES = (2, 8, 32)
# The largest difference of a score.
TOLERANCE = 1e-4
# Of two labels whose scores are nearer to each other, either may be the answer.
_TIE = 2 * TOLERANCE
# Scores that are the same for all texts would agree whatever the ids are.
_LEAST_SPREAD = 1e-3
_MAX_SPECIAL = 6
# Some networks pool several tokens at a time.
_SHORT_TOKENS = 8
_SEED = 20261130
TYPES = "token_type_ids"
_OWN_IDS = ("input_ids", TYPES, "attention_mask")
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Inputs:
    """A text as the reference's model reads it: rows of numbers by the model's names for them."""

    rows: Mapping[str, Sequence[int]]
    truncated: bool

    @property
    def ids(self) -> list[int]:
        return list(self.rows["input_ids"])


@dataclass
class Finding:
    """The outcome of a specimen; ``problems`` is empty if it was the expected one."""

    name: str
    group: str
    outcome: str = ""
    engine: str = ""
    tokenizer: str = ""
    batched: bool = True
    max_length: int = 0
    texts: int = 0
    # Of the probe texts and the texts, those whose ids differ from the truth.
    other_ids: int = 0
    # The largest difference of a score: alone, in batches of 2, 8 and 32, and asked again.
    differences: dict[str, float] = field(default_factory=dict)
    other_labels: int = 0
    refusal: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def largest(self) -> float:
        return max(self.differences.values(), default=math.nan)


class Reference:
    """A folder as transformers loads it, computing one text at a time in float32."""

    def __init__(self, folder: Path, max_length: int, truth: Truth) -> None:
        transformers: Any = import_module("transformers")
        self._network = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        ).eval()
        forward = set(inspect.signature(self._network.forward).parameters)
        self.tokenizer = _tokenizer(folder)
        self._max_length = max_length
        # All that the tokenizer gives and the model takes, as in model(**tokenizer(text)).
        self._names = [name for name in self.tokenizer("parcel") if name in forward]
        self._fast_tokenizer = None
        file = folder / "tokenizer.json"
        if truth != "transformers" and file.is_file():
            self._fast_tokenizer = Tokenizer.from_file(str(file))
            self._fast_tokenizer.no_padding()
            self._fast_tokenizer.enable_truncation(
                max_length, direction=self.tokenizer.truncation_side
            )
            # Types of 0 only are what the classes give that transformers 4 left out, too.
            if (
                truth == "4.57"
                and TYPES in forward
                and any(self._fast_tokenizer.encode("parcel").type_ids)
            ):
                self._names = [*{*self._names, TYPES}]
            self._untruncated_tokenizer = Tokenizer.from_file(str(file))
            self._untruncated_tokenizer.no_padding()
            self._untruncated_tokenizer.no_truncation()

    def inputs(self, text: str) -> Inputs:
        """Return a text's ids, and what else the tokenizer gives and the model takes."""
        if self._fast_tokenizer is None:
            options = {"return_attention_mask": False, "verbose": False}
            encoded = self.tokenizer(text, truncation=True, max_length=self._max_length, **options)
            all_ids = self.tokenizer(text, **options)["input_ids"]
            rows = {name: encoded[name] for name in self._names if name in encoded}
            return Inputs(rows, len(all_ids) > self._max_length)
        encoding = self._fast_tokenizer.encode(text)
        rows = {"input_ids": encoding.ids}
        if TYPES in self._names:
            rows[TYPES] = encoding.type_ids
        if set(self._names).difference(_OWN_IDS):
            encoded = self.tokenizer(text, truncation=True, max_length=self._max_length)
            rows |= {name: encoded[name] for name in self._names if name not in _OWN_IDS}
        return Inputs(rows, len(self._untruncated_tokenizer.encode(text).ids) > self._max_length)

    @torch.inference_mode()
    def scores(self, inputs: Inputs) -> Scores:
        """Return the probabilities of one text."""
        tensors = {name: torch.tensor([row]) for name, row in inputs.rows.items()}
        tensors["attention_mask"] = torch.ones(1, len(inputs.ids), dtype=torch.long)
        output = self._network(**tensors)
        logits = output.logits if hasattr(output, "logits") else output[0]
        if isinstance(logits, tuple):
            logits = logits[0]
        scores: Scores = logits.double().softmax(-1).numpy()[0]
        return scores

    def computes(self, inputs: Inputs) -> bool:
        """Return whether transformers computes a text of this length."""
        if len(inputs.ids) >= _SHORT_TOKENS:
            return True
        try:
            self.scores(inputs)
        except RuntimeError:
            return False
        return True

    def special_tokens(self) -> list[str]:
        return list(self.tokenizer.all_special_tokens)[:_MAX_SPECIAL]


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401
    transformers: Any = import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception:
        if not (folder / "tokenizer.json").is_file():
            raise
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


@contextmanager
def store_in(home: Path) -> Iterator[ModelStore]:
    """Give BentoML an empty home, and put the old one back."""
    containers: Any = import_module("bentoml._internal.configuration.containers")
    models: Any = import_module("bentoml._internal.models")
    (home / "models").mkdir(parents=True)
    containers.BentoMLContainer.model_store.set(models.ModelStore(home / "models"))
    try:
        yield ModelStore()
    finally:
        containers.BentoMLContainer.model_store.reset()


def add(specimen: Specimen, folder: Path, store: ModelStore, name: str = "zoo") -> StoredModel:
    """Register a specimen's folder."""
    submission = Submission(folder, name, "1.0.0", TASK, max_length=specimen.max_length)
    inspect_ = find_inspection(TASK).inspect
    return register_model(submission, "zoo", VersioningSettings(), store=store, inspect=inspect_)


def examine(specimen: Specimen, folder: Path) -> Finding:
    """Build, register and serve a specimen, and compare it with transformers."""
    begun = time.monotonic()
    finding = Finding(specimen.name, specimen.group)
    source = folder / "model"
    source.mkdir(parents=True)
    try:
        specimen.build(source)
    except Exception as error:  # noqa: BLE001  one model that cannot be built stops no other
        finding.outcome = "not built"
        finding.problems.append(f"not built: {_describe(error)}")
        return finding
    with store_in(folder / "bentoml") as store:
        try:
            stored = add(specimen, source, store)
        except ModelRejected as error:
            _judge_refusal(finding, specimen.refused, error)
        except Exception as error:  # noqa: BLE001
            finding.outcome = "failed"
            finding.problems.append(f"registering fails: {_describe(error)}")
        else:
            finding.outcome = "served"
            _judge_served(finding, specimen, stored, source)
    # Results name no folder of the machine that they were found on.
    finding.refusal = finding.refusal.replace(str(folder), "FOLDER")
    finding.problems = [problem.replace(str(folder), "FOLDER") for problem in finding.problems]
    finding.seconds = time.monotonic() - begun
    return finding


def _describe(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    message = (str(error).strip().splitlines() or [""])[0][:300]
    return f"{type(error).__name__}: {message} ({Path(last.filename).name}:{last.lineno})"


def _judge_refusal(finding: Finding, expected: Refused | None, error: ModelRejected) -> None:
    finding.outcome, finding.refusal = "refused", str(error)
    if expected is None:
        finding.problems.append(f"refused, and should be served: {error}")
        return
    (detail,) = error.details
    remedy = str(error).removeprefix(f"{detail.field}: {detail.reason}. ")
    for name, text, pattern in (
        ("field", detail.field, expected.field),
        ("reason", detail.reason, expected.reason),
        ("remedy", remedy, expected.remedy),
    ):
        if not re.search(pattern, text, re.IGNORECASE):
            finding.problems.append(f"the {name} {text!r} does not match {pattern!r}")


def _judge_served(finding: Finding, specimen: Specimen, stored: StoredModel, source: Path) -> None:
    card = stored.card
    finding.engine = card.engine.name if card.engine else ""
    finding.max_length, finding.notes = card.max_length, list(card.notes)
    settings = json.loads((stored.folder / "serving" / "tokenization.json").read_bytes())
    finding.tokenizer, finding.batched = settings["backend"], settings["batched"]
    expected = specimen.served
    if expected is None:
        finding.problems.append("served, and should be refused")
    else:
        finding.problems += _differing_card(stored, expected)
    truth: Truth = "tokenizer.json" if expected is None else expected.truth
    try:
        reference = Reference(source, card.max_length, truth)
        task = find_task(TASK).load(
            stored.folder, card.max_length, RunnerSettings(device="cpu", threads=1)
        )
        compare(finding, reference, task)
    except Exception as error:  # noqa: BLE001
        finding.problems.append(f"served, and comparing fails: {_describe(error)}")


def _differing_card(stored: StoredModel, expected: Served) -> Iterator[str]:
    card = stored.card
    if card.max_length != expected.max_length:
        yield f"max_length is {card.max_length}, and should be {expected.max_length}"
    if card.engine and expected.engine not in (None, card.engine.name):
        yield f"the engine is {card.engine.name} ({card.engine.reason}), not {expected.engine}"
    if expected.notes and not any(re.search(expected.notes, note) for note in card.notes):
        yield f"no note matches {expected.notes!r}: {list(card.notes)}"
    if stray := sorted(set(expected.left_out).intersection(card.files)):
        yield f"{', '.join(stray)} should not be stored"
    if expected.licence not in (None, card.provenance.licence):
        yield f"the licence is {card.provenance.licence}, not {expected.licence}"


def compare(finding: Finding, reference: Reference, task: Task[str, Any, Any, Any]) -> None:
    """Compare ids on all texts, and scores alone, in mixed batches and asked again."""
    candidates = [*_long_texts(finding.max_length), *TEXTS, *texts_with(reference.special_tokens())]
    inputs = {
        text: reference.inputs(text)
        for text in [*candidates, *PROBE_TEXTS, *LONG_TEXTS, *BLANK_TEXTS]
    }
    blank = _compare_ids(finding, reference, task, inputs)
    texts = [
        text
        for text in dict.fromkeys(candidates)
        if text not in blank and reference.computes(inputs[text])
    ]
    finding.texts = len(texts)
    truth = np.stack([reference.scores(inputs[text]) for text in texts])
    again = np.stack([reference.scores(inputs[text]) for text in reversed(texts)])[::-1]
    unsteady = float(np.abs(truth - again).max())
    if not unsteady <= TOLERANCE:
        finding.problems.append(
            f"transformers itself answers otherwise when asked again, by {unsteady:.2g}"
        )
    if not float(truth.std(axis=0).max()) >= _LEAST_SPREAD:
        finding.problems.append("the scores are the same for all texts, so nothing is compared")
    _compare_scores(finding, task, texts, truth)


def _long_texts(max_length: int) -> list[str]:
    """Return texts that fill the maximum length by two thirds, and by half too much."""
    words = ("parcel", "order", "refund", "invoice", "address", "account", "delivery", "phone")
    pick = random.Random(_SEED)
    return [
        " ".join(pick.choice(words) for _ in range(round(share * max_length)))
        for share in (0.4, 0.7, 1.5)
    ]


def _compare_ids(
    finding: Finding,
    reference: Reference,
    task: Task[str, Any, Any, Any],
    inputs: Mapping[str, Inputs],
) -> set[str]:
    """Compare the ids of each text; return the texts in which nothing is left to read."""
    items: dict[str, Any] = {}
    for text in inputs:
        with suppress(BlankText):
            (items[text],) = task.processor.prepare([text])
    differing = [text for text, item in items.items() if not _has_same_ids(item, inputs[text])]
    finding.other_ids = len(differing)
    if differing:
        finding.problems.append(f"ids differ for {len(differing)} texts, as {differing[0][:80]!r}")
    misjudged = [text for text in items if items[text].truncated != inputs[text].truncated]
    if misjudged:
        finding.problems.append(f"whether it is truncated is untrue of {misjudged[0][:60]!r}")
    # A batch must tokenise as each of its texts alone.
    together = task.processor.prepare(list(items))
    pairs = zip(together, items.values(), strict=True)
    if any(list(batched.ids) != list(single.ids) for batched, single in pairs):
        finding.problems.append("texts have other ids together than alone")
    blank = inputs.keys() - items.keys()
    finding.problems += _misjudged_blanks(reference, inputs, blank)
    return blank


def _has_same_ids(item: Any, expected: Inputs) -> bool:  # noqa: ANN401  an item of any task
    # A network takes types that are missing for zeros.
    zeros = [0] * len(expected.ids)
    types = list(expected.rows.get(TYPES, zeros))
    return list(item.ids) == expected.ids and list(item.types or zeros) == types


def _misjudged_blanks(
    reference: Reference, inputs: Mapping[str, Inputs], blank: set[str]
) -> Iterator[str]:
    template = set(reference.inputs("").ids)
    for text in sorted(blank):
        rest = [index for index in inputs[text].ids if index not in template]
        words = reference.tokenizer.convert_ids_to_tokens(rest)
        if "".join(words).strip("▁Ġ \n\t"):
            yield f"{text!r} is called blank, and has tokens {words[:8]}"
    for text in BLANK_TEXTS:
        if text not in blank and template.issuperset(inputs[text].ids):
            yield f"{text!r} is not called blank, and nothing of it is left"


def _compare_scores(
    finding: Finding, task: Task[str, Any, Any, Any], texts: Sequence[str], truth: Scores
) -> None:
    differing_texts: set[str] = set()
    for name, batches in _orders(texts).items():
        largest = 0.0
        for number, batch in enumerate(batches):
            items = task.processor.prepare([texts[index] for index in batch])
            raw = task.model.infer(items, alone=number % 2 == 0)
            for index, prediction in zip(batch, task.processor.finish(items, raw), strict=True):
                scores, expected = np.asarray(prediction.scores, np.float64), truth[index]
                largest = max(largest, float(np.nan_to_num(np.abs(scores - expected), nan=1).max()))
                if expected.max() - expected[prediction.index] > _TIE:
                    differing_texts.add(texts[index])
        finding.differences[name] = largest
        if largest > TOLERANCE:
            finding.problems.append(f"scores differ by {largest:.2g} {name}")
    finding.other_labels = len(differing_texts)
    if differing_texts:
        text = min(differing_texts)[:80]
        finding.problems.append(f"the label differs for {len(differing_texts)} texts, as {text!r}")


def _orders(texts: Sequence[str]) -> dict[str, list[list[int]]]:
    """Return batches of indices by a name for them: long texts first, at last short ones first.

    An answer depends on nothing that was computed before.
    """
    pick = random.Random(_SEED)
    by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    orders = {"alone": [[index] for index in reversed(by_length)]}
    for size in SIZES:
        order = pick.sample(range(len(texts)), len(texts))
        # The last batch is filled up from the first.
        order += order[: -len(order) % size]
        orders[f"in {size}"] = [order[at : at + size] for at in range(0, len(order), size)]
    return orders | {"again": [[index] for index in by_length]}
