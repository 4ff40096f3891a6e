"""Texts alone, in a padded batch and packed: one answer, for each family, whatever the lengths."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from runners.engines.base import TokenBatch
from runners.engines.packed_network import PackedNetwork, is_packable
from runners.engines.packing import Shape, pack

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_labels": 5,
    # Ten times the usual, so that what another text lends is seen.
    "initializer_range": 0.2,
}
PAD = {"bert": 0, "roberta": 1}
TEXTS = [[2, *range(5, 5 + length), 3] for length in (1, 40, 7, 7, 1, 19)]
SHAPE = Shape(tokens=128, texts=8)
TOLERANCE = 1e-5


def make_network(family: str) -> Any:  # noqa: ANN401  transformers has no types
    with torch.random.fork_rng():
        torch.manual_seed(20261125)
        if family == "bert":
            config = BertConfig(**SIZES, max_position_embeddings=64, pad_token_id=0)
            return BertForSequenceClassification(config).eval()
        config = RobertaConfig(**SIZES, max_position_embeddings=66, pad_token_id=1)
        return RobertaForSequenceClassification(config).eval()


@torch.inference_mode()
def compute_padded(network: Any, texts: list[list[int]], pad_id: int) -> Any:  # noqa: ANN401
    arrays = TokenBatch.of_ids(texts, pad_id).arrays()
    inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return network(**inputs).logits.numpy()


@torch.inference_mode()
def compute_packed(network: PackedNetwork, texts: list[list[int]], first: int) -> Any:  # noqa: ANN401
    batch = np.zeros(SHAPE.size, np.int32)
    pack(texts, SHAPE, first, batch)
    return network(torch.from_numpy(batch), SHAPE, 64).numpy()[: len(texts)]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_alone_padded_and_packed_agree(family: str) -> None:
    network = make_network(family)
    assert is_packable(network)
    alone = np.concatenate([compute_padded(network, [text], PAD[family]) for text in TEXTS])
    together = compute_padded(network, TEXTS, PAD[family])
    # Different texts differ, or the rest would prove nothing.
    assert np.abs(alone[0] - alone[1]).max() > 0.1

    ours = PackedNetwork(network)
    first = ours.first_position
    np.testing.assert_allclose(together, alone, atol=TOLERANCE)
    np.testing.assert_allclose(compute_packed(ours, TEXTS, first), alone, atol=TOLERANCE)
    np.testing.assert_allclose(
        compute_packed(ours, TEXTS[::-1], first), alone[::-1], atol=TOLERANCE
    )
    np.testing.assert_allclose(compute_packed(ours, TEXTS[1:2], first), alone[1:2], atol=TOLERANCE)


def test_positions_that_start_elsewhere_are_seen() -> None:
    """Positions from 0 raise no error, and change RoBERTa's answer."""
    network = make_network("roberta")
    alone = compute_padded(network, TEXTS[:1], 1)
    ours = PackedNetwork(network)
    assert ours.first_position == 2
    assert np.abs(compute_packed(ours, TEXTS[:1], 0) - alone).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "network",
    [
        DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=64)
        ),
        BertForSequenceClassification(BertConfig(**{**SIZES, "num_attention_heads": 8})),
        BertForSequenceClassification(BertConfig(**SIZES, is_decoder=True)),
    ],
    ids=["another family", "heads of 4", "a decoder"],
)
def test_other_networks_are_not_packed(network: Any) -> None:  # noqa: ANN401
    assert not is_packable(network)
