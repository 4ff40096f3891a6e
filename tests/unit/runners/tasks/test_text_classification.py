import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import (
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizerFast

from kaiten.errors import ModelRejected
from kaiten.sections import Runners
from runners import centroids
from runners.engines import MODEL_FILE
from runners.engines.export import MAX_TOKENS, export
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import ModelFacts, Task
from runners.tasks.text_classification import inspection
from runners.tasks.text_classification.serving import (
    Classification,
    Raw,
    TextProcessor,
    TokenisedText,
    codec,
    load,
    load_processor,
)

# One thread: torch's wait for each other's, which costs seconds where other tests run beside.
CPU = Runners(device="cpu", threads=1)
Classifier = Task[str, TokenisedText, Raw, Classification]
LABELS = ["billing", "delivery", "other"]
# Every length from one word to over the maximum, no two texts alike.
TEXTS = [" ".join(f"w{(start * word) % 55}" for word in range(start + 1)) for start in range(1, 65)]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def registered(
    request: pytest.FixtureRequest, tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    made = tmp_path_factory.mktemp("made")
    facts = inspection.inspect(tiny_classifier, made)
    assert facts.engine.name == "onnx"
    shutil.copytree(tiny_classifier, made, dirs_exist_ok=True)
    if request.param == "torch":
        (made / MODEL_FILE).unlink()
    return made


@pytest.fixture(scope="module")
def classifier(registered: Path) -> Classifier:
    return load(registered, 64, CPU)


@pytest.fixture
def measured(classifier: Classifier, registered: Path, tmp_path: Path) -> Classifier:
    """Return the classifier with the first three texts as its reference, a centroid each."""
    embeddings = classifier.model.infer(classifier.processor.prepare(TEXTS[:3])).embeddings
    assert embeddings is not None
    made = centroids.centroids_of(embeddings, np.arange(3))
    return load(registered, 64, CPU, reported(tmp_path, made))


def reported(folder: Path, made: NDArray[np.float32]) -> Path:
    """Write centroids as a report's folder holds them, and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / centroids.CENTROIDS_FILE).write_bytes(centroids.written(made))
    return folder


@pytest.fixture
def folder(tiny_classifier: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny classifier, to be spoilt."""
    return Path(shutil.copytree(tiny_classifier, tmp_path / "model"))


def inspect(folder: Path) -> ModelFacts:
    with TemporaryDirectory() as made:
        return inspection.inspect(folder, Path(made))


def predict(classifier: Classifier, texts: list[str]) -> list[Classification]:
    batch = classifier.processor.prepare(texts)
    return classifier.processor.finish(batch, classifier.model.infer(batch))


def edit(file: Path, **changes: object) -> None:
    """Set keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder: Path) -> tuple[str, str]:
    with pytest.raises(ModelRejected) as caught:
        inspect(folder)
    (detail,) = caught.value.details
    return detail.field, detail.reason


def test_inspect_tells_what_the_model_is(tiny_classifier: Path) -> None:
    facts = inspect(tiny_classifier)
    assert list(facts.labels) == LABELS
    assert facts.max_length == 64
    assert facts.architecture == "BertForSequenceClassification"
    assert facts.framework_versions["torch"] == version("torch")
    packages = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}
    assert facts.framework_versions.keys() == packages
    assert facts.engine.name == "onnx"
    assert facts.engine.texts > 5
    assert facts.engine.max_difference is not None
    assert facts.engine.max_difference <= 1e-4


def test_network_that_onnx_computes_otherwise_is_served_by_torch(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No difference is below this.
    monkeypatch.setattr("runners.engines.export.TOLERANCE", -1.0)
    facts = inspection.inspect(tiny_classifier, tmp_path)
    assert facts.engine.name == "torch"
    assert "differ" in facts.engine.reason
    assert not (tmp_path / "onnx").exists()
    shutil.copytree(tiny_classifier, tmp_path, dirs_exist_ok=True)
    served = load(tmp_path, 64, CPU)
    assert len(predict(served, TEXTS)) == len(TEXTS)


def test_network_that_can_not_be_pruned_is_exported_whole(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(network: object) -> bool:
        raise ValueError("over 2 GB")

    monkeypatch.setattr("runners.engines.export.prune", fails)
    facts = inspection.inspect(tiny_classifier, tmp_path)
    assert facts.engine.name == "onnx"
    assert facts.engine.reason.startswith("exported to ONNX, its logits agree")


def test_pruned_network_that_fails_gives_way_to_the_whole(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoils(network: onnx.ModelProto) -> bool:
        network.graph.node[0].op_type = "NoSuchOperation"
        return True

    monkeypatch.setattr("runners.engines.export.prune", spoils)
    facts = inspection.inspect(tiny_classifier, tmp_path)
    assert facts.engine.name == "onnx"
    assert facts.engine.reason.startswith("exported to ONNX, its logits agree")


def test_network_that_can_not_be_exported_is_served_by_torch(
    tiny_classifier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = TorchEngine(tiny_classifier, CPU)
    # A token that no embedding is there for, which stands for whatever trips an exporter.
    facts = export(engine, 0, [[2, 10**6, 3], [2, 3]], tmp_path)
    assert facts.name == "torch"
    assert "can not be exported" in facts.reason
    assert not (tmp_path / "onnx").exists()
    # The exporter would print the graph.
    assert capfd.readouterr().out == ""


def test_full_disk_is_no_reason_to_choose_torch(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that can not be written stands for a disk that is full.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(OSError, match="absent"):
        export(TorchEngine(tiny_classifier, CPU), 0, [[2, 3, 4], [2, 3]], tmp_path)


def test_network_of_long_texts_is_served_by_torch(tiny_classifier: Path, tmp_path: Path) -> None:
    engine = TorchEngine(tiny_classifier, CPU)
    facts = export(engine, 0, [[2, 3], [2] * (MAX_TOKENS + 1)], tmp_path)
    assert facts.name == "torch"
    assert f"texts of up to {MAX_TOKENS + 1} tokens" in facts.reason
    assert list(tmp_path.iterdir()) == []


def test_exported_weights_lie_beside_the_graph(tiny_classifier: Path, tmp_path: Path) -> None:
    inspection.inspect(tiny_classifier, tmp_path)
    graph, weights = tmp_path / "onnx/model.onnx", tmp_path / "onnx/model.onnx_data"
    embeddings = load_file(tiny_classifier / "model.safetensors")[
        "bert.embeddings.word_embeddings.weight"
    ]
    assert embeddings.numpy().tobytes() in weights.read_bytes()
    assert embeddings.numpy().tobytes() not in graph.read_bytes()
    assert weights.stat().st_mode == graph.stat().st_mode


def test_both_engines_compute_the_same(tiny_classifier: Path, tmp_path: Path) -> None:
    inspection.inspect(tiny_classifier, tmp_path)
    shutil.copytree(tiny_classifier, tmp_path, dirs_exist_ok=True)
    by_onnx = load(tmp_path, 64, CPU)
    by_torch = load(tmp_path, 64, Runners(device="cpu", threads=1, engine="torch"))
    for found, expected in zip(predict(by_onnx, TEXTS), predict(by_torch, TEXTS), strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert (found.index, found.tokens) == (expected.index, expected.tokens)


def test_best_label_comes_with_its_probability(classifier: Classifier) -> None:
    for found in predict(classifier, TEXTS):
        assert found.index == int(found.scores.argmax())
        assert found.confidence == pytest.approx(float(found.scores.max()))


def test_scores_do_not_depend_on_the_batch(classifier: Classifier) -> None:
    together = predict(classifier, TEXTS)
    assert len(together) == len(TEXTS) == 64
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = predict(classifier, [text])
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)
        assert found.tokens == alone.tokens


def test_scores_differ_between_texts(classifier: Classifier) -> None:
    scores = np.array([found.scores for found in predict(classifier, TEXTS)])
    assert (scores.std(axis=0) > 0.01).all()


def test_order_is_kept(classifier: Classifier) -> None:
    forwards = predict(classifier, TEXTS)
    backwards = predict(classifier, TEXTS[::-1])
    for found, expected in zip(reversed(backwards), forwards, strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
        assert found.tokens == expected.tokens


def test_scores_are_probabilities(classifier: Classifier) -> None:
    for found in predict(classifier, TEXTS):
        assert found.scores.shape == (3,)
        assert found.scores.sum() == pytest.approx(1, abs=1e-5)
        assert (found.scores >= 0).all()


def test_scores_of_large_logits_are_finite(classifier: Classifier) -> None:
    batch = classifier.processor.prepare(["w1"])
    logits = np.array([[1000, 0, -1000]], dtype=np.float32)
    (found,) = classifier.processor.finish(batch, Raw(logits, np.zeros(1, np.float32)))
    np.testing.assert_array_equal(found.scores, [1, 0, 0])


@pytest.mark.parametrize(("words", "tokens"), [(0, 2), (1, 3), (62, 64), (63, 64), (500, 64)])
def test_text_is_cut_at_the_maximum_length(words: int, tokens: int, classifier: Classifier) -> None:
    (item,) = classifier.processor.prepare(["w1 " * words])
    assert item.cost == len(item.ids) == tokens
    (found,) = predict(classifier, ["w1 " * words])
    assert found.tokens == tokens


def test_what_is_cut_off_has_no_say(classifier: Classifier) -> None:
    start = "w1 w2 " * 31
    first, second = predict(classifier, [start, f"{start} w3 w4 w5"])
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_warm_up_computes_the_longest_text(classifier: Classifier) -> None:
    classifier.model.warm_up(512, 8)


def test_items_and_what_is_computed_pass_between_processes_unchanged(
    measured: Classifier,
) -> None:
    items = measured.processor.prepare(TEXTS)
    carried = codec.decode_items(codec.encode_items(items))
    assert [[*item.ids] for item in carried] == [[*item.ids] for item in items]
    raw = measured.model.infer(carried)
    np.testing.assert_array_equal(raw.logits, measured.model.infer(items).logits)
    told = codec.encode_raw(raw)
    # Three labels and a distance; embeddings stay.
    assert {len(each) for each in told} == {4 * 4}
    found = codec.decode_raw(told)
    np.testing.assert_array_equal(found.logits, raw.logits)
    np.testing.assert_array_equal(found.distances, raw.distances)
    assert found.embeddings is None
    assert measured.processor.finish(items, found)[9].distance == raw.distances[9] > 0


def test_answers_without_a_distance_pass_too(classifier: Classifier) -> None:
    items = classifier.processor.prepare(TEXTS[:2])
    raw = codec.decode_raw(codec.encode_raw(classifier.model.infer(items)))
    assert [each.distance for each in classifier.processor.finish(items, raw)] == [None, None]


def test_distance_is_that_to_the_nearest_centroid(
    measured: Classifier, classifier: Classifier
) -> None:
    raw = classifier.model.infer(classifier.processor.prepare(TEXTS))
    assert raw.embeddings is not None
    assert np.isnan(raw.distances).all()
    found = np.array([each.distance for each in predict(measured, TEXTS)])
    # Those of the first three texts themselves.
    np.testing.assert_allclose(found[:3], 0, atol=1e-2)
    unit = raw.embeddings / np.linalg.norm(raw.embeddings, axis=1, keepdims=True)
    expected = np.linalg.norm(unit[:, None] - unit[None, :3], axis=2).min(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-2)
    assert {each.distance for each in predict(classifier, TEXTS)} == {None}


def test_report_without_centroids_gives_no_distance(
    classifier: Classifier, registered: Path, tmp_path: Path
) -> None:
    served = load(registered, 64, CPU, tmp_path)
    assert {each.distance for each in predict(served, TEXTS)} == {None}


def test_version_whose_export_has_no_embedding_is_served_without(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    """As an older Kaiten has registered it."""
    inspection.inspect(tiny_classifier, tmp_path)
    file = tmp_path / MODEL_FILE
    graph = onnx.load(file, load_external_data=False)
    assert [each.name for each in graph.graph.output] == ["logits", "embedding"]
    del graph.graph.output[1]
    onnx.save(graph, file)
    reference = reported(tmp_path / "report", np.eye(2, 32, dtype=np.float32))
    for found in predict(load(tmp_path, 64, CPU, reference), TEXTS[:5]):
        assert found.distance is None
        assert found.confidence > 0


def test_bytes_that_are_no_token_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        codec.decode_items([b"12345"])


def test_processor_needs_no_network(tiny_classifier: Path, tmp_path: Path) -> None:
    inspection.inspect(tiny_classifier, tmp_path)
    (item,) = load_processor(tmp_path, 64).prepare(["w1 w2"])
    assert item.cost == 4


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["classifier.weight"].fill_(float("nan")))
    field, reason = refused(folder)
    assert field == "weights"
    assert "finite: False" in reason


@pytest.mark.parametrize("kept", [0, 0.5, 0.99])
def test_truncated_weights_are_refused(kept: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    field, reason = refused(folder)
    assert field == "model"
    assert "can not be loaded" in reason


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.1.output.dense.weight"])
def test_missing_weights_are_refused(name: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(name))
    refused(folder)


def test_tokens_without_an_embedding_are_refused(folder: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        name = "bert.embeddings.word_embeddings.weight"
        weights[name] = weights[name][:10].clone()

    edit_weights(folder, cut)
    edit(folder / "config.json", vocab_size=10)
    refused(folder)


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["BertModel"], [], None])
def test_other_architecture_is_refused(architectures: list[str] | None, folder: Path) -> None:
    edit(folder / "config.json", architectures=architectures)
    field, reason = refused(folder)
    assert field == "config.json"
    assert (architectures or ["none"])[0] in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"problem_type": "multi_label_classification"},
        {"id2label": {"0": "only"}, "label2id": {"only": 0}},
    ],
)
def test_other_than_one_of_several_labels_is_refused(
    changes: dict[str, object], folder: Path
) -> None:
    edit(folder / "config.json", **changes)
    field, reason = refused(folder)
    assert field == "config.json"
    assert "multi-label or has fewer than two labels" in reason


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "of-our-own"},
        {"id2label": {"0": "a", "2": "b"}},
    ],
)
def test_config_that_makes_no_sense_is_refused(changes: dict[str, object], folder: Path) -> None:
    edit(folder / "config.json", **changes)
    assert refused(folder)[0] == "config.json"


def test_labels_that_the_weights_do_not_have_are_refused(folder: Path) -> None:
    labels = {str(index): str(index) for index in range(5)}
    edit(folder / "config.json", id2label=labels, label2id=labels)
    assert refused(folder)[0] == "model"


def test_tokenizer_without_padding_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert refused(folder)[0] == "tokenizer"


def test_tokenizers_own_maximum_is_kept(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=16)
    assert inspect(folder).max_length == 16


@pytest.mark.parametrize("stated", [10**30, 512])
def test_maximum_is_what_the_positions_allow(stated: int, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=stated)
    assert inspect(folder).max_length == 64


@pytest.mark.parametrize(
    ("family", "offset"),
    [
        ("Roberta", 2),
        ("Camembert", 2),
        ("XLMRoberta", 2),
        ("Bert", 0),
        *((family, 2) for family in ("MPNet", "RobertaPreLayerNorm", "Data2VecText", "IBert")),
    ],
)
def test_maximum_leaves_out_positions_that_no_token_takes(
    family: str, offset: int, tmp_path: Path
) -> None:
    # With padding_idx 1, RoBERTa's positions start at 2, and its table is two rows longer.
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *(f"w{number}" for number in range(55))]
    config: Any = getattr(transformers, f"{family}Config")(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=34,
        pad_token_id=1,
        num_labels=3,
    )
    getattr(transformers, f"{family}ForSequenceClassification")(config).save_pretrained(tmp_path)
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=512).save_pretrained(tmp_path)
    facts = inspect(tmp_path)
    assert facts.max_length == 34 - offset
    inspection.inspect(tmp_path, made := tmp_path / "made")
    shutil.copytree(tmp_path, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("made"))
    (found,) = predict(load(made, facts.max_length, CPU), ["w1 " * 100])
    assert found.tokens == 34 - offset


def _tokenizers() -> dict[str, Tokenizer]:
    """Return small tokenizers of three kinds, by words and, of the last, of none."""
    corpus = ["the quick brown fox jumps over the lazy dog", "parcels, and don't! 12 34 naïve 漢字"]
    by_pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    by_pieces.normalizer = normalizers.BertNormalizer()
    by_pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    by_pieces.train_from_iterator(corpus, trainers.WordPieceTrainer(special_tokens=special))
    by_pieces.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    by_bytes = Tokenizer(models.BPE())
    by_bytes.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=["[PAD]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    by_bytes.train_from_iterator(corpus, trainer)
    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.train_from_iterator(
        corpus, trainers.UnigramTrainer(special_tokens=["[PAD]", "[UNK]"], unk_token="[UNK]")
    )
    no_words = Tokenizer.from_str(unigram.to_str())
    no_words.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    found = {"pieces": by_pieces, "bytes": by_bytes, "unigram": unigram, "no words": no_words}
    for tokenizer in found.values():
        tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return found


TOKENIZERS = _tokenizers()
UNITS = st.sampled_from(
    [
        "the ",
        "quick",
        " fox",
        ", ",
        "don't ",
        "[SEP]",
        "[SEP",
        "a" * 300,
        "漢",
        "😀",
        "é",
        "e\u0301",
        " " * 40,
        "\n",
        "1234 ",
        "\u0301" * 50,
    ]
)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None, max_examples=60)
@given(units=st.lists(UNITS, min_size=1, max_size=30), times=st.integers(1, 40))
def test_start_of_a_long_text_has_the_tokens_of_the_whole(
    name: str, side: str, units: list[str], times: int
) -> None:
    tokenizer = Tokenizer.from_str(TOKENIZERS[name].to_str())
    tokenizer.enable_truncation(16, direction=side)
    processor = TextProcessor(tokenizer, 16)
    text = "".join(units) * times
    (item,) = processor.prepare([text])
    tokenizer.no_padding()
    assert item.ids == tokenizer.encode(text).ids


def test_of_a_long_text_no_more_than_its_start_is_tokenised() -> None:
    processor = TextProcessor(Tokenizer.from_str(TOKENIZERS["pieces"].to_str()), 16)
    starts = [processor._sufficient_start(text) for text in ("the fox " * 10_000, "a" * 300, "fox")]
    assert len(starts[0]) <= 1000
    assert starts[1:] == ["a" * 300, "fox"]
