import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertTokenizerFast,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from kaiten.errors import BlankText, ModelRejected
from kaiten.model_facts import ModelFacts
from kaiten.settings.models import RunnerSettings
from runners import embedding_distance
from runners.engines import MODEL_FILE
from runners.engines.base import TokenBatch, softmax
from runners.engines.export import export
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import Task
from runners.tasks.text_classification import inspection
from runners.tasks.text_classification.serving import (
    Classification,
    Raw,
    codec,
    load,
    load_processor,
)
from runners.tokenization import TokenisedText, TokenizationSettings

# One thread: torch's wait for each other's, which costs seconds where other tests run beside.
CPU = RunnerSettings(device="cpu", threads=1)
Classifier = Task[str, TokenisedText, Raw, Classification]
LABELS = ["billing", "delivery", "other"]
# Every length from one word to over the maximum, no two texts alike.
TEXTS = [" ".join(f"w{(start * word) % 55}" for word in range(start + 1)) for start in range(1, 65)]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model_folder(
    request: pytest.FixtureRequest, tiny_classifier: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("made")
    facts = inspection.inspect(tiny_classifier, output)
    assert facts.engine.name == "onnx"
    shutil.copytree(tiny_classifier, output, dirs_exist_ok=True)
    if request.param == "torch":
        (output / MODEL_FILE).unlink()
    return output


@pytest.fixture(scope="module")
def classifier(model_folder: Path) -> Classifier:
    return load(model_folder, 64, CPU)


@pytest.fixture
def distance_classifier(classifier: Classifier, model_folder: Path, tmp_path: Path) -> Classifier:
    """Return the classifier with the first three texts as its reference, a centroid each."""
    embeddings = classifier.model.infer(classifier.processor.prepare(TEXTS[:3])).embeddings
    assert embeddings is not None
    centroids = embedding_distance.compute_centroids(embeddings, np.arange(3))
    return load(model_folder, 64, CPU, write_centroids(tmp_path, centroids))


def write_centroids(folder: Path, centroids: NDArray[np.float32]) -> Path:
    """Write centroids as a report's folder holds them, and return the folder."""
    folder.mkdir(exist_ok=True)
    (folder / embedding_distance.CENTROIDS_FILE).write_bytes(
        embedding_distance.serialize_centroids(centroids)
    )
    return folder


@pytest.fixture
def folder(tiny_classifier: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny classifier, to be spoilt."""
    return Path(shutil.copytree(tiny_classifier, tmp_path / "model"))


def inspect(folder: Path) -> ModelFacts:
    with TemporaryDirectory() as output:
        return inspection.inspect(folder, Path(output))


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


def assert_rejected(folder: Path) -> tuple[str, str]:
    with pytest.raises(ModelRejected) as caught:
        inspect(folder)
    (detail,) = caught.value.details
    return detail.field, detail.reason


def test_inspect_describes_the_model(tiny_classifier: Path) -> None:
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
    facts = export(engine, TokenBatch.of_ids([[2, 10**6, 3], [2, 3]], 0), tmp_path)
    assert facts.name == "torch"
    assert "cannot be exported" in facts.reason
    assert not (tmp_path / "onnx").exists()
    # The exporter would print the graph.
    assert capfd.readouterr().out == ""


def test_graph_that_a_library_prints_is_dropped(
    tiny_classifier: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object, **__: object) -> None:
        # As C++ does.
        os.write(1, b"graph")
        raise RuntimeError("no operator")

    monkeypatch.setattr("torch.onnx.export", fails)
    assert inspection.inspect(tiny_classifier, tmp_path).engine.name == "torch"
    print("result")  # noqa: T201  standard output is back
    assert capfd.readouterr().out == "result\n"


def test_full_disk_is_no_reason_to_choose_torch(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder that cannot be written stands for a full disk.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(OSError, match="absent"):
        export(
            TorchEngine(tiny_classifier, CPU), TokenBatch.of_ids([[2, 3, 4], [2, 3]], 0), tmp_path
        )


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
    by_torch = load(tmp_path, 64, RunnerSettings(device="cpu", threads=1, engine="torch"))
    for answer, expected in zip(predict(by_onnx, TEXTS), predict(by_torch, TEXTS), strict=True):
        np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-4)
        assert (answer.index, answer.tokens) == (expected.index, expected.tokens)


def test_best_label_comes_with_its_probability(classifier: Classifier) -> None:
    for answer in predict(classifier, TEXTS):
        assert answer.index == int(answer.scores.argmax())
        assert answer.confidence == pytest.approx(float(answer.scores.max()))


def test_scores_do_not_depend_on_the_batch(classifier: Classifier) -> None:
    together = predict(classifier, TEXTS)
    assert len(together) == len(TEXTS) == 64
    for text, answer in zip(TEXTS, together, strict=True):
        (alone,) = predict(classifier, [text])
        np.testing.assert_allclose(answer.scores, alone.scores, atol=1e-4)
        assert answer.tokens == alone.tokens


def test_scores_differ_between_texts(classifier: Classifier) -> None:
    scores = np.array([answer.scores for answer in predict(classifier, TEXTS)])
    assert (scores.std(axis=0) > 0.01).all()


def test_order_is_kept(classifier: Classifier) -> None:
    forwards = predict(classifier, TEXTS)
    backwards = predict(classifier, TEXTS[::-1])
    for answer, expected in zip(reversed(backwards), forwards, strict=True):
        np.testing.assert_allclose(answer.scores, expected.scores, atol=1e-4)
        assert answer.tokens == expected.tokens


def test_scores_are_probabilities(classifier: Classifier) -> None:
    for answer in predict(classifier, TEXTS):
        assert answer.scores.shape == (3,)
        assert answer.scores.sum() == pytest.approx(1, abs=1e-5)
        assert (answer.scores >= 0).all()


def test_scores_of_large_logits_are_finite(classifier: Classifier) -> None:
    batch = classifier.processor.prepare(["w1"])
    logits = np.array([[1000, 0, -1000]], dtype=np.float32)
    (answer,) = classifier.processor.finish(batch, Raw(logits, np.zeros(1, np.float32)))
    np.testing.assert_array_equal(answer.scores, [1, 0, 0])


@pytest.mark.parametrize(("words", "tokens"), [(1, 3), (62, 64), (63, 64), (500, 64)])
def test_text_is_cut_at_the_maximum_length(words: int, tokens: int, classifier: Classifier) -> None:
    (item,) = classifier.processor.prepare(["w1 " * words])
    assert item.cost == len(item.ids) == tokens
    (answer,) = predict(classifier, ["w1 " * words])
    assert answer.tokens == tokens


def test_what_is_cut_off_has_no_say(classifier: Classifier) -> None:
    start = "w1 w2 " * 31
    first, second = predict(classifier, [start, f"{start} w3 w4 w5"])
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-4)


def test_warm_up_computes_the_longest_text(classifier: Classifier) -> None:
    classifier.model.warm_up(512, 8)


def test_items_and_what_is_computed_pass_between_processes_unchanged(
    distance_classifier: Classifier,
) -> None:
    items = distance_classifier.processor.prepare(TEXTS)
    carried = codec.decode_items(codec.encode_items(items))
    assert [[*item.ids] for item in carried] == [[*item.ids] for item in items]
    raw = distance_classifier.model.infer(carried)
    np.testing.assert_array_equal(raw.logits, distance_classifier.model.infer(items).logits)
    parts = codec.encode_raw(raw)
    # Three labels and a distance; embeddings stay.
    assert {len(part) for part in parts} == {4 * 4}
    decoded = codec.decode_raw(parts)
    np.testing.assert_array_equal(decoded.logits, raw.logits)
    np.testing.assert_array_equal(decoded.distances, raw.distances)
    assert decoded.embeddings is None
    assert distance_classifier.processor.finish(items, decoded)[9].distance == raw.distances[9] > 0


def test_answers_without_a_distance_pass_too(classifier: Classifier) -> None:
    items = classifier.processor.prepare(TEXTS[:2])
    raw = codec.decode_raw(codec.encode_raw(classifier.model.infer(items)))
    assert [answer.distance for answer in classifier.processor.finish(items, raw)] == [None, None]


def test_distance_is_that_to_the_nearest_centroid(
    distance_classifier: Classifier, classifier: Classifier
) -> None:
    raw = classifier.model.infer(classifier.processor.prepare(TEXTS))
    assert raw.embeddings is not None
    assert np.isnan(raw.distances).all()
    distances = np.array([answer.distance for answer in predict(distance_classifier, TEXTS)])
    # Those of the first three texts themselves.
    np.testing.assert_allclose(distances[:3], 0, atol=1e-2)
    unit = raw.embeddings / np.linalg.norm(raw.embeddings, axis=1, keepdims=True)
    expected = np.linalg.norm(unit[:, None] - unit[None, :3], axis=2).min(axis=1)
    np.testing.assert_allclose(distances, expected, atol=1e-2)
    assert {answer.distance for answer in predict(classifier, TEXTS)} == {None}


def test_report_without_centroids_gives_no_distance(
    classifier: Classifier, model_folder: Path, tmp_path: Path
) -> None:
    served = load(model_folder, 64, CPU, tmp_path)
    assert {answer.distance for answer in predict(served, TEXTS)} == {None}


def test_version_whose_export_has_no_embedding_is_served_without(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    """As an older Kaiten has registered it."""
    inspection.inspect(tiny_classifier, tmp_path)
    file = tmp_path / MODEL_FILE
    graph = onnx.load(file, load_external_data=False)
    assert [output.name for output in graph.graph.output] == ["logits", "embedding"]
    del graph.graph.output[1]
    onnx.save(graph, file)
    reference = write_centroids(tmp_path / "report", np.eye(2, 32, dtype=np.float32))
    for answer in predict(load(tmp_path, 64, CPU, reference), TEXTS[:5]):
        assert answer.distance is None
        assert answer.confidence > 0


def test_bytes_that_are_no_token_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        codec.decode_items([b"12345"])


def test_processor_needs_no_network(tiny_classifier: Path, tmp_path: Path) -> None:
    inspection.inspect(tiny_classifier, tmp_path)
    (item,) = load_processor(tmp_path, 64).prepare(["w1 w2"])
    assert item.cost == 4


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights["classifier.weight"].fill_(float("nan")))
    field, reason = assert_rejected(folder)
    assert field == "weights"
    assert "not finite in classifier.weight" in reason


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_weights_are_refused(share: float, folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    field, reason = assert_rejected(folder)
    assert field == "model"
    assert "cannot be loaded" in reason


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.1.output.dense.weight"])
def test_missing_weights_are_refused(name: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.pop(name))
    assert_rejected(folder)


def test_tokens_without_an_embedding_are_refused(folder: Path) -> None:
    def cut(weights: dict[str, torch.Tensor]) -> None:
        name = "bert.embeddings.word_embeddings.weight"
        weights[name] = weights[name][:10].clone()

    edit_weights(folder, cut)
    edit(folder / "config.json", vocab_size=10)
    assert_rejected(folder)


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], ["BertModel"], [], None])
def test_other_architecture_is_refused(architectures: list[str] | None, folder: Path) -> None:
    edit(folder / "config.json", architectures=architectures)
    field, reason = assert_rejected(folder)
    assert field == "config.json"
    assert (architectures or ["none"])[0] in reason


def relabelled(*labels: object) -> dict[str, object]:
    return {"id2label": {str(index): label for index, label in enumerate(labels)}}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem_type": "multi_label_classification"}, "multi-label"),
        ({"problem_type": "regression"}, "regression"),
        (relabelled("only"), "fewer than two labels"),
        (relabelled("entailment", "neutral", "contradiction"), "sentence pairs"),
        (relabelled("not_duplicate", "duplicate", "other"), "sentence pairs"),
        ({"finetuning_task": "MNLI"}, "finetuning_task is mnli"),
        ({"sentence_transformers": {"version": "5.0"}}, "cross-encoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised by gptq"),
    ],
)
def test_classifier_of_another_kind_is_refused(
    changes: dict[str, object], reason: str, folder: Path
) -> None:
    edit(folder / "config.json", **changes)
    field, message = assert_rejected(folder)
    assert field == "config.json"
    assert reason in message


@pytest.mark.parametrize(
    ("tag", "noun"),
    [
        ("zero-shot-classification", "models of text pairs"),
        ("text-ranking", "rerankers"),
        ("sentence-similarity", "embedding models"),
    ],
)
def test_kind_in_the_model_card_is_heeded(tag: str, noun: str, folder: Path) -> None:
    (folder / "README.md").write_text(f"---\npipeline_tag: {tag}\n---\n# Ours\n")
    with pytest.raises(ModelRejected, match=f"pipeline_tag: {tag}.*does not serve {noun} yet"):
        inspect(folder)


@pytest.mark.parametrize(
    ("changes", "noun"),
    [
        (relabelled("only"), "rerankers"),
        ({"sbert_ce_default_activation_function": "torch.nn.Identity"}, "rerankers"),
        ({"problem_type": "regression", **relabelled("only")}, "regression models"),
    ],
)
def test_reranker_is_told_from_a_regression(
    changes: dict[str, object], noun: str, folder: Path
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelRejected, match=f"does not serve {noun} yet"):
        inspect(folder)


@pytest.mark.parametrize(
    "readme", ["---\n: [\n---\n", "no metadata", "---\nlicense: mit\n---\n", ""]
)
def test_other_model_cards_do_no_harm(readme: str, folder: Path) -> None:
    (folder / "README.md").write_text(readme)
    assert inspect(folder).labels


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((0, 1, 2), "the label 0 under 0"),
        (("yes", True, "no"), "the label True under 1"),
        (("a", None, "b"), "the label None under 1"),
        (("a", " ", "b"), "the label ' ' under 1"),
        (("a", "b", "a"), "the label 'a' more than once"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(
    labels: tuple[object, ...], reason: str, folder: Path
) -> None:
    edit(folder / "config.json", **relabelled(*labels))
    field, message = assert_rejected(folder)
    assert field == "config.json"
    assert reason in message


def test_labels_that_look_like_those_of_pairs_are_taken(folder: Path) -> None:
    labels = "duplicate_charge", "duplicate_order", "not_delivered"
    edit(folder / "config.json", **relabelled(*labels))
    assert tuple(inspect(folder).labels) == labels


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("bert.encoder.layer.2.output.dense.weight", "number of layers"),
        ("bert.encoder.layer.0.attention.self.query.lora_A.default.weight", "Merge the adapter"),
        ("classifier.bias2", "Correct config.json"),
    ],
)
def test_weights_that_the_network_does_not_use_are_refused(
    name: str, remedy: str, folder: Path
) -> None:
    edit_weights(folder, lambda weights: weights.update({name: torch.zeros(2, 2)}))
    with pytest.raises(ModelRejected) as caught:
        inspect(folder)
    assert caught.value.details[0].field == "weights"
    assert name in caught.value.message
    assert remedy in caught.value.message


@pytest.mark.parametrize(
    "name", ["cls.predictions.bias", "bert.embeddings.position_ids", "lm_head.weight"]
)
def test_weights_of_the_pretraining_do_no_harm(name: str, folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({name: torch.zeros(2)}))
    assert inspect(folder).engine.name == "onnx"


@pytest.mark.parametrize(("dtype", "name"), [("float16", "float16"), ("bfloat16", "bfloat16")])
def test_half_precision_weights_are_served_in_float32(
    dtype: str, name: str, tiny_classifier: Path, folder: Path, tmp_path: Path
) -> None:
    half = getattr(torch, dtype)
    rounded: dict[str, torch.Tensor] = {}

    def convert(weights: dict[str, torch.Tensor]) -> None:
        for key, weight in weights.items():
            rounded[key] = weight.to(half).float()
            weights[key] = weight.to(half)

    edit_weights(folder, convert)
    edit(folder / "config.json", dtype=dtype)
    facts = inspection.inspect(folder, output := tmp_path / "made")
    assert facts.engine.name == "onnx"
    assert facts.notes == [f"Weights in {name} were converted to float32, which changes no weight."]
    shutil.copytree(folder, output, dirs_exist_ok=True)
    exact = Path(shutil.copytree(tiny_classifier, tmp_path / "exact"))
    edit_weights(exact, lambda weights: weights.update(rounded))
    reference = TorchEngine(exact, CPU)
    for engine in ("onnx", "torch"):
        served = load(output, 64, RunnerSettings(device="cpu", threads=1, engine=engine))
        for text, answer in zip(TEXTS, predict(served, TEXTS), strict=True):
            batch = served.processor.prepare([text])
            expected = reference.compute(TokenBatch.of_ids([batch[0].ids], 0)).logits
            np.testing.assert_allclose(answer.scores, softmax(expected)[0], atol=1e-4)


def test_folders_own_tokenizer_serves_where_transformers_rebuilds_another(
    folder: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace("w1", "w2"), normalizers.Lowercase()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = inspection.inspect(folder, tmp_path)
    processor = load_processor(tmp_path, 64)
    texts = ["\uff57\uff13 w1 W4", "w2", "w1 w1"]
    for text, item in zip(texts, processor.prepare(texts), strict=True):
        assert [*item.ids] == tokenizer.encode(text).ids
    (note,) = facts.notes
    assert "tokenizer.json, by which texts are served, gives other token ids" in note


def test_token_types_of_the_template_are_given_to_the_network(folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS]:1 $A:1 [SEP]:0", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    inspection.inspect(folder, output := tmp_path / "made")
    shutil.copytree(folder, output, dirs_exist_ok=True)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for engine in ("onnx", "torch"):
        served = load(output, 64, RunnerSettings(device="cpu", threads=1, engine=engine))
        for text, answer in zip(TEXTS, predict(served, TEXTS), strict=True):
            (item,) = served.processor.prepare([text])
            with torch.inference_mode():
                logits = network(
                    input_ids=torch.tensor([[*item.ids]]),
                    token_type_ids=torch.tensor([[*item.types]]),
                ).logits
            np.testing.assert_allclose(answer.scores, softmax(logits.numpy())[0], atol=1e-4)
    carried = codec.decode_items(codec.encode_items([item]))
    assert [*carried[0].types] == [*item.types]


def decoder(folder: Path, pad_token: str | None = "[PAD]", **config: Any) -> Path:  # noqa: ANN401
    """Save a tiny GPT-2, which reads a text's last token before padding."""
    words = ["[PAD]", "[UNK]", *(f"w{number}" for number in range(55))]
    settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1} | config
    torch.manual_seed(0)
    GPT2ForSequenceClassification(
        GPT2Config(
            vocab_size=len(words),
            n_positions=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            num_labels=3,
            initializer_range=0.5,
            **settings,
        )
    ).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=pad_token, model_max_length=64
    ).save_pretrained(folder)
    return folder


def test_network_without_a_padding_id_computes_one_text_at_a_time(tmp_path: Path) -> None:
    (note,) = inspect(decoder(tmp_path, pad_token_id=None)).notes
    assert "one at a time" in note
    assert 'Set "pad_token_id": 0 in config.json' in note


def test_texts_are_padded_by_the_id_that_the_network_knows(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "model", pad_token_id=1)
    assert inspection.inspect(folder, output := tmp_path / "made").notes == []
    assert TokenizationSettings.read(output).pad_id == 1


def test_network_that_reads_the_last_token_is_served_exactly(tmp_path: Path) -> None:
    folder = decoder(tmp_path / "model")
    inspection.inspect(folder, output := tmp_path / "made")
    shutil.copytree(folder, output, dirs_exist_ok=True)
    served = load(output, 64, CPU)
    for text, answer in zip(TEXTS, predict(served, TEXTS), strict=True):
        np.testing.assert_allclose(answer.scores, predict(served, [text])[0].scores, atol=1e-4)


class NeighboursMatter(BertForSequenceClassification):  # type: ignore[misc]
    """A classifier whose logits depend on the padding."""

    def forward(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:  # noqa: ANN401
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        return replace(
            output,
            logits=output.logits + 0.01 * (1 - attention_mask).sum(1)[:, None] * torch.arange(3),
        )


def test_network_whose_answers_depend_on_padding_computes_one_text_at_a_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_network(folder: Path) -> Any:  # noqa: ANN401
        return NeighboursMatter.from_pretrained(folder).eval()

    monkeypatch.setattr("runners.engines.torch_engine.load_network", load_network)
    facts = inspection.inspect(folder, output := tmp_path / "made")
    assert any("one at a time" in note for note in facts.notes)
    shutil.copytree(folder, output, dirs_exist_ok=True)
    for engine in ("onnx", "torch"):
        served = load(output, 64, RunnerSettings(device="cpu", threads=1, engine=engine))
        assert served.model.batch_items == 1
        together = predict(served, TEXTS)
        for text, answer in zip(TEXTS, together, strict=True):
            np.testing.assert_allclose(answer.scores, predict(served, [text])[0].scores, atol=1e-6)


class Forgetful(BertForSequenceClassification):  # type: ignore[misc]
    """A classifier whose answer depends on what it has computed before."""

    calls = 0

    def forward(self, **inputs: Any) -> Any:  # noqa: ANN401
        type(self).calls += 1
        output = super().forward(**inputs)
        return replace(output, logits=output.logits + 0.1 * type(self).calls * torch.arange(3))


def test_network_that_keeps_a_state_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_network(folder: Path) -> Any:  # noqa: ANN401
        return Forgetful.from_pretrained(folder).eval()

    monkeypatch.setattr("runners.engines.torch_engine.load_network", load_network)
    field, reason = assert_rejected(folder)
    assert field == "model"
    assert "when the same text is asked again" in reason


def edit_tokenizer(folder: Path, part: str, **changes: object) -> None:
    """Set keys of a part of tokenizer.json."""
    written = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", **{part: (written[part] or {}) | changes})


def test_tokenizer_that_tokenises_at_random_is_refused(folder: Path) -> None:
    edit_tokenizer(folder, "model", dropout=0.1)
    field, reason = assert_rejected(folder)
    assert field == "tokenizer"
    assert "BPE dropout" in reason


@pytest.mark.parametrize(
    ("part", "step", "option"),
    [
        ("normalizer", {"lowercase": False}, {"do_lower_case": True}),
        ("normalizer", {"handle_chinese_chars": True}, {"tokenize_chinese_chars": False}),
        (
            "pre_tokenizer",
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
            {"add_prefix_space": True},
        ),
    ],
)
def test_tokenizer_files_that_contradict_each_other_are_refused(
    part: str, step: dict[str, object], option: dict[str, object], folder: Path
) -> None:
    edit_tokenizer(folder, part, **step)
    edit(folder / "tokenizer_config.json", **option)
    field, reason = assert_rejected(folder)
    assert field == "tokenizer"
    (name,) = option
    assert f"has {name}: " in reason


@pytest.mark.parametrize("max_length", [1, 2])
def test_maximum_without_room_for_a_text_is_refused(max_length: int, folder: Path) -> None:
    with (
        TemporaryDirectory() as output,
        pytest.raises(ModelRejected, match="--max-length 3 or more"),
    ):
        inspection.inspect(folder, Path(output), max_length=max_length)


def test_network_that_scores_all_texts_the_same_is_refused(folder: Path) -> None:
    # Its first token, which the scores are computed from, sees no other.
    edit(folder / "config.json", is_decoder=True)
    with pytest.raises(ModelRejected, match="set is_decoder to false"):
        inspect(folder)


def test_network_that_answers_with_a_tuple_is_served(folder: Path) -> None:
    edit(folder / "config.json", return_dict=False)
    assert inspect(folder).engine.name == "onnx"


@pytest.mark.parametrize("stated", [0, -1])
def test_maximum_that_takes_no_text_is_refused(stated: int, folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=stated)
    with pytest.raises(ModelRejected, match="pass --max-length"):
        inspect(folder)
    with TemporaryDirectory() as output:
        assert inspection.inspect(folder, Path(output), max_length=32).max_length == 32


@pytest.mark.parametrize("requested", [0, 65])
def test_maximum_that_the_model_does_not_allow_is_refused(requested: int, folder: Path) -> None:
    with TemporaryDirectory() as output, pytest.raises(ModelRejected, match="up to 64 tokens"):
        inspection.inspect(folder, Path(output), max_length=requested)


def mutations(folder: Path) -> list[tuple[str, str, object]]:
    """Return a change of each key of each configuration file, to a value of another kind."""
    values = cycle([None, -1, "x", [], {}, 0, 2**40, True, 0.5, ["x"], {"x": 1}])
    return [
        (name, key, next(values))
        for name in ("config.json", "tokenizer_config.json", "tokenizer.json")
        for key in json.loads((folder / name).read_text())
    ]


def inspection_outcome(folder: Path, output: Path) -> ModelFacts | ModelRejected:
    try:
        return inspection.inspect(folder, output)
    except ModelRejected as error:
        return error


def test_any_configuration_is_taken_or_refused_with_a_remedy(
    tiny_classifier: Path, tmp_path: Path
) -> None:
    for number, (name, key, value) in enumerate(mutations(tiny_classifier)):
        folder = Path(shutil.copytree(tiny_classifier, tmp_path / f"{number}"))
        edit(folder / name, **{key: value})
        output = tmp_path / f"made-{number}"
        outcome = inspection_outcome(folder, output)
        if isinstance(outcome, ModelRejected):
            # A reason and a remedy.
            assert ". " in outcome.message, (name, key, value)
            continue
        shutil.copytree(folder, output, dirs_exist_ok=True)
        served = load(output, outcome.max_length, CPU)
        together = predict(served, TEXTS[:8])
        for text, answer in zip(TEXTS, together, strict=False):
            np.testing.assert_allclose(answer.scores, predict(served, [text])[0].scores, atol=1e-4)


def test_cut_text_says_so(classifier: Classifier) -> None:
    complete, cut = predict(classifier, ["w1 " * 62, "w1 " * 63])
    assert (complete.truncated, cut.truncated) == (False, True)


def test_text_that_is_nothing_to_the_model_is_refused(classifier: Classifier) -> None:
    with pytest.raises(BlankText) as caught:
        classifier.processor.prepare(["w1", "\u200b\u0007", "w2"])
    assert caught.value.index == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "of-our-own"},
        {"id2label": {"0": "a", "2": "b"}},
    ],
)
def test_config_that_makes_no_sense_is_refused(changes: dict[str, object], folder: Path) -> None:
    edit(folder / "config.json", **changes)
    assert assert_rejected(folder)[0] == "config.json"


def test_labels_that_the_weights_do_not_have_are_refused(folder: Path) -> None:
    labels = {str(index): str(index) for index in range(5)}
    edit(folder / "config.json", id2label=labels, label2id=labels)
    field, reason = assert_rejected(folder)
    assert field == "weights"
    assert "classifier.bias of shape (3,), and by config.json it is (5,)" in reason


def test_tokenizer_without_padding_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert assert_rejected(folder)[0] == "tokenizer"


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
    inspection.inspect(tmp_path, output := tmp_path / "made")
    shutil.copytree(tmp_path, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("made"))
    (answer,) = predict(load(output, facts.max_length, CPU), ["w1 " * 100])
    assert answer.tokens == 34 - offset
