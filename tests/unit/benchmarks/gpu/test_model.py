"""The seeded model: one that its texts' labels are clear to, in half precision as well."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.gpu.model import TINY, Facts, Size, make
from examples.quickstart.train import read_examples

# So few that so small a network can tell them apart.
ROWS = read_examples("train")[::6]


@pytest.fixture(scope="module")
def model_and_facts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Facts]:
    folder = tmp_path_factory.mktemp("model")
    return folder, make(folder, ROWS, TINY, torch.device("cpu"))


def test_head_knows_the_texts(model_and_facts: tuple[Path, Facts]) -> None:
    assert model_and_facts[1].right > 0.95
    assert model_and_facts[1].narrow_margin > 0.1


def test_labels_survive_half_precision(model_and_facts: tuple[Path, Facts]) -> None:
    texts = [row.text for row in ROWS]
    network: Any = AutoModelForSequenceClassification.from_pretrained(model_and_facts[0]).eval()
    encoding = AutoTokenizer.from_pretrained(model_and_facts[0])(
        texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        exact = network(**encoding).logits.argmax(1)
        half = network.to(torch.bfloat16)(**encoding).logits.argmax(1)
    assert float((exact == half).float().mean()) > 0.99


def test_same_model_each_time(model_and_facts: tuple[Path, Facts], tmp_path: Path) -> None:
    make(tmp_path, ROWS, TINY, torch.device("cpu"))
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (model_and_facts[0] / name).read_bytes()


def test_work_of_bert_base() -> None:
    base = Size()
    assert base.weights_per_token == pytest.approx(85e6, rel=0.01)
    # Two operations a weight, and a little for attention.
    assert base.flops(1, 20) == pytest.approx(2 * 85e6, rel=0.02)
