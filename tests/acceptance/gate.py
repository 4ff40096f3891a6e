"""The gate on BANKING77: a good model passes, one with a third of its labels shuffled does not."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import model as benchmark
from benchmarks import places
from examples.quickstart import train as quickstart
from kaiten.settings.models import RunnerSettings
from lifecycle.evaluate import rows
from lifecycle.evaluate.measures import compare_versions
from runners.tasks.text_classification.serving import load
from tests.acceptance.report import Report
from tests.servers import BIN, ROOT, environment

_DATA = ROOT.parent / "shared" / "data" / "banking77"
_SHUFFLED = 1 / 3
_RESAMPLINGS, _RESAMPLED = 100, 1000
_NAME = "banking"


async def run(report: Report, store: Path, folder: Path) -> None:
    data = benchmark.read_data(Path(os.environ.get("BANKING77_DIR", _DATA)))
    if data.source != "BANKING77":
        raise FileNotFoundError("this suite needs BANKING77: set BANKING77_DIR")
    file = Path(os.environ.get("BANKING77_DIR", _DATA)) / "test.csv"
    # Made once and kept, for the benchmarks as well.
    facts = benchmark.ensure_model(data)
    _train_shuffled(data.training, folder / "shuffled")
    env = environment(folder / "bentoml", folder / "home")
    versions = {"1.0.0": places.MODEL, "1.0.1": folder / "shuffled"}
    correct = {}
    for version, source in versions.items():
        tag = f"{_NAME}:{version}"
        name_options = ("--name", _NAME, "--version", version, "--task", "text-classification")
        _kaiten(env, "register", str(source), *name_options)
        data_options = ("--data", str(file), "--label-column", "category", "--json")
        validation = _kaiten(env, "validate", tag, *data_options, may_fail=True)
        validation_report = json.loads(validation.stdout)
        promotions = [_promote(env, tag, stage) for stage in ("staging", "production")]
        report.tell(
            version,
            accuracy=validation_report["measures"]["accuracy"],
            macro_f1=validation_report["measures"]["macro"]["f1"],
            calibration_error=validation_report["measures"]["calibration_error"],
            comparison=json.dumps(validation_report["comparison"]),
            refused=[check["name"] for check in validation_report["checks"] if not check["passed"]],
            exit_code=validation.returncode,
            promotion="; ".join(
                promotion.stderr.strip() or promotion.stdout.strip() for promotion in promotions
            ),
        )
        passed = validation.returncode == 0 and all(
            promotion.returncode == 0 for promotion in promotions
        )
        if version == "1.0.0":
            report.check("the good model passes and is promoted", facts.accuracy, passed=passed)
        else:
            refused = validation.returncode == 1 and all(
                promotion.returncode == 1 for promotion in promotions
            )
            numbers = validation_report["comparison"]["difference"]
            report.check("the shuffled one is refused, and not promoted", numbers, passed=refused)
        correct[version] = _correct(folder / "bentoml", tag, file)
    covered = _count_covering(correct["1.0.1"], correct["1.0.0"])
    report.check("intervals that cover the true difference", covered, passed=covered >= 90)


def _train_shuffled(training: Sequence[quickstart.Example], folder: Path) -> None:
    """Train as the good model was, on rows of which a third have each other's labels."""
    chance = random.Random(benchmark.SEED)
    moved = chance.sample(range(len(training)), round(len(training) * _SHUFFLED))
    labels = [training[index].label for index in moved]
    chance.shuffle(labels)
    changed = [*training]
    for index, label in zip(moved, labels, strict=True):
        changed[index] = quickstart.Example(training[index].text, label)
    random.seed(benchmark.SEED)
    torch.manual_seed(benchmark.SEED)
    names = sorted({row.label for row in training})
    model, tokenizer = quickstart.load_base(names, benchmark.MAX_LENGTH)
    quickstart.train(changed, model, tokenizer, benchmark.EPOCHS)
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _correct(home: Path, tag: str, file: Path) -> NDArray[np.bool_]:
    """Return which rows a version has right."""
    name, _, version = tag.partition(":")
    version_folder = home / "models" / name / version
    card = json.loads((version_folder / "model_card.json").read_text())
    task = load(version_folder, card["max_length"], RunnerSettings(device="cpu"))
    test_rows = rows.read_rows(file, rows.Columns(label="category"))
    labels = []
    for at in range(0, len(test_rows), 64):
        items = task.processor.prepare(test_rows.texts[at : at + 64])
        predictions = task.processor.finish(items, task.model.infer(items, alone=True))
        labels += [card["labels"][prediction.index] for prediction in predictions]
    right: NDArray[np.bool_] = np.array(labels) == np.array(test_rows.labels)
    return right


def _count_covering(this: NDArray[np.bool_], other: NDArray[np.bool_]) -> int:
    """Return in how many resamplings the interval has the difference over all rows in it."""
    true = float(this.mean() - other.mean())
    generator = np.random.default_rng(benchmark.SEED)
    drawn = (generator.choice(len(this), _RESAMPLED) for _ in range(_RESAMPLINGS))
    comparisons = (compare_versions(this[chosen], other[chosen], "other") for chosen in drawn)
    return sum(comparison.low <= true <= comparison.high for comparison in comparisons)


def _promote(env: dict[str, str], tag: str, stage: str) -> subprocess.CompletedProcess[str]:
    return _kaiten(env, "promote", tag, "--to", stage, "--reason", "acceptance", may_fail=True)


def _kaiten(
    env: dict[str, str], *arguments: str, may_fail: bool = False
) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(
        [str(BIN / "kaiten"), *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode and not may_fail:
        raise RuntimeError(f"kaiten {arguments[0]} failed: {process.stderr[-1000:]}")
    return process
