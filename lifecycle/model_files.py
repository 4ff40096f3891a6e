"""The files of a folder that make a model: a known set; all else in the folder is left out."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from shlex import quote
from typing import Any

from kaiten.confinement import ConfinedFolder, UnsafeFile, printable
from kaiten.errors import ModelRejected
from kaiten.settings.strict_yaml import DuplicateKey, reject_duplicate_keys
from lifecycle.card import CARD_FILE, REPORTS

# What a version keeps of a README that the model came with: the card's takes its place.
ORIGINAL_README = "README.original.md"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS_FILE}.index.json"
# Vocabularies, by the names under which transformers' tokenizers save and look for them.
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
_KNOWN = _VOCABULARIES | {
    "config.json",
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    # Of BARTpho, GPT-NeoX-Japanese, LUKE and RoCBert.
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    # What sentence-transformers adds, which tells what kind of model it is.
    "modules.json",
    "README.md",
}
_LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)(\.(md|txt))?")
# Tokenizers that need no file: they read characters or bytes.
_FILELESS_TOKENIZERS = {"CanineTokenizer", "ByT5Tokenizer", "PerceiverTokenizer"}
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_OTHER_WEIGHTS = {
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".gguf": "llama.cpp (GGUF)",
    ".onnx": "ONNX",
}
_ADAPTER = re.compile(r"(.*/)?adapter_(config\.json|model\.(safetensors|bin))")
# Of a version in the store, whose files may become another version.
_OURS = {CARD_FILE, REPORTS, ORIGINAL_README}


@dataclass(frozen=True, slots=True)
class Selection:
    """The names of the files that make the model, and of those in the folder that do not.

    Files and folders that are hidden, checkpoints and a run's logs are in neither.
    """

    names: Sequence[str]
    left_out: Sequence[str]


def select(folder: Path) -> Selection:
    """Return which files make the model.

    Raises:
        ModelRejected: A file leads out of the folder, the folder holds no whole model, or its
            configuration asks for code.

    """
    with _refusing(folder), ConfinedFolder(_checked(folder)) as source:
        return _select(source, folder)


def copy(folder: Path, target: Path) -> tuple[dict[str, Path], Sequence[str]]:
    """Copy the files that make the model; return the copies by name, and what was left out.

    Raises:
        ModelRejected: As ``select``.

    """
    with _refusing(folder), ConfinedFolder(_checked(folder)) as source:
        selection = _select(source, folder)
        copies = {name: target / name for name in selection.names}
        for name, file in copies.items():
            source.copy(name, file)
    # The folder's maker may have changed it meanwhile: what counts is the copy.
    with _refusing(target), ConfinedFolder(target) as copied:
        if _select(copied, folder).names != selection.names:
            raise ModelRejected("folder", f"{folder} was changed meanwhile", "Register it again.")
    return copies, selection.left_out


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn what cannot be read safely into ModelRejected."""
    try:
        yield
    except UnsafeFile as error:
        raise ModelRejected(error.name, error.reason, error.remedy) from None
    except OSError as error:
        name = Path(error.filename or "").name or str(folder)
        reason = f"cannot be copied: {error.strerror or error}"
        raise ModelRejected(printable(name), reason, "Check its mode and the free space.") from None


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise ModelRejected("folder", f"{folder} is not a folder", "Give the model's local folder.")
    return folder


def _select(source: ConfinedFolder, folder: Path) -> Selection:
    found = source.names(ignored=lambda name: _is_passed_over(PurePath(name)))
    _check_kind(found)
    names = {name for name in found if name in _KNOWN or _LICENCE.fullmatch(name)}
    if "config.json" not in names:
        raise ModelRejected("config.json", "is missing", "Save the model with save_pretrained.")
    _check_code(source)
    _check_tokenizer(source, names)
    _check_weights(names, found, folder)
    # Of the two, transformers reads the one file.
    if WEIGHTS_FILE in names:
        names.discard(WEIGHTS_INDEX)
    else:
        names |= _shards(source, found)
    return Selection(sorted(names), [name for name in found if name not in names])


def _is_passed_over(path: PurePath) -> bool:
    """Return whether it is hidden, a checkpoint, a run's log, or what registration adds."""
    return path.parts[0] in _OURS or any(
        part.startswith((".", "checkpoint-")) or part == "runs" for part in path.parts
    )


def _check_kind(names: Sequence[str]) -> None:
    """Refuse what is a model of another kind, by the files that tell."""
    for name in names:
        if _ADAPTER.fullmatch(name):
            raise ModelRejected(
                name,
                "is of a LoRA or another adapter, which is no whole model, and would not be served",
                "Merge it into its base (peft: model.merge_and_unload().save_pretrained(FOLDER), "
                "and the tokenizer likewise), and register that folder.",
            )
    if "config_setfit.json" in names or "model_head.pkl" in names:
        raise ModelRejected(
            "model_head.pkl",
            "is the head of a SetFit model, a pickle of scikit-learn's, which can run code",
            "Fine-tune the same encoder as an AutoModelForSequenceClassification, and save that.",
        )


def _check_tokenizer(source: ConfinedFolder, names: Collection[str]) -> None:
    if _VOCABULARIES.intersection(names):
        return
    if "tokenizer_config.json" in names:
        config = read_object("tokenizer_config.json", source.read("tokenizer_config.json"))
        if config.get("tokenizer_class") in _FILELESS_TOKENIZERS:
            return
    raise ModelRejected(
        "tokenizer",
        f"is missing: there is none of {', '.join(sorted(_VOCABULARIES))}",
        "Save it beside the model: tokenizer.save_pretrained(FOLDER).",
    )


def _check_weights(names: Collection[str], found: Sequence[str], folder: Path) -> None:
    if WEIGHTS_FILE in names or WEIGHTS_INDEX in names:
        return
    others = [name for name in found if PurePath(name).suffix == ".safetensors"]
    if others:
        raise ModelRejected(
            "weights",
            f"are not under the name that transformers reads: {WEIGHTS_FILE} is missing, and "
            f"there is {printable(others[0])}",
            f"Rename it to {WEIGHTS_FILE} if it holds the whole model; else save the model again.",
        )
    pickles = [name for name in found if _is_weights_pickle(PurePath(name))]
    if pickles:
        raise ModelRejected(pickles[0], *pickle_remedy(quote(str(folder))))
    for name in found:
        suffix = PurePath(name).suffix
        if suffix in _OTHER_WEIGHTS:
            raise ModelRejected(
                name,
                f"holds weights for {_OTHER_WEIGHTS[suffix]}, and there are none as safetensors",
                "Save the model by transformers with torch: model.save_pretrained(FOLDER).",
            )
    raise ModelRejected(
        "weights", "are missing", "Save the model with save_pretrained(FOLDER), which writes them."
    )


def pickle_remedy(folder: str) -> tuple[str, str]:
    """Return why weights in a pickle are not read, and what to do; ``folder`` as in a shell."""
    reason = "is a pickle, which can run code when loaded, and there are no weights as safetensors"
    convert = "t.AutoModelForSequenceClassification.from_pretrained(f).save_pretrained(f)"
    command = f"python -c 'import sys, transformers as t; f = sys.argv[1]; {convert}' {folder}"
    remedy = (
        f"Convert it; transformers reads weights from it and runs no code: {command}. On the hub, "
        "a pull request may have converted it already: hf://OWNER/NAME@refs/pr/N"
    )
    return reason, remedy


def _is_weights_pickle(path: PurePath) -> bool:
    # What a trainer leaves beside the weights is pickle, too.
    leftovers = r"(training_args|optimizer|scheduler|scaler|rng_state).*"
    return path.suffix in _PICKLES and not re.fullmatch(leftovers, path.name)


def _check_code(source: ConfinedFolder) -> None:
    """Refuse a configuration that asks for code, or for weights under another name."""
    config = read_object("config.json", source.read("config.json"))
    if "auto_map" in config:
        raise ModelRejected(
            "config.json", "asks for remote code (auto_map)", "Use an architecture of transformers."
        )
    if config.get("transformers_weights") is not None:
        raise ModelRejected(
            "config.json",
            f"names its weights {printable(str(config['transformers_weights']))}",
            f"Rename them to {WEIGHTS_FILE}, and remove transformers_weights.",
        )


def _shards(source: ConfinedFolder, found: Sequence[str]) -> set[str]:
    """Return the files that the weights' index names."""
    shards = read_object(WEIGHTS_INDEX, source.read(WEIGHTS_INDEX)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ModelRejected(WEIGHTS_INDEX, "names no weights", "Save the model again, whole.")
    names = {str(name) for name in shards.values()}
    if absent := sorted(names.difference(found)):
        reason = f"names the weights {printable(absent[0])}, which are not in the folder"
        raise ModelRejected(WEIGHTS_INDEX, reason, "Save the model again, whole.")
    return names


def read_object(name: str, content: bytes) -> dict[str, Any]:
    """Read a JSON object in which no key stands twice: of two, one would be lost.

    Raises:
        ModelRejected: It is none.

    """
    try:
        found = json.loads(content, object_pairs_hook=reject_duplicate_keys)
    except DuplicateKey as error:
        reason = f"has the key {error.key} twice"
        raise ModelRejected(name, reason, "Keep the one that is meant.") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelRejected(name, "is not a JSON object", "Save the model again.")
    return found
