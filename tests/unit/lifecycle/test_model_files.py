import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaiten.confinement import ConfinedFolder
from kaiten.errors import ModelRejected
from lifecycle.model_files import copy_model_files, select_model_files
from tests.unit.lifecycle.folders import (
    MODEL,
    Change,
    contents,
    remove,
    rename,
    replace_by_file,
    smallest_folder,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return smallest_folder(tmp_path)


def rejection(folder: Path, tmp_path: Path) -> tuple[str, str]:
    """Return the field and the whole message of a refusal."""
    with pytest.raises(ModelRejected) as caught:
        copy_model_files(folder, tmp_path / "copied")
    (detail,) = caught.value.details
    return detail.field, caught.value.message


ADAPTER = "Merge it into its base"
CONVERT = "AutoModelForSequenceClassification.from_pretrained"
INDEX = "model.safetensors.index.json"


def sharded(index: str) -> Change:
    def change(folder: Path) -> None:
        rename("model.safetensors", "model-00001-of-00002.safetensors")(folder)
        write(INDEX, index)(folder)

    return change


def without_weights(*other_files: str) -> Change:
    def change(folder: Path) -> None:
        remove("model.safetensors")(folder)
        for name in other_files:
            write(name)(folder)

    return change


REFUSED: list[tuple[str, Change, str, str]] = [
    ("no folder", shutil.rmtree, "folder", "is not a folder"),
    ("a file", replace_by_file, "folder", "is not a folder"),
    ("adapter", write("adapter_config.json", "{}"), "adapter_config.json", ADAPTER),
    (
        "adapter's weights",
        write("adapter_model.safetensors"),
        "adapter_model.safetensors",
        ADAPTER,
    ),
    (
        "adapter in a subfolder",
        write("lora/adapter_config.json", "{}"),
        "lora/adapter_config.json",
        ADAPTER,
    ),
    ("SetFit", write("config_setfit.json", "{}"), "model_head.pkl", "head of a SetFit model"),
    ("only pickle", without_weights("pytorch_model.bin"), "pytorch_model.bin", CONVERT),
    ("only pickle of old", without_weights("model.pt"), "model.pt", "refs/pr/N"),
    ("only TensorFlow", without_weights("tf_model.h5"), "tf_model.h5", "TensorFlow"),
    ("only Flax", without_weights("flax_model.msgpack"), "flax_model.msgpack", "Flax"),
    ("only GGUF", without_weights("model-q4.gguf"), "model-q4.gguf", "llama.cpp"),
    ("only ONNX", without_weights("onnx/model.onnx"), "onnx/model.onnx", "ONNX"),
    ("other name", rename("model.safetensors", "weights.safetensors"), "weights", "Rename it"),
    ("trainer's leftovers", without_weights("training_args.bin"), "weights", "are missing"),
    ("no weights", remove("model.safetensors"), "weights", "are missing"),
    (
        "auto_map",
        write("config.json", '{"auto_map": {"AutoModel": "ours.Model"}}'),
        "config.json",
        "remote code",
    ),
    (
        "other weights",
        write("config.json", '{"transformers_weights": "/x.safetensors"}'),
        "config.json",
        "Rename them to model.safetensors",
    ),
    ("no config", remove("config.json"), "config.json", "is missing"),
    ("broken config", write("config.json", '{"model_type": '), "config.json", "JSON object"),
    ("empty config", write("config.json", ""), "config.json", "JSON object"),
    ("config that is a list", write("config.json", "[]"), "config.json", "JSON object"),
    ("nested config", write("config.json", "[" * 100_000), "config.json", "JSON object"),
    (
        "key twice",
        write("config.json", '{"id2label": {"0": "a", "0": "b"}}'),
        "config.json",
        "the key 0 twice",
    ),
    ("no tokenizer", remove("tokenizer.json"), "tokenizer", "tokenizer.save_pretrained"),
    (
        "shard outside",
        sharded('{"weight_map": {"a": "../theirs.safetensors"}}'),
        INDEX,
        "theirs.safetensors, which are not in the folder",
    ),
    (
        "shard missing",
        sharded('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}'),
        INDEX,
        "model-00002-of-00002.safetensors, which are not in the folder",
    ),
    ("index of nothing", sharded("{}"), INDEX, "names no weights"),
    ("broken index", sharded("["), INDEX, "JSON object"),
    ("control characters", write("a\x1b[2J.json"), "a\\x1b[2J.json", "control characters"),
    (
        "nested folders",
        write("/".join(["d"] * 40) + "/a.json"),
        "/".join(["d"] * 33),
        "nested over 32",
    ),
]


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
def test_unsafe_or_incomplete_folder_is_refused(
    change: Change, field: str, message: str, folder: Path, tmp_path: Path
) -> None:
    change(folder)
    assert (rejection(folder, tmp_path)[0]) == field
    assert message in rejection(folder, tmp_path / "again")[1]


def without_config(name: str, text: str = "x") -> Change:
    def change(folder: Path) -> None:
        remove("config.json")(folder)
        write(name, text)(folder)

    return change


def of_images(folder: Path) -> None:
    """Leave no tokenizer: an image model has none."""
    remove("tokenizer.json")(folder)
    write("preprocessor_config.json", '{"image_processor_type": "ViTImageProcessor"}')(folder)


def of_audio(folder: Path) -> None:
    remove("tokenizer.json")(folder)
    write("preprocessor_config.json", '{"sampling_rate": 16000}')(folder)


def architecture(name: str) -> Change:
    return write("config.json", json.dumps({"architectures": [name]}))


KINDS: list[tuple[str, Change, str, str]] = [
    ("scikit-learn", without_config("model.joblib"), "model.joblib", "tabular models"),
    ("pickle", without_config("model.pkl"), "model.pkl", "tabular models"),
    ("CatBoost", without_config("model.cbm"), "model.cbm", "tabular models"),
    ("XGBoost", without_config("model.json", '{"learner":{}}'), "model.json", "tabular models"),
    ("LightGBM", without_config("m.txt", "tree\nversion=v4\n"), "m.txt", "tabular models"),
    ("ViT", architecture("ViTForImageClassification"), "config.json", "image models"),
    ("timm", write("config.json", '{"pretrained_cfg": {}}'), "config.json", "image models"),
    ("images", of_images, "preprocessor_config.json", "image models"),
    ("audio", of_audio, "preprocessor_config.json", "audio models"),
    ("speech", architecture("Wav2Vec2ForSequenceClassification"), "config.json", "audio models"),
    ("entities", architecture("BertForTokenClassification"), "config.json", "token classifiers"),
    ("answers", architecture("BertForQuestionAnswering"), "config.json", "question answering"),
    ("generation", architecture("LlamaForCausalLM"), "config.json", "text generation models"),
    ("choice", architecture("BertForMultipleChoice"), "config.json", "models of text pairs"),
]


@pytest.mark.parametrize(
    ("change", "field", "kind"), [case[1:] for case in KINDS], ids=[case[0] for case in KINDS]
)
def test_kind_that_is_not_served_is_refused_as_such(
    change: Change, field: str, kind: str, folder: Path, tmp_path: Path
) -> None:
    change(folder)
    refused_field, message = rejection(folder, tmp_path)
    assert refused_field == field
    assert f"Kaiten does not serve {kind}" in message
    assert "it serves text classifiers" in message


def test_file_of_a_tabular_model_is_refused_as_such(tmp_path: Path) -> None:
    file = tmp_path / "model.pkl"
    file.touch()
    assert "does not serve tabular models" in rejection(file, tmp_path)[1]


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        (
            "owner/bert-base",
            "Give the model's local folder, or hf://owner/bert-base for the hub's.",
        ),
        ("/owner/bert-base", "Give the model's local folder."),
        ("bert-base", "Give the model's local folder."),
    ],
)
def test_name_of_the_hub_is_refused_with_how_to_write_it(
    source: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert rejection(Path(source), tmp_path)[1] == f"folder: {source} is not a folder. {remedy}"


LEFT_OUT = [
    "pytorch_model.bin",
    "tf_model.h5",
    "model.pkl",
    "modeling_ours.py",
    "code/ours.py",
    "onnx/model.onnx",
    "train.json",
    "credentials.json",
    "logs/x.txt",
    "data.txt",
    "training_args.bin",
    "optimizer.pt",
    "rng_state_1.pth",
    "plot.png",
    "other.safetensors",
    "1_Pooling/config.json",
    "vocabulary/vocab.txt",
]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_file_that_is_no_part_of_the_model_is_left_out_and_listed(
    name: str, folder: Path, tmp_path: Path
) -> None:
    write(name, "secret")(folder)
    files, excluded = copy_model_files(folder, tmp_path / "copied")
    assert files.keys() == MODEL.keys()
    assert contents(tmp_path / "copied") == sorted(MODEL)
    assert excluded == [name]


PASSED_OVER = [
    "checkpoint-500/pytorch_model.bin",
    "checkpoint-500/config.json",
    "runs/Nov22/events.out.tfevents",
    ".git/hooks/run.py",
    ".cache/weights.bin",
    ".gitattributes",
]


@pytest.mark.parametrize("name", PASSED_OVER)
def test_hidden_files_and_checkpoints_are_passed_over(name: str, folder: Path) -> None:
    write(name)(folder)
    selection = select_model_files(folder)
    assert selection.names == sorted(MODEL)
    assert selection.excluded == []


PARTS = [
    "README.md",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "merges.txt",
    "vocab.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer_config.json",
]


@pytest.mark.parametrize("name", PARTS)
def test_part_of_the_model_is_kept(name: str, folder: Path) -> None:
    write(name, "{}")(folder)
    assert name in select_model_files(folder).names


@pytest.mark.parametrize(
    "vocabulary",
    ["vocab.txt", "vocab.json", "bpe.codes", "spiece.model", "spm.model", "tokenizer.model"],
)
def test_any_vocabulary_is_a_tokenizer(vocabulary: str, folder: Path) -> None:
    rename("tokenizer.json", vocabulary)(folder)
    assert vocabulary in select_model_files(folder).names


def test_tokenizer_of_characters_needs_no_vocabulary(folder: Path) -> None:
    remove("tokenizer.json")(folder)
    write("tokenizer_config.json", '{"tokenizer_class": "CanineTokenizer"}')(folder)
    assert "tokenizer_config.json" in select_model_files(folder).names


def test_shards_are_those_that_the_index_names(folder: Path) -> None:
    sharded(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "b.st"}}))(
        folder
    )
    write("b.st")(folder)
    write("model-00003-of-00003.safetensors")(folder)
    selection = select_model_files(folder)
    weights = {INDEX, "model-00001-of-00002.safetensors", "b.st"}
    assert {*selection.names} == weights | {"config.json", "tokenizer.json"}
    assert selection.excluded == ["model-00003-of-00003.safetensors"]


def test_of_one_file_and_shards_the_one_file_is_kept(folder: Path) -> None:
    write(INDEX, '{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')(folder)
    write("model-00001-of-00001.safetensors")(folder)
    assert select_model_files(folder).names == sorted(MODEL)


def test_folder_that_changes_while_it_is_copied_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = ConfinedFolder.copy

    def copy_and_change(self: ConfinedFolder, name: str, target: Path) -> None:
        write("config.json", '{"auto_map": {}}')(folder)
        plain(self, name, target)

    monkeypatch.setattr(ConfinedFolder, "copy", copy_and_change)
    with pytest.raises(ModelRejected, match="remote code"):
        copy_model_files(folder, tmp_path / "copied")


def leading_out(folder: Path) -> list[tuple[str, Change]]:
    """Return ways to have a file that lies outside the folder registered, by the name it has."""
    secret = folder.parent / "secret"
    secret.write_text("root:$6$hash", encoding="utf-8")
    secret.chmod(0o600)
    (folder.parent / "chain").symlink_to(folder / "config.json")
    hidden = folder / ".env"
    hidden.write_text("TOKEN=1")
    return [
        ("LICENSE", lambda folder: (folder / "LICENSE").symlink_to(secret)),
        ("vocab.txt", lambda folder: (folder / "vocab.txt").symlink_to("../secret")),
        ("environ.json", lambda folder: (folder / "environ.json").symlink_to("/proc/self/environ")),
        ("merges.txt", lambda folder: (folder / "merges.txt").symlink_to("../chain")),
        ("README.md", lambda folder: (folder / "README.md").symlink_to(".env")),
        ("notes.md", lambda folder: (folder / "notes.md").hardlink_to(secret)),
        ("1_Pooling", lambda folder: (folder / "1_Pooling").symlink_to("..")),
        ("zero.json", lambda folder: (folder / "zero.json").symlink_to("/dev/zero")),
        ("plot.png", lambda folder: (folder / "plot.png").symlink_to(secret)),
        ("added.json", lambda folder: os.mkfifo(folder / "added.json")),
        ("talk.json", lambda folder: os.mknod(folder / "talk.json", stat.S_IFSOCK)),
        ("broken.json", lambda folder: (folder / "broken.json").symlink_to("missing")),
        ("a.json", lambda folder: (folder / "a.json").symlink_to("a.json")),
    ]


@pytest.mark.parametrize("number", range(13))
def test_what_leads_out_of_the_folder_is_refused_by_name(
    number: int, folder: Path, tmp_path: Path
) -> None:
    name, change = leading_out(folder)[number]
    change(folder)
    assert rejection(folder, tmp_path)[0] == name


FILES = [*MODEL, INDEX, "README.md", "vocab.txt", "weights.bin", "adapter_config.json"]
TEXTS = st.sampled_from(
    ["", "{}", "[]", "null", '{"auto_map": 1}', '{"weight_map": {"a": "x"}}', "\udcff", "\x00"]
)


@settings(max_examples=200, deadline=None)
@given(
    absent=st.sets(st.sampled_from(FILES)),
    texts=st.dictionaries(st.sampled_from(FILES), TEXTS),
    swapped=st.tuples(st.sampled_from(FILES), st.sampled_from(FILES)),
)
def test_any_folder_is_taken_or_refused_with_a_remedy(
    absent: set[str],
    texts: dict[str, str],
    swapped: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = smallest_folder(tmp_path_factory.mktemp("case"))
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    for name in absent:
        (folder / name).unlink(missing_ok=True)
    first, second = (folder / name for name in swapped)
    if first.exists() and second.exists():
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
    refusal = None
    try:
        files, _ = copy_model_files(folder, folder.parent / "copied")
    except ModelRejected as error:
        refusal = error
    if refusal is None:
        assert {"config.json"} < files.keys()
    else:
        # A reason and a remedy.
        assert refusal.details
        assert ". " in refusal.message
