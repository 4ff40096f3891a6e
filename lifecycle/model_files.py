"""Selects the files of a folder that make up a model; all other files are left out."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from shlex import quote
from typing import Any

from kaiten import model_kinds
from kaiten.confinement import ConfinedFolder, UnsafeFile, printable
from kaiten.errors import ModelRejected
from kaiten.settings.strict_yaml import DuplicateKey, reject_duplicate_keys
from lifecycle.card import CARD_FILE, REPORTS

# A version's README.md is rendered from its card; the model's own is stored under this name.
ORIGINAL_README = "README.original.md"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS_FILE}.index.json"
# The names under which transformers' tokenizers save and load their vocabularies.
_VOCABULARIES = {
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
}
_MODEL_FILES = _VOCABULARIES | {
    "config.json",
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    # Used by BARTpho, GPT-NeoX-Japanese, LUKE and RoCBert.
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    # Written by sentence-transformers; identifies the kind of model.
    "modules.json",
    "README.md",
}
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?")
# Tokenizers of characters or bytes, which need no file.
_FILELESS_TOKENIZERS = {"CanineTokenizer", "ByT5Tokenizer", "PerceiverTokenizer"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_OTHER_WEIGHTS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp (GGUF)",
    ".onnx": "ONNX",
}
# Files of libraries for tables: the only model in the folder, if there is no config.json.
_TABLE_SUFFIXES = {".cbm", ".joblib", ".pickle", ".pkl", ".ubj"}
_TABLE_DUMPS = {".json", ".txt"}
# How XGBoost's JSON and LightGBM's text begin.
_TABLE_SIGNATURES = (b'{"learner"', b"tree\nversion")
_TABLE_SIGNATURE_BYTES = 16
_PREPROCESSOR = "preprocessor_config.json"
# A name on the hub; a path may look the same.
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_ADAPTER = re.compile(r"(.*/)?adapter_(config\.json|model\.(safetensors|bin))")
# Present if the folder is a version in the store.
_STORE_FILES = {CARD_FILE, REPORTS, ORIGINAL_README}


@dataclass(frozen=True, slots=True)
class Selection:
    """The names of the files that make up the model, and of the other files in the folder.

    Hidden files and folders, checkpoints and logs of a training run are in neither.
    """

    names: Sequence[str]
    excluded: Sequence[str]


def select_model_files(folder: Path) -> Selection:
    """Return which files make up the model.

    Raises:
        ModelRejected: A file leads out of the folder, the folder holds no complete model, or its
            configuration requires code.

    """
    with _rejecting(folder), ConfinedFolder(_check_folder(folder)) as source:
        return _select(source, folder)


def copy_model_files(folder: Path, target: Path) -> tuple[dict[str, Path], Sequence[str]]:
    """Copy the files that make up the model; return the copies by name, and the excluded files.

    Raises:
        ModelRejected: As ``select_model_files``.

    """
    with _rejecting(folder), ConfinedFolder(_check_folder(folder)) as source:
        selection = _select(source, folder)
        copies = {name: target / name for name in selection.names}
        for name, file in copies.items():
            source.copy(name, file)
    # The folder may have changed during the copy, which is all that counts from here on.
    with _rejecting(target), ConfinedFolder(target) as copied:
        if _select(copied, folder).names != selection.names:
            raise ModelRejected(
                "folder", f"{folder} was changed during the copy", "Run the command again."
            )
    return copies, selection.excluded


@contextmanager
def _rejecting(folder: Path) -> Iterator[None]:
    """Turn a file that cannot be read safely into ModelRejected."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelRejected(error.name, error.reason, error.remedy) from None
    except OSError as error:
        name = Path(error.filename or "").name or str(folder)
        reason = f"cannot be copied: {error.strerror or error}"
        raise ModelRejected(printable(name), reason, "Check its mode and the free space.") from None


def _check_folder(folder: Path) -> Path:
    if not folder.is_dir():
        if folder.suffix in _TABLE_SUFFIXES and folder.is_file():
            raise _table_model(printable(folder.name))
        hub = f", or hf://{folder} for the hub's" if _HUB_ID.fullmatch(str(folder)) else ""
        remedy = f"Give the model's local folder{hub}."
        raise ModelRejected("folder", f"{folder} is not a folder", remedy)
    return folder


def _select(source: ConfinedFolder, folder: Path) -> Selection:
    all_names = source.names(ignored=lambda name: _is_ignored(PurePath(name)))
    _check_kind(all_names)
    names = {name for name in all_names if name in _MODEL_FILES or _LICENCE.fullmatch(name)}
    if "config.json" not in names:
        _check_no_table_model(source, all_names)
        remedy = (
            "Save the model with save_pretrained. Kaiten does not serve models of other libraries "
            f"yet; {model_kinds.SERVES}."
        )
        raise ModelRejected("config.json", "is missing", remedy)
    config = _read_object("config.json", source.read("config.json"))
    _check_served(source, config, all_names)
    _check_code(config)
    _check_tokenizer(source, names)
    _check_weights(names, all_names, folder)
    # If both exist, transformers reads the single file.
    if WEIGHTS_FILE in names:
        names.discard(WEIGHTS_INDEX)
    else:
        names |= _shards(source, all_names)
    return Selection(sorted(names), [name for name in all_names if name not in names])


def _is_ignored(path: PurePath) -> bool:
    """Return whether a file is hidden, a checkpoint, a run's log, or added by registration."""
    return path.parts[0] in _STORE_FILES or any(
        part.startswith((".", "checkpoint-")) or part == "runs" for part in path.parts
    )


def _check_kind(names: Sequence[str]) -> None:
    """Reject adapters and SetFit models, which their files identify."""
    for name in names:
        if _ADAPTER.fullmatch(name):
            raise ModelRejected(
                name,
                "belongs to a LoRA or other adapter, which is not a complete model",
                "Merge it into its base (peft: model.merge_and_unload().save_pretrained(FOLDER), "
                "and the tokenizer likewise), and register that folder.",
            )
    if "config_setfit.json" in names or "model_head.pkl" in names:
        raise ModelRejected(
            "model_head.pkl",
            "is the head of a SetFit model, a scikit-learn pickle, which can run code",
            "Fine-tune the same encoder as an AutoModelForSequenceClassification, and save that.",
        )


def _check_no_table_model(source: ConfinedFolder, names: Sequence[str]) -> None:
    """Reject the model of a library for tables, as its own file or as a pickle."""
    for name in names:
        suffix = PurePath(name).suffix
        if suffix in _TABLE_SUFFIXES or (suffix in _TABLE_DUMPS and _is_table_dump(source, name)):
            raise _table_model(name)


def _is_table_dump(source: ConfinedFolder, name: str) -> bool:
    with source.open(name) as file:
        return file.read(_TABLE_SIGNATURE_BYTES).startswith(_TABLE_SIGNATURES)


def _table_model(name: str) -> ModelRejected:
    reason = "looks like a model of scikit-learn, XGBoost, LightGBM or CatBoost"
    return ModelRejected(name, reason, f"{model_kinds.TABLES.refusal}.")


def _check_served(source: ConfinedFolder, config: dict[str, Any], names: Sequence[str]) -> None:
    """Reject a kind of model that is not served, before a file is missed that it does not need."""
    architectures = config.get("architectures")
    architecture = (
        str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    )
    kind = model_kinds.kind_of_architecture(architecture)
    if kind is not None:
        reason = f"names the architecture {printable(architecture)}"
        raise ModelRejected("config.json", reason, f"{kind.refusal}.")
    if "pretrained_cfg" in config:
        raise ModelRejected(
            "config.json", "is the configuration of a timm model", f"{model_kinds.IMAGES.refusal}."
        )
    # transformers' processors of images and audio write it, and not its tokenizers.
    if _PREPROCESSOR in names and not _VOCABULARIES.intersection(names):
        preprocessor = _read_object(_PREPROCESSOR, source.read(_PREPROCESSOR))
        kind = model_kinds.AUDIO if "sampling_rate" in preprocessor else model_kinds.IMAGES
        raise ModelRejected(_PREPROCESSOR, "is for images or audio, not text", f"{kind.refusal}.")


def _check_tokenizer(source: ConfinedFolder, names: Collection[str]) -> None:
    if _VOCABULARIES.intersection(names):
        return
    if "tokenizer_config.json" in names:
        config = _read_object("tokenizer_config.json", source.read("tokenizer_config.json"))
        if config.get("tokenizer_class") in _FILELESS_TOKENIZERS:
            return
    raise ModelRejected(
        "tokenizer",
        f"is missing: the folder has none of {', '.join(sorted(_VOCABULARIES))}",
        "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
    )


def _check_weights(names: Collection[str], all_names: Sequence[str], folder: Path) -> None:
    if WEIGHTS_FILE in names or WEIGHTS_INDEX in names:
        return
    safetensors = [name for name in all_names if PurePath(name).suffix == ".safetensors"]
    if safetensors:
        raise ModelRejected(
            "weights",
            f"have another name than transformers reads: {WEIGHTS_FILE} is missing, and the folder "
            f"has {printable(safetensors[0])}",
            f"Rename it to {WEIGHTS_FILE} if it holds the complete model, or save the model again.",
        )
    pickles = [name for name in all_names if _is_weights_pickle(PurePath(name))]
    if pickles:
        raise ModelRejected(pickles[0], *_pickle_remedy(quote(str(folder))))
    for name in all_names:
        suffix = PurePath(name).suffix
        if suffix in _OTHER_WEIGHTS:
            raise ModelRejected(
                name,
                f"holds weights for {_OTHER_WEIGHTS[suffix]}, and there are no safetensors weights",
                "Save the model with transformers and torch: model.save_pretrained(FOLDER).",
            )
    raise ModelRejected(
        "weights", "are missing", "Save the model with save_pretrained(FOLDER), which writes them."
    )


def _pickle_remedy(folder: str) -> tuple[str, str]:
    """Return reason and remedy for weights in a pickle; ``folder`` is quoted for a shell."""
    reason = "is a pickle, which can run code when loaded, and there are no safetensors weights"
    convert = "t.AutoModelForSequenceClassification.from_pretrained(f).save_pretrained(f)"
    command = f"python -c 'import sys, transformers as t; f = sys.argv[1]; {convert}' {folder}"
    remedy = (
        f"Convert it; transformers reads only the weights and runs no code: {command}. On the hub, "
        "a pull request may have converted it already: hf://OWNER/NAME@refs/pr/N"
    )
    return reason, remedy


def _is_weights_pickle(path: PurePath) -> bool:
    # A trainer writes other pickles beside the weights.
    leftovers = r"(training_args|optimizer|scheduler|scaler|rng_state).*"
    return path.suffix in _PICKLES and not re.fullmatch(leftovers, path.name)


def _check_code(config: dict[str, Any]) -> None:
    """Reject a configuration that requires code, or weights under another name."""
    if "auto_map" in config:
        raise ModelRejected(
            "config.json", "requires remote code (auto_map)", "Use an architecture of transformers."
        )
    if config.get("transformers_weights") is not None:
        raise ModelRejected(
            "config.json",
            f"names its weights {printable(str(config['transformers_weights']))}",
            f"Rename them to {WEIGHTS_FILE}, and remove transformers_weights.",
        )


def _shards(source: ConfinedFolder, all_names: Sequence[str]) -> set[str]:
    """Return the files that the index of the weights names."""
    shards = _read_object(WEIGHTS_INDEX, source.read(WEIGHTS_INDEX)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelRejected(WEIGHTS_INDEX, "names no weights", "Save the complete model again.")
    names = {str(name) for name in shards.values()}
    if absent := sorted(names.difference(all_names)):
        reason = f"names the weights {printable(absent[0])}, which are not in the folder"
        raise ModelRejected(WEIGHTS_INDEX, reason, "Save the complete model again.")
    return names


def _read_object(name: str, content: bytes) -> dict[str, Any]:
    """Parse a JSON object without duplicate keys.

    Raises:
        ModelRejected: It is not one.

    """
    try:
        value = json.loads(content, object_pairs_hook=reject_duplicate_keys)
    except DuplicateKey as error:
        reason = f"has the key {error.key} twice"
        raise ModelRejected(name, reason, "Keep the correct one.") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelRejected(name, "is not a JSON object", "Save the model again.")
    return value
