"""Variants of one small model: typical model folders, some of them faulty."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, processors

from tests.acceptance.zoo.architectures import copy
from tests.acceptance.zoo.specimens import (
    Expected,
    Refused,
    Served,
    Specimen,
    change_json,
    read_json,
)
from tests.acceptance.zoo.tokenizers import Vocabularies

Change = Callable[[Path], object]
Weights = dict[str, torch.Tensor]
_POSITIONS = 128
_WEIGHTS = "model.safetensors"


def _config(**changes: Any) -> Change:  # noqa: ANN401
    return lambda folder: change_json(folder / "config.json", **changes)


def _tokenizer_config(**changes: Any) -> Change:  # noqa: ANN401
    return lambda folder: change_json(folder / "tokenizer_config.json", **changes)


def _file(name: str, content: str = "x") -> Change:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")

    return write


def _without(*names: str) -> Change:
    def remove(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _all(*changes: Change) -> Change:
    def apply(folder: Path) -> None:
        for change in changes:
            change(folder)

    return apply


def _weights(change: Callable[[Weights], Weights | None]) -> Change:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / _WEIGHTS)
        changed = change(tensors)
        save_file(tensors if changed is None else changed, folder / _WEIGHTS, {"format": "pt"})

    return rewrite


def _typed(dtype: torch.dtype, only: str = "") -> Change:
    return _weights(
        lambda tensors: {
            name: tensor.to(dtype) if only in name else tensor for name, tensor in tensors.items()
        }
    )


def _labels(*labels: object) -> Change:
    """Set the labels, with as many rows in the last layer."""

    def resize(tensors: Weights) -> None:
        for name in ("classifier.weight", "classifier.bias"):
            repeated = torch.cat([tensors[name] * (1 + index) for index in range(len(labels))])
            tensors[name] = repeated[: len(labels)].clone()

    id2label = {str(index): label for index, label in enumerate(labels)}
    label2id = {str(label): index for index, label in enumerate(labels)}
    return _all(_weights(resize), _config(id2label=id2label, label2id=label2id))


def _as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / _WEIGHTS), folder / "pytorch_model.bin")
    (folder / _WEIGHTS).unlink()


def _sharded(folder: Path) -> None:
    transformers: Any = import_module("transformers")
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    (folder / _WEIGHTS).unlink()
    network.save_pretrained(folder, max_shard_size="40KB")


def _lacks_a_shard(folder: Path) -> None:
    _sharded(folder)
    min(folder.glob("model-*.safetensors")).unlink()


def _adapter_beside(folder: Path) -> None:
    config = {"peft_type": "LORA", "r": 4, "target_modules": ["query"], "task_type": "SEQ_CLS"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {"base_model.model.bert.encoder.layer.0.lora_A.weight": torch.ones(4, 32)}
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _unmerged_adapter(tensors: Weights) -> None:
    """Rename a projection as peft does, and add its adapter."""
    name = "bert.encoder.layer.0.attention.self.query"
    tensors[f"{name}.base_layer.weight"] = tensors.pop(f"{name}.weight")
    tensors[f"{name}.base_layer.bias"] = tensors.pop(f"{name}.bias")
    tensors[f"{name}.lora_A.default.weight"] = torch.ones(4, 32)
    tensors[f"{name}.lora_B.default.weight"] = torch.ones(32, 4)


def _adapter_in_weights(tensors: Weights) -> None:
    """Add an adapter beside a projection that keeps its name."""
    name = "bert.encoder.layer.0.attention.self.query"
    tensors[f"{name}.lora_A.default.weight"] = torch.ones(4, 32)
    tensors[f"{name}.lora_B.default.weight"] = torch.ones(32, 4)


def _pretraining_head(tensors: Weights) -> None:
    tensors["cls.predictions.bias"] = torch.ones(50)
    tensors["cls.predictions.transform.dense.weight"] = torch.ones(32, 32)
    tensors["cls.seq_relationship.weight"] = torch.ones(2, 32)


def _positions(tensors: Weights) -> None:
    tensors["bert.embeddings.position_ids"] = torch.arange(_POSITIONS)[None]


def _roberta_pooler(tensors: Weights) -> None:
    tensors["roberta.pooler.dense.weight"] = torch.ones(32, 32)
    tensors["roberta.pooler.dense.bias"] = torch.ones(32)


def _other_head(tensors: Weights) -> None:
    tensors["ranking_head.weight"] = torch.ones(5, 32)


def _no_classifier(tensors: Weights) -> None:
    del tensors["classifier.weight"], tensors["classifier.bias"]


def _not_a_number(name: str, index: int = 0) -> Change:
    def spoil(tensors: Weights) -> None:
        tensors[name][index] = torch.nan

    return _weights(spoil)


def _rare_token_not_a_number(tensors: Weights) -> None:
    tensors["bert.embeddings.word_embeddings.weight"][-1] = torch.nan


def _short_embeddings(tensors: Weights) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    tensors[name] = tensors[name][:-20].clone()


def _padded_embeddings(folder: Path) -> None:
    name = "bert.embeddings.word_embeddings.weight"
    tensors = load_file(folder / _WEIGHTS)
    rows = tensors[name].shape[0]
    more = -rows % 64 + 64
    tensors[name] = torch.cat([tensors[name], torch.randn(more, 32)])
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    change_json(folder / "config.json", vocab_size=rows + more)


def _shorter_vocabulary(folder: Path) -> None:
    _weights(_short_embeddings)(folder)
    size = read_json(folder / "config.json")["vocab_size"]
    change_json(folder / "config.json", vocab_size=size - 20)


def _truncated(folder: Path) -> None:
    content = (folder / _WEIGHTS).read_bytes()
    (folder / _WEIGHTS).write_bytes(content[: len(content) // 2])


def _edit_tokenizer(change: Callable[[Tokenizer], object]) -> Change:
    """Change the tokenizer.json itself."""

    def rewrite(folder: Path) -> None:
        file = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(file)
        change(tokenizer)
        tokenizer.save(file)

    return rewrite


def _normaliser(*steps: Any) -> Change:  # noqa: ANN401
    def change(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.Sequence(list(steps))

    return _edit_tokenizer(change)


def _bert_normaliser(*, lower: bool) -> Change:
    def change(tokenizer: Tokenizer) -> None:
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)

    return _edit_tokenizer(change)


def _template(single: str) -> Change:
    def change(tokenizer: Tokenizer) -> None:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)

    return _edit_tokenizer(change)


def _padding_and_truncation(tokenizer: Tokenizer) -> None:
    tokenizer.enable_padding(length=24, pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(16)


def _dropout(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = read_json(file)
    content["model"]["dropout"] = 0.5
    file.write_text(json.dumps(content), encoding="utf-8")


def _added_tokens(folder: Path) -> None:
    transformers: Any = import_module("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    network = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    added = transformers.AddedToken
    tokenizer.add_tokens([f"product{number}" for number in range(20)])
    tokenizer.add_tokens(
        [
            added("<order>", lstrip=True, rstrip=True, normalized=False),
            added("Parcel", single_word=True, normalized=True),
            added(" app", normalized=False),
        ]
    )
    tokenizer.save_pretrained(folder)
    network.resize_token_embeddings(len(tokenizer))
    network.save_pretrained(folder)


def _added_tokens_file(folder: Path) -> None:
    """Add a token as the older classes wrote it, and its embedding."""
    name = "bert.embeddings.word_embeddings.weight"
    tensors = load_file(folder / _WEIGHTS)
    size = tensors[name].shape[0]
    tensors[name] = torch.cat([tensors[name], torch.full((1, 32), 0.3)])
    save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    change_json(folder / "config.json", vocab_size=size + 1)
    (folder / "added_tokens.json").write_text(json.dumps({"parcel": size}), encoding="utf-8")


def _links(folder: Path) -> None:
    """Move files into a folder of the same folder, and link to them."""
    (folder / "files").mkdir()
    for name in (_WEIGHTS, "config.json"):
        (folder / name).rename(folder / "files" / name)
        (folder / name).symlink_to(Path("files", name))


def _link_out(folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (folder / _WEIGHTS).rename(outside / _WEIGHTS)
    (folder / _WEIGHTS).symlink_to(outside / _WEIGHTS)


def _hub_snapshot(folder: Path) -> None:
    """Lay the files out as a hub's cache does: links into a folder of blobs."""
    repository = folder.parent / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "a1b2", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = f"{number:040x}"
        file.rename(blobs / blob)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", blob))
    folder.rmdir()
    folder.symlink_to(snapshot)


def _stray(folder: Path) -> None:
    for name in _STRAY:
        _file(name)(folder)
    torch.save({"lr": 1}, folder / "optimizer.pt")
    torch.save({"lr": 1}, folder / "training_args.bin")


_STRAY = (
    "train.json",
    "credentials.json",
    "logs/x.txt",
    "trainer_state.json",
    "all_results.json",
    "generation_config.json",
    "chat_template.jinja",
    "notes.txt",
    ".env",
    "checkpoint-500/config.json",
    "runs/events.out.tfevents",
    ".git/config",
    "data/train.csv",
)


def _empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def _gpt2_without_pad(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", pad_token=None)
    file = folder / "special_tokens_map.json"
    if file.exists():
        change_json(file, pad_token=None)


def _card(**metadata: Any) -> Change:  # noqa: ANN401
    lines = "\n".join(f"{name}: {value}" for name, value in metadata.items())
    return _file("README.md", f"---\n{lines}\n---\n\n# Our model\n\nIt sorts letters.\n")


def _duplicate_key(folder: Path) -> None:
    text = (folder / "config.json").read_text(encoding="utf-8").rstrip().removesuffix("}")
    text = text.rstrip() + ',\n  "hidden_act": "relu"\n}\n'
    (folder / "config.json").write_text(text, encoding="utf-8")


def _with_files(files: Path) -> Change:
    """Put vocabulary files in the place of tokenizer.json."""

    def swap(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        shutil.copytree(files, folder, dirs_exist_ok=True)

    return swap


def _configuration_of(title: str, vocabularies: Vocabularies) -> Change:
    """Put the configuration of another family beside the weights."""

    def swap(folder: Path) -> None:
        other = folder.parent / "other"
        copy(title, vocabularies, other)
        shutil.copyfile(other / "config.json", folder / "config.json")

    return swap


_LABEL = Refused("config.json", "id2label", "id2label")
_PAIR = Refused("config.json", "pair", "single texts")
_UNUSED = Refused("weights", "hold .*does not use", "config.json|save")
_unlimited = _tokenizer_config(model_max_length=None)
_BERT: Sequence[tuple[str, Change, Expected]] = (
    ("plain", _all(), Served(engine="onnx")),
    # Weights.
    ("weights in float16", _typed(torch.float16), Served(notes="float16")),
    ("weights in bfloat16", _typed(torch.bfloat16), Served(notes="bfloat16")),
    ("weights in two types", _typed(torch.bfloat16, "embeddings"), Served(notes="bfloat16")),
    (
        "float16, as config.json says",
        _all(_typed(torch.float16), _config(dtype="float16")),
        Served(notes="float16"),
    ),
    ("weights in float64", _typed(torch.float64), Served()),
    ("sharded", _sharded, Served()),
    ("a shard is missing", _lacks_a_shard, Refused(f"{_WEIGHTS}.index.json", "not in", "complete")),
    (
        "a pickle beside safetensors",
        _file("pytorch_model.bin"),
        Served(left_out=("pytorch_model.bin",)),
    ),
    ("a pickle only", _as_pickle, Refused("pytorch_model.bin", "pickle", "save_pretrained")),
    ("tf_model.h5 beside", _file("tf_model.h5"), Served(left_out=("tf_model.h5",))),
    ("flax beside", _file("flax_model.msgpack"), Served(left_out=("flax_model.msgpack",))),
    (
        "TensorFlow only",
        _all(_without(_WEIGHTS), _file("tf_model.h5")),
        Refused("tf_model.h5", "TensorFlow", "save"),
    ),
    (
        "Flax only",
        _all(_without(_WEIGHTS), _file("flax_model.msgpack")),
        Refused("flax_model.msgpack", "Flax", "save"),
    ),
    (
        "GGUF only",
        _all(_without(_WEIGHTS), _file("model-q4_k_m.gguf")),
        Refused("model-q4_k_m.gguf", "GGUF", "save"),
    ),
    (
        "ONNX only",
        _all(_without(_WEIGHTS), _file("onnx/model.onnx")),
        Refused("onnx/model.onnx", "ONNX", "save"),
    ),
    ("no weights", _without(_WEIGHTS), Refused("weights", "missing", "save")),
    (
        "weights under another name",
        lambda folder: (folder / _WEIGHTS).rename(folder / "model.fp16.safetensors"),
        Refused("weights", "name", "Rename"),
    ),
    ("truncated weights", _truncated, Refused("model|weights", "cannot|trunc|incomplete", "save")),
    (
        "empty weights",
        lambda folder: (folder / _WEIGHTS).write_bytes(b""),
        Refused("model|weights", "cannot|empty|header", "save"),
    ),
    ("a LoRA adapter beside", _adapter_beside, Refused("adapter_", "adapter", "merge")),
    (
        "an unmerged LoRA adapter",
        _weights(_unmerged_adapter),
        Refused("weights", "lora_|base_layer|lack", "merge"),
    ),
    (
        "LoRA weights beside the model's",
        _weights(_adapter_in_weights),
        Refused("weights", "lora_", "merge"),
    ),
    ("fewer layers than weights", _config(num_hidden_layers=1), _UNUSED),
    (
        "more layers than weights",
        _config(num_hidden_layers=3),
        Refused("weights", r"lack .*layer\.2", "config.json"),
    ),
    (
        "no classifier",
        _weights(_no_classifier),
        Refused("weights", "lack classifier", "fine-tuned"),
    ),
    ("a head of the pretraining", _weights(_pretraining_head), Served()),
    ("another head", _weights(_other_head), _UNUSED),
    ("positions saved", _weights(_positions), Served()),
    (
        "weights that are no numbers",
        _not_a_number("classifier.weight"),
        Refused("weights", "finite", "diverge"),
    ),
    (
        "a rare token's weights are no numbers",
        _weights(_rare_token_not_a_number),
        Refused("weights", "finite|number|NaN", "diverge|train|save"),
    ),
    (
        "another number of labels than weights",
        _config(id2label={"0": "a", "1": "b", "2": "c"}),
        Refused("model|weights|config.json", "classifier|labels", "save|id2label"),
    ),
    (
        "vocabulary larger than the embeddings",
        _shorter_vocabulary,
        Refused("tokenizer", "token ids up to", "trained"),
    ),
    ("embeddings padded to 64", _padded_embeddings, Served()),
    # What config.json says.
    ("config.json is missing", _without("config.json"), Refused("config.json", "missing", "save")),
    ("config.json is a list", _file("config.json", "[]"), Refused("config.json", "object", "save")),
    ("an empty folder", _empty, Refused("config.json|weights", "missing", "save")),
    ("a key twice", _duplicate_key, Refused("config.json", "hidden_act.* twice", "Keep")),
    ("no architecture", _config(architectures=None), Refused("config.json", "none", "Fine-tune")),
    (
        "a masked language model",
        _config(architectures=["BertForMaskedLM"]),
        Refused("config.json", "BertForMaskedLM", "Fine-tune"),
    ),
    ("auto_map", _config(auto_map={"AutoModel": "m.M"}), Refused("config.json", "code", "arch")),
    (
        "quantised",
        _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        Refused("config.json", "quantised by bitsandbytes", "precision"),
    ),
    ("no return_dict", _config(return_dict=False), Served()),
    ("all hidden states", _config(output_hidden_states=True, output_attentions=True), Served()),
    ("single label, said so", _config(problem_type="single_label_classification"), Served()),
    (
        "regression of two values",
        _all(_labels("x", "y"), _config(problem_type="regression")),
        Refused("config.json", "regression", "several labels"),
    ),
    (
        "multi-label",
        _config(problem_type="multi_label_classification"),
        Refused("config.json", "multi-label", "one of several labels"),
    ),
    ("one label", _labels("score"), Refused("config.json", "fewer than two labels", "several")),
    ("two labels", _labels("no", "yes"), Served()),
    ("forty labels", _labels(*(f"label {number}" for number in range(40))), Served()),
    ("labels of all scripts", _labels("größe", "доставка", "返品", "😀", "a/b, c"), Served()),
    ("labels are numbers", _labels(0, 1, 2), _LABEL),
    ("labels are booleans", _labels(False, True), _LABEL),  # noqa: FBT003
    ("labels are null", _labels("a", None, "c"), _LABEL),
    ("equal labels", _labels("a", "b", "a"), _LABEL),
    ("a blank label", _labels("a", " ", "c"), _LABEL),
    ("a label's index is missing", _config(id2label={"0": "a", "1": "b", "3": "c"}), _LABEL),
    ("labels of inference", _labels("entailment", "neutral", "contradiction"), _PAIR),
    ("labels of paraphrases", _labels("not_duplicate", "duplicate", "paraphrase"), _PAIR),
    ("finetuning_task mnli", _config(finetuning_task="mnli"), _PAIR),
    (
        "a cross-encoder",
        _config(sentence_transformers={"version": "5.0.0"}),
        Refused("config.json", "cross-encoder", "rerankers"),
    ),
    (
        "a zero-shot model's card",
        _card(pipeline_tag="zero-shot-classification"),
        Refused("README.md", "zero-shot-classification", "text pairs"),
    ),
    ("labels about duplicates", _labels("duplicate_charge", "duplicate_order", "o"), Served()),
    ("one label of a pair's", _labels("contradiction", "praise", "question"), Served()),
    ("finetuning_task sst2", _config(finetuning_task="sst2"), Served()),
    ("another padding id in config.json", _config(pad_token_id=5), Served()),
    # The maximum length.
    (
        "model_max_length 0",
        _tokenizer_config(model_max_length=0),
        Refused("tokenizer", "model_max_length of 0", "--max-length"),
    ),
    (
        "model_max_length -1",
        _tokenizer_config(model_max_length=-1),
        Refused("tokenizer", "model_max_length of -1", "--max-length"),
    ),
    (
        "model_max_length 10**30",
        _tokenizer_config(model_max_length=10**30),
        Served(max_length=_POSITIONS),
    ),
    (
        "no model_max_length",
        _tokenizer_config(model_max_length=None),
        Served(max_length=_POSITIONS),
    ),
    ("model_max_length 12", _tokenizer_config(model_max_length=12), Served(max_length=12)),
    # The tokenizer.
    (
        "no tokenizer",
        _without("tokenizer.json", "tokenizer_config.json"),
        Refused("tokenizer", "missing", "save_pretrained"),
    ),
    (
        "an empty tokenizer.json",
        _file("tokenizer.json", ""),
        Refused("tokenizer", "cannot", "save"),
    ),
    (
        "a tokenizer.json of nothing",
        _file("tokenizer.json", "{}"),
        Refused("tokenizer", "cannot", "save"),
    ),
    ("types 0, 1, 1", _template("[CLS]:0 $A:1 [SEP]:1"), Served()),
    ("types 1, 1, 1", _template("[CLS]:1 $A:1 [SEP]:1"), Served()),
    ("types 1, 0, 0", _template("[CLS]:1 $A:0 [SEP]:0"), Served()),
    ("types 0, 0, 1, the class last", _template("$A:0 [SEP]:0 [CLS]:1"), Served()),
    ("types 1, 0, no end", _template("[CLS]:1 $A:0"), Served()),
    ("padded on the left", _tokenizer_config(padding_side="left"), Served()),
    ("cut on the left", _tokenizer_config(truncation_side="left"), Served()),
    ("normalised by NFKC", _normaliser(normalizers.NFKC(), normalizers.Lowercase()), Served()),
    (
        "normalised by replacing",
        _normaliser(normalizers.Replace("parcel", "order"), normalizers.Lowercase()),
        Served(),
    ),
    (
        "lower case, against do_lower_case",
        _all(_normaliser(normalizers.Lowercase()), _tokenizer_config(do_lower_case=False)),
        Served(),
    ),
    (
        "cased, against do_lower_case",
        _all(_normaliser(normalizers.NFC()), _tokenizer_config(do_lower_case=True)),
        Served(),
    ),
    # transformers 4 and 5 both let the configuration change a BertNormalizer of tokenizer.json.
    (
        "a cased BertNormalizer, against do_lower_case",
        _all(_bert_normaliser(lower=False), _tokenizer_config(do_lower_case=True)),
        Served(truth="transformers"),
    ),
    (
        "a lower-casing BertNormalizer, against do_lower_case",
        _all(_bert_normaliser(lower=True), _tokenizer_config(do_lower_case=False)),
        Served(truth="transformers"),
    ),
    (
        "accents stripped",
        _normaliser(normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()),
        Served(),
    ),
    (
        "padding and truncation in tokenizer.json",
        _edit_tokenizer(_padding_and_truncation),
        Served(),
    ),
    ("added tokens", _added_tokens, Served()),
    ("an unknown tokenizer class", _tokenizer_config(tokenizer_class="OurTokenizer"), Served()),
    (
        "PreTrainedTokenizerFast",
        _tokenizer_config(tokenizer_class="PreTrainedTokenizerFast"),
        Served(),
    ),
    ("BertTokenizerFast", _tokenizer_config(tokenizer_class="BertTokenizerFast"), Served()),
    ("no tokenizer_config.json", _without("tokenizer_config.json"), Served(max_length=_POSITIONS)),
    # Other files.
    (
        "code beside",
        _all(_file("modeling_ours.py"), _file("handler.py")),
        Served(left_out=("modeling_ours.py", "handler.py")),
    ),
    ("stray files", _stray, Served(left_out=(*_STRAY, "optimizer.pt", "training_args.bin"))),
    (
        "a folder onnx",
        _all(_file("onnx/model.onnx", "theirs"), _file("onnx/model_quantized.onnx")),
        Served(left_out=("onnx/model_quantized.onnx",)),
    ),
    ("a licence in README.md", _card(license="apache-2.0"), Served(licence="apache-2.0")),
    ("links inside the folder", _links, Served()),
    ("a link out of the folder", _link_out, Refused(_WEIGHTS, "link", "copy")),
    ("a hub's snapshot", _hub_snapshot, Served()),
    (
        "SetFit",
        _all(_file("config_setfit.json", "{}"), _file("model_head.pkl")),
        Refused("model_head.pkl", "SetFit", "Fine-tune"),
    ),
    (
        "sentence-transformers",
        _all(_config(architectures=["BertModel"]), _file("modules.json", "[]")),
        Refused("config.json", "sentence-transformers", "Fine-tune"),
    ),
)
_REQUESTED: Sequence[tuple[str, Change, int, Expected]] = (
    ("--max-length 32", _all(), 32, Served(max_length=32)),
    (
        "--max-length 5000",
        _all(),
        5000,
        Refused("max_length", f"up to {_POSITIONS}", f"--max-length {_POSITIONS}"),
    ),
    (
        "model_max_length 0 with --max-length 64",
        _tokenizer_config(model_max_length=0),
        64,
        Served(max_length=64),
    ),
    ("--max-length 1", _all(), 1, Refused("max_length", "1", "--max-length")),
)
# Of other architectures.
_OTHERS: Sequence[tuple[str, str, Change, Expected]] = (
    ("roberta: a pooler's weights", "roberta", _weights(_roberta_pooler), Served()),
    ("roberta: BPE dropout", "roberta", _dropout, Refused("tokenizer", "dropout|random", "save")),
    (
        "roberta: padded with its end",
        "roberta",
        _tokenizer_config(pad_token="</s>"),
        Served(),
    ),
    # As with BertNormalizer, and the ByteLevel of these.
    (
        "roberta: add_prefix_space, against tokenizer.json",
        "roberta",
        _tokenizer_config(add_prefix_space=True),
        Served(truth="transformers"),
    ),
    (
        "gpt2: add_prefix_space, against tokenizer.json",
        "gpt2",
        _tokenizer_config(add_prefix_space=True),
        Served(truth="transformers"),
    ),
    ("roberta: no model_max_length", "roberta", _unlimited, Served(max_length=_POSITIONS - 2)),
    ("mpnet: no model_max_length", "mpnet", _unlimited, Served(max_length=_POSITIONS - 2)),
    ("bart: no model_max_length", "bart", _unlimited, Served(max_length=_POSITIONS)),
    ("opt: no model_max_length", "opt", _unlimited, Served(max_length=_POSITIONS)),
    ("longformer: no model_max_length", "longformer", _unlimited, Served(max_length=126)),
    ("distilbert: no model_max_length", "distilbert", _unlimited, Served(max_length=_POSITIONS)),
    (
        "gpt2: no padding token",
        "gpt2",
        _gpt2_without_pad,
        Refused("tokenizer", "no padding token", "pad_token"),
    ),
    ("gpt2: no padding id in config.json", "gpt2", _config(pad_token_id=None), Served()),
    (
        "gpt2: another padding id in config.json",
        "gpt2, padded on the left",
        _config(pad_token_id=0),
        Served(),
    ),
)


# Folders without tokenizer.json, as all were once: the architecture, and the files.
_VOCABULARY_ONLY: Sequence[tuple[str, str, str, Change]] = (
    ("bert: vocab.txt only", "bert", "bert", _all()),
    (
        "bert: vocab.txt only, cased",
        "bert, cased",
        "bert-cased",
        _tokenizer_config(do_lower_case=False),
    ),
    ("bert: vocab.txt and added_tokens.json", "bert", "bert", _added_tokens_file),
    ("roberta: vocab.json and merges.txt only", "roberta", "roberta", _all()),
    ("xlm-roberta: sentencepiece.bpe.model only", "xlm-roberta", "xlm-roberta", _all()),
    ("mbart: sentencepiece.bpe.model only", "mbart", "xlm-roberta", _all()),
    ("camembert: sentencepiece.bpe.model only", "camembert", "xlm-roberta", _all()),
    ("albert: spiece.model only", "albert", "albert", _all()),
    ("xlnet: spiece.model only", "xlnet", "xlnet", _all()),
    ("t5: spiece.model only", "t5", "t5", _all()),
    ("llama: tokenizer.model only", "llama", "llama", _all()),
    ("gemma: tokenizer.model only", "gemma", "gemma", _all()),
    ("deberta-v2: spm.model only", "deberta-v2", "deberta-v2", _all()),
    ("rembert: sentencepiece.model only", "rembert", "rembert", _all()),
)


# Where the folder's files contradict each other, to refuse it is right, too.
_CONTRADICTION = Refused("tokenizer", "do_lower_case|add_prefix_space", "")
_ALTERNATIVES: Mapping[str, Expected] = {
    "bert: a cased BertNormalizer, against do_lower_case": _CONTRADICTION,
    "bert: a lower-casing BertNormalizer, against do_lower_case": _CONTRADICTION,
    "roberta: add_prefix_space, against tokenizer.json": _CONTRADICTION,
    "gpt2: add_prefix_space, against tokenizer.json": _CONTRADICTION,
    "bert: no return_dict": Refused("config.json|model", "return_dict", "return_dict"),
}


def specimens(vocabularies: Vocabularies) -> list[Specimen]:
    """Return the variants."""

    def variant(
        name: str, title: str, change: Change, expected: Expected, max_length: int | None = None
    ) -> Specimen:
        build = partial(_build, title, change, vocabularies)
        alternative = _ALTERNATIVES.get(name)
        return Specimen(name, build, expected, "variant", max_length, alternative)

    swapped = _configuration_of("roberta", vocabularies)
    return [
        *(variant(f"bert: {name}", "bert", change, expected) for name, change, expected in _BERT),
        *(
            variant(f"bert: {name}", "bert", change, expected, length)
            for name, change, length, expected in _REQUESTED
        ),
        *(variant(*other) for other in _OTHERS),
        *(
            variant(
                name,
                title,
                _all(_with_files(vocabularies.files(files)), change),
                Served(),
            )
            for name, title, files, change in _VOCABULARY_ONLY
        ),
        variant(
            "bert: the configuration of another family",
            "bert",
            swapped,
            Refused("weights", "lack", "config.json"),
        ),
    ]


def _build(title: str, change: Change, vocabularies: Vocabularies, folder: Path) -> None:
    copy(title, vocabularies, folder)
    change(folder)
