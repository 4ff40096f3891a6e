"""What tests share: a model that loads in a blink, and state that is each test's own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# For torch in this process and in those that tests start: spinning threads of two processes on two
# cores would take 20 times as long. torch reads both when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


@pytest.fixture(autouse=True)
def _isolate_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep every test from the settings of its runner and of other tests, and from their state."""
    for name in list(os.environ):
        if name.startswith("KAITEN_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAITEN_HOME", str(tmp_path))
    yield
    # A server's parent process hands its settings down by this variable.
    os.environ.pop("KAITEN_SNAPSHOT", None)


@pytest.fixture
def model_store(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """Give BentoML an empty home of the test's own; its models lie in the folder ``models``."""
    # Imported here, as most tests need neither BentoML nor torch, which take seconds to import.
    from bentoml._internal.configuration.containers import BentoMLContainer  # noqa: PLC0415
    from bentoml._internal.models import ModelStore  # noqa: PLC0415

    home = tmp_path_factory.mktemp("bentoml")
    (home / "models").mkdir()
    # For processes that the test starts; this one has read its home already, and keeps it.
    monkeypatch.setenv("BENTOML_HOME", str(home))
    BentoMLContainer.model_store.set(ModelStore(home / "models"))
    yield home
    BentoMLContainer.model_store.reset()


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a BERT of three labels and 64 positions; copy the folder before changing it."""
    import torch  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        BertConfig,
        BertForSequenceClassification,
        BertTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("models") / "tiny"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(55))]
    labels = ["billing", "delivery", "other"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        # Ten times the usual, so that different texts get clearly different scores.
        initializer_range=0.2,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    with torch.random.fork_rng():
        torch.manual_seed(20261122)
        BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    return folder
