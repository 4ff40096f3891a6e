"""Every class of tokenizer is served with the ids that it was saved with."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import logging

from runners.engines.base import Computed, TokenBatch
from runners.probe_texts import PROBE_TEXTS
from runners.tasks.text_classification import serving
from runners.tasks.text_classification.batch_probes import fit_inputs
from runners.tokenizer_inspection import inspect_tokenizer
from tests.acceptance.zoo import transformers_4
from tests.acceptance.zoo.specimens import MAX_LENGTH
from tests.acceptance.zoo.tokenizers import KINDS, Vocabularies

_PYTHON = (
    *("bertweet", "bertweet-normal", "phobert", "japanese-character", "esm", "byt5", "perceiver"),
    "ctrl",
)
# Those of models that read more than a text, and one that takes seconds; the zoo has them.
_OTHERS = ("canine", "layoutlmv3", "markuplm", "roc_bert", "tapas")
_FAST = [
    name
    for name, kind in KINDS.items()
    if name not in _PYTHON and name not in _OTHERS and not kind.needs
]


class _Network:
    """Stands for a network that takes what tokenizers give."""

    positions = 512
    vocabulary_size = None
    network = SimpleNamespace(config=SimpleNamespace())

    def takes(self, name: str) -> bool:
        return name in {"input_ids", "attention_mask", "token_type_ids"}

    def compute(self, batch: TokenBatch) -> Computed:
        return Computed(np.zeros((len(batch), 2), np.float32))


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vocabularies]:
    """Give the tokenizers, of which each is trained once."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    saved = tmp_path_factory.mktemp("saved")
    transformers_4.unpack(saved)
    yield Vocabularies(tmp_path_factory.mktemp("vocabularies"), saved)
    logging.set_verbosity(verbosity)


def served_ids(folder: Path, output: Path) -> list[list[int]]:
    """Return the ids of the probe texts as a server tokenises them."""
    (folder / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    network: Any = _Network()
    classifier = fit_inputs(network, inspect_tokenizer(folder, output, network, None))
    classifier.settings.write(output)
    if classifier.settings.backend == "transformers":
        # A version keeps the files that the Python class reads.
        for file in folder.iterdir():
            (output / file.name).write_bytes(file.read_bytes())
    processor = serving.load_processor(output, classifier.max_length)
    return [list(item.ids) for item in processor._tokenizer.encode(list(PROBE_TEXTS))]


def tokenizer_json_ids(folder: Path) -> list[list[int]]:
    """Return the ids by the folder's tokenizer.json."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return [encoding.ids for encoding in tokenizer.encode_batch(list(PROBE_TEXTS))]


def test_texts_are_many_and_different() -> None:
    assert len(set(PROBE_TEXTS)) == len(PROBE_TEXTS) >= 200


@pytest.mark.parametrize("name", _FAST)
def test_ids_are_those_of_tokenizer_json(
    name: str, vocabularies: Vocabularies, tmp_path: Path
) -> None:
    folder, output = tmp_path / "model", tmp_path / "made"
    vocabularies.save(name, folder)
    output.mkdir()
    assert served_ids(folder, output) == tokenizer_json_ids(folder)


@pytest.mark.parametrize("name", list(transformers_4.kinds()))
def test_ids_are_those_of_transformers_4_57(
    name: str, vocabularies: Vocabularies, tmp_path: Path
) -> None:
    folder, output = tmp_path / "model", tmp_path / "made"
    vocabularies.copy_saved(name, folder)
    output.mkdir()
    assert served_ids(folder, output) == tokenizer_json_ids(folder) == vocabularies.saved_ids(name)


@pytest.mark.parametrize("name", _PYTHON)
def test_ids_of_a_python_class_are_its_own(
    name: str, vocabularies: Vocabularies, tmp_path: Path
) -> None:
    folder, output = tmp_path / "model", tmp_path / "made"
    vocabularies.save(name, folder)
    output.mkdir()
    ids = served_ids(folder, output)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert ids == [tokenizer(text, truncation=True)["input_ids"] for text in PROBE_TEXTS]


def test_classes_are_at_least_twenty() -> None:
    assert len({KINDS[name].cls for name in (*_FAST, *_PYTHON)}) >= 20
    assert len(transformers_4.kinds()) >= 20
