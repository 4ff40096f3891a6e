"""A pruned network computes the same, and less of it."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
)

from runners.engines.base import TokenBatch
from runners.engines.embedding import watch_embedding
from runners.engines.export import trace
from runners.engines.pruning import prune

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "vocab_size": 60,
    "max_position_embeddings": 40,
    "num_labels": 5,
    "pad_token_id": 0,
}
FAMILIES = {
    "bert": BertConfig(**SIZES),
    "distilbert": DistilBertConfig(
        dim=16, n_layers=3, n_heads=4, hidden_dim=32, vocab_size=60, num_labels=5
    ),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "roberta": RobertaConfig(**{**SIZES, "pad_token_id": 1}),
}
Answers = Sequence[NDArray[np.float32]]


def parse_network(outputs: str, body: str) -> onnx.ModelProto:
    """Return a network of texts x tokens x 4, with weights ``w``."""
    weights = "float[4,4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
    head = '<ir_version: 8, opset_import: ["": 17]> network (float[N,T,4] x)'
    return onnx.parser.parse_model(f"{head} => ({outputs}) <{weights}> {{ {body} }}")


def run(model: onnx.ModelProto, **inputs: NDArray[np.generic]) -> Answers:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    answers: Answers = session.run(None, inputs)
    return answers


def operations(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.op_type != "Constant"]


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_answer_the_same_and_compute_less(family: str) -> None:
    config: PretrainedConfig = FAMILIES[family]
    torch.manual_seed(7)
    network = AutoModelForSequenceClassification.from_config(config).eval()
    watch_embedding(network)
    pad_id = config.pad_token_id or 0
    texts = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15]]
    model = trace(network, TokenBatch.of_ids(texts[:2], pad_id))
    original = onnx.ModelProto()
    original.CopyFrom(model)

    assert prune(model)
    onnx.checker.check_model(model)
    assert operations(model).count("Slice") > operations(original).count("Slice")
    for batch in (texts, texts[:1], texts[1:]):
        arrays = TokenBatch.of_ids(batch, pad_id).arrays()
        (logits, embedding), expected = (run(graph, **arrays) for graph in (model, original))
        assert logits.shape == (len(batch), 5)
        assert embedding.shape == (len(batch), 16)
        np.testing.assert_allclose(logits, expected[0], atol=1e-6)
        np.testing.assert_allclose(embedding, expected[1], atol=1e-6)


def test_what_follows_a_token_by_itself_is_done_for_the_first_alone() -> None:
    model = parse_network(
        "float[N,4] y",
        """a = MatMul (x, w)
        b = Add (a, x)
        c = Tanh (b)
        zero = Constant <value_int: int = 0> ()
        y = Gather <axis: int = 1> (c, zero)""",
    )
    replace_constant(model, 0)
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 100
    (expected,) = run(model, x=x)

    assert prune(model)
    # The input is cut once, for both that read it.
    assert operations(model) == ["Slice", "MatMul", "Add", "Tanh", "Gather"]
    np.testing.assert_array_equal(run(model, x=x)[0], expected)


@pytest.mark.parametrize(
    ("index", "outputs", "more"),
    [
        (1, "float[N,4] y", ""),
        (0, "float[N,4] y, float[N,T,4] c", ""),
        (0, "float[N,4] y, float[N,T,1] m", "m = ReduceMean <axes: ints = [2]> (c)"),
    ],
    ids=["another token", "all tokens are told", "all tokens are read elsewhere"],
)
def test_what_is_needed_whole_is_left_as_it_is(index: int, outputs: str, more: str) -> None:
    model = parse_network(
        outputs,
        f"""a = MatMul (x, w)
        c = Tanh (a)
        zero = Constant <value_int: int = 0> ()
        y = Gather <axis: int = 1> (c, zero)
        {more}""",
    )
    replace_constant(model, index)
    before = model.SerializeToString()

    assert not prune(model)
    assert model.SerializeToString() == before


def replace_constant(model: onnx.ModelProto, value: int) -> None:
    """Give the constant the form that the exporter writes: a tensor without axes."""
    (node,) = (node for node in model.graph.node if node.op_type == "Constant")
    del node.attribute[:]
    tensor = onnx.helper.make_tensor("value", onnx.TensorProto.INT64, [], [value])
    node.attribute.append(onnx.helper.make_attribute("value", tensor))
