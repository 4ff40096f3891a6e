"""Every engine's embedding is what transformers' own last layer reads, or there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PretrainedConfig,
    RobertaConfig,
)

from kaiten.settings.models import RunnerSettings
from runners.engines.base import Computed, TokenBatch
from runners.engines.export import export
from runners.engines.onnx_engine import OnnxEngine
from runners.engines.torch_engine import TorchEngine

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 5,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES, max_position_embeddings=64, pad_token_id=0),
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1),
    "distilbert": DistilBertConfig(
        vocab_size=60,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=64,
        num_labels=5,
        initializer_range=0.2,
    ),
}
# Scores every token, and then chooses one of the scores.
DECODER = GPT2Config(
    vocab_size=60,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=4,
    num_labels=5,
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=3,
)
TEXTS = [[2, *range(5, 5 + length), 3] for length in (1, 40, 7, 19)]
CPU = RunnerSettings(device="cpu", threads=1)


def save_network(config: PretrainedConfig, folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    with torch.random.fork_rng():
        torch.manual_seed(20261128)
        network: Any = AutoModelForSequenceClassification.from_config(config).eval()
    network.save_pretrained(folder)
    return network


def export_to_onnx(folder: Path, pad_id: int) -> OnnxEngine:
    export_folder = folder / "made"
    assert (
        export(TorchEngine(folder, CPU), TokenBatch.of_ids(TEXTS, pad_id), export_folder).name
        == "onnx"
    )
    return OnnxEngine(export_folder, CPU)


@torch.inference_mode()
def pool_first_token(network: Any, pad_id: int) -> Any:  # noqa: ANN401
    """Return what the family's own head makes of the first token, before its last layer."""
    arrays = TokenBatch.of_ids(TEXTS, pad_id).arrays()
    output = network.base_model(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    first = output.last_hidden_state[:, 0]
    if network.config.model_type == "bert":
        representation = output.pooler_output
    elif network.config.model_type == "roberta":
        representation = torch.tanh(network.classifier.dense(first))
    else:
        representation = torch.relu(network.pre_classifier(first))
    return representation.numpy()


def embeddings(computed: Computed) -> NDArray[np.float32]:
    assert computed.embeddings is not None
    assert computed.embeddings.dtype == np.float32
    return computed.embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_is_what_transformers_pools(family: str, tmp_path: Path) -> None:
    pad_id = FAMILIES[family].pad_token_id or 0
    expected = pool_first_token(save_network(FAMILIES[family], tmp_path), pad_id)
    assert expected.shape == (len(TEXTS), 32)
    assert np.abs(expected[0] - expected[1]).max() > 0.1

    by_torch = TorchEngine(tmp_path, CPU).compute(TokenBatch.of_ids(TEXTS, pad_id))
    np.testing.assert_allclose(embeddings(by_torch), expected, atol=1e-5)
    assert by_torch.logits.shape == (len(TEXTS), 5)
    onnx = export_to_onnx(tmp_path, pad_id)
    for alone in (False, True):
        by_onnx = onnx.compute(TokenBatch.of_ids(TEXTS, pad_id), alone=alone)
        np.testing.assert_allclose(embeddings(by_onnx), expected, atol=1e-4)
    # Whatever shares its batch.
    single = onnx.compute(TokenBatch.of_ids(TEXTS[2:3], pad_id))
    np.testing.assert_allclose(embeddings(single), expected[2:3], atol=1e-4)


def test_network_that_scores_every_token_has_none(tmp_path: Path) -> None:
    save_network(DECODER, tmp_path)
    computed = TorchEngine(tmp_path, CPU).compute(TokenBatch.of_ids(TEXTS, 0))
    assert computed.embeddings is None
    assert computed.logits.shape == (len(TEXTS), 5)
    assert export_to_onnx(tmp_path, 0).compute(TokenBatch.of_ids(TEXTS, 0)).embeddings is None
