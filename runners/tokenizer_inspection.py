"""Choosing a model's tokenizer at registration, and checking that it fits the network.

A fast tokenizer is served from the folder's own ``tokenizer.json``: transformers 5 rebuilds some
classes from their vocabulary, and so loses the normaliser that the model was trained with.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kaiten.errors import ModelRejected
from runners.engines.base import SENTENCES
from runners.engines.torch_engine import TorchEngine
from runners.probe_texts import PROBE_TEXTS
from runners.tokenization import (
    TOKEN_TYPES,
    TOKENIZER_FILE,
    FastTokenizer,
    PythonTokenizer,
    TextTokenizer,
    TokenizationSettings,
)

# In tokens: without a limit of the model's own, attention's cost needs one.
_MAX_LENGTH_CAP = 8192
# The inputs of a network; the sequence length and the like are none.
_INPUTS = {"input_ids", "attention_mask", TOKEN_TYPES}
# The part of tokenizer.json, its type and setting, and the option of tokenizer_config.json.
_CONFIGURED = (
    ("normalizer", "BertNormalizer", "lowercase", "do_lower_case"),
    ("normalizer", "BertNormalizer", "handle_chinese_chars", "tokenize_chinese_chars"),
    ("normalizer", "BertNormalizer", "strip_accents", "strip_accents"),
    ("pre_tokenizer", "ByteLevel", "add_prefix_space", "add_prefix_space"),
)
# Those that every version of transformers reads alike.
_PLAIN_VOCABULARIES = {"vocab.txt", "vocab.json"}
_TEXT_ALONE = "Register a model that reads text alone, without boxes, tables, HTML nodes or images."
_SAVE_AGAIN = "Save the tokenizer again: tokenizer.save_pretrained(FOLDER)."


@dataclass(frozen=True, slots=True)
class InspectedTokenizer:
    """The tokenizer that is to serve; ``source`` is that of tokenizers or of transformers."""

    source: Any
    text_tokenizer: TextTokenizer
    settings: TokenizationSettings
    max_length: int
    notes: list[str]

    def without_token_types(self) -> tuple[TextTokenizer, TokenizationSettings]:
        """Return the same tokenizer for a network that is given no token types."""
        settings = self.settings.model_copy(update={"token_types": False, "pad_type": 0})
        return _to_text_tokenizer(self.source, settings, self.max_length), settings


def inspect_tokenizer(
    folder: Path, output: Path, engine: TorchEngine, requested_length: int | None
) -> InspectedTokenizer:
    """Load the tokenizer that is to serve, write it to ``output``, and set the maximum length.

    Raises:
        ModelRejected: There is no such tokenizer, or it does not fit the network.

    """
    reference = _load_reference(folder)
    if reference.pad_token_id is None:
        raise ModelRejected(
            "tokenizer",
            "has no padding token, so texts cannot share a batch",
            "Set tokenizer.pad_token and model.config.pad_token_id as in training, and save both.",
        )
    _check_inputs(reference, engine)
    max_length = _choose_max_length(reference, engine, requested_length)
    notes: list[str] = []
    source = _load_fast_tokenizer(folder, reference, notes) if reference.is_fast else reference
    settings = _settings_of(folder, reference, source, engine)
    if reference.is_fast:
        source.enable_truncation(max_length, direction=reference.truncation_side)
        source.enable_padding(pad_id=reference.pad_token_id, pad_token=reference.pad_token)
        (output / TOKENIZER_FILE).parent.mkdir(parents=True)
        source.save(str(output / TOKENIZER_FILE))
    else:
        notes.append(
            f"Texts are tokenised by transformers' {type(reference).__name__}, which is in Python "
            "and slower, as the tokenizer has no fast form (tokenizer.json)."
        )
    text_tokenizer = _to_text_tokenizer(source, settings, max_length)
    _check_vocabulary(text_tokenizer, engine)
    _check_special_tokens(text_tokenizer, max_length)
    return InspectedTokenizer(source, text_tokenizer, settings, max_length, notes)


def _load_reference(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Return the tokenizer as transformers loads it."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise ModelRejected(
            "tokenizer",
            f"needs a package that is not installed: {str(error).strip().splitlines()[0]}",
            "Install it here, and wherever the model is served.",
        ) from None
    except Exception:
        if not (folder / "tokenizer.json").is_file():
            raise
        # transformers no longer has its class, but its file is all that is needed.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _settings_of(
    folder: Path,
    reference: Any,  # noqa: ANN401
    source: Any,  # noqa: ANN401
    engine: TorchEngine,
) -> TokenizationSettings:
    types = engine.takes(TOKEN_TYPES) and (
        TOKEN_TYPES in reference.model_input_names or _fed_types_in_4(folder, source)
    )
    return TokenizationSettings(
        backend="tokenizers" if reference.is_fast else "transformers",
        pad_id=reference.pad_token_id,
        pad_side=reference.padding_side,
        token_types=types,
        pad_type=int(getattr(reference, "pad_token_type_id", 0) or 0) if types else 0,
    )


def _fed_types_in_4(folder: Path, source: Any) -> bool:  # noqa: ANN401
    """Return whether transformers 4 fed token types to the network, which 5 leaves out.

    Those are XLNet's and Funnel's, whose templates have a type of its own for one token.
    """
    if not isinstance(source, Tokenizer) or not any(source.encode(SENTENCES[0]).type_ids):
        return False
    # Since 5, save_pretrained notes the backend.
    return "backend" not in _read_tokenizer_config(folder)


def _to_text_tokenizer(
    source: Any,  # noqa: ANN401
    settings: TokenizationSettings,
    max_length: int,
) -> TextTokenizer:
    kind = FastTokenizer if settings.backend == "tokenizers" else PythonTokenizer
    return kind(source, max_length, token_types=settings.token_types)


def _load_fast_tokenizer(folder: Path, reference: Any, notes: list[str]) -> Tokenizer:  # noqa: ANN401
    """Return the folder's own tokenizer, that of transformers if it has no tokenizer.json."""
    rebuilt = _without_limits(Tokenizer.from_str(reference.backend_tokenizer.to_str()))
    if not (folder / "tokenizer.json").is_file():
        if not _PLAIN_VOCABULARIES.intersection(path.name for path in folder.iterdir()):
            notes.append(
                f"The tokenizer was converted from its SentencePiece vocabulary by transformers "
                f"{version('transformers')}; other versions may give other token ids. Save a "
                "tokenizer.json by the version that the model was trained with."
            )
        return rebuilt
    tokenizer = _read_tokenizer_json(folder)
    token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(PROBE_TEXTS))]
    rebuilt_ids = [encoding.ids for encoding in rebuilt.encode_batch(list(PROBE_TEXTS))]
    rows = zip(PROBE_TEXTS, token_ids, rebuilt_ids, strict=True)
    differing = [text for text, ids, other_ids in rows if ids != other_ids]
    if differing:
        notes.append(
            f"tokenizer.json, by which texts are served, gives other token ids than transformers "
            f"{version('transformers')} for {len(differing)} of {len(PROBE_TEXTS)} probe texts, "
            f"such as {differing[0]!r}: that version rebuilds the tokenizer and loses a part of it."
        )
    return tokenizer


def _read_tokenizer_json(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ModelRejected("tokenizer.json", "is no JSON object", _SAVE_AGAIN)
    _check_consistency(folder, content)
    try:
        return _without_limits(Tokenizer.from_file(str(file)))
    except Exception as error:  # noqa: BLE001  the package raises no narrower class
        reason = f"cannot be read: {str(error).splitlines()[0]}"
        raise ModelRejected("tokenizer.json", reason, _SAVE_AGAIN) from None


def _without_limits(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _check_consistency(folder: Path, content: dict[str, Any]) -> None:
    """Reject a tokenizer.json that tokenises at random or contradicts tokenizer_config.json.

    transformers lets the configuration change these two parts of the file, and no others.
    """
    model = content.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ModelRejected(
            "tokenizer",
            "has a BPE dropout in tokenizer.json, so it tokenises at random",
            'Set "dropout": null in tokenizer.json, or save it so, as for inference.',
        )
    config = _read_tokenizer_config(folder)
    for part, kind, setting, option in _CONFIGURED:
        for step in _steps(content.get(part)):
            comparable = step.get("type") == kind and setting in step
            if comparable and config.get(option) not in {None, step[setting]}:
                raise ModelRejected(
                    "tokenizer",
                    f"has {option}: {json.dumps(config[option])} in tokenizer_config.json, and "
                    f"{setting}: {json.dumps(step[setting])} in tokenizer.json",
                    f"Set {option} as in training, and save the tokenizer again by transformers.",
                )


def _read_tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    config: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return config


def _steps(part: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  as it lies in the file
    """Yield a normaliser or pre-tokenizer itself, and its steps if it is a sequence."""
    if isinstance(part, dict):
        yield part
        for key in ("normalizers", "pretokenizers"):
            steps = part.get(key)
            yield from (step for step in steps or () if isinstance(step, dict))


def _check_inputs(reference: Any, engine: TorchEngine) -> None:  # noqa: ANN401
    """Reject a network that reads more than a text's tokens, such as boxes or shapes."""
    names = {*reference.model_input_names}
    try:
        encoding = reference(SENTENCES[0])
        names |= encoding.keys()
        types = encoding.get(TOKEN_TYPES)
        if types and not isinstance(types[0], int):
            reason = "takes several token types for each token, as of the cells of a table"
            raise ModelRejected("model", reason, _TEXT_ALONE)
    except (TypeError, ValueError) as error:
        # LayoutLM's and TAPAS' tokenizers take words with boxes, or tables.
        if not any(engine.takes(name) for name in names - _INPUTS):
            reason = f"does not tokenise a plain text: {str(error).strip().splitlines()[0]}"
            raise ModelRejected("tokenizer", reason, _TEXT_ALONE) from None
    others = sorted(name for name in names - _INPUTS if engine.takes(name))
    if others:
        raise ModelRejected(
            "model",
            f"takes {', '.join(others)} besides tokens, such as boxes or pages' layout, which text "
            "classification does not give it",
            _TEXT_ALONE,
        )


def _choose_max_length(
    reference: Any,  # noqa: ANN401
    engine: TorchEngine,
    requested: int | None,
) -> int:
    """Return the maximum number of tokens of a text, within what the model allows."""
    positions = min(engine.positions or _MAX_LENGTH_CAP, _MAX_LENGTH_CAP)
    if requested is not None:
        if not 1 <= requested <= positions:
            reason = f"is {requested}, and the model takes texts of up to {positions} tokens"
            raise ModelRejected("max_length", reason, f"Pass --max-length {positions} or less.")
        return requested
    stated = reference.model_max_length
    if not isinstance(stated, int | float) or stated < 1:
        reason = f"has a model_max_length of {stated}"
        remedy = "Set it in tokenizer_config.json as in training, or pass --max-length."
        raise ModelRejected("tokenizer", reason, remedy)
    return min(positions, int(stated))


def _check_vocabulary(tokenizer: TextTokenizer, engine: TorchEngine) -> None:
    size = engine.vocabulary_size
    if size is not None and tokenizer.vocabulary_size > size:
        highest = tokenizer.vocabulary_size - 1
        raise ModelRejected(
            "tokenizer",
            f"has token ids up to {highest}, and the model {size} embeddings",
            "Save the tokenizer that the model was trained with.",
        )


def _check_special_tokens(tokenizer: TextTokenizer, max_length: int) -> None:
    """Reject a maximum length that the special tokens alone fill."""
    (empty,) = tokenizer.encode([""])
    if empty.cost >= max_length:
        raise ModelRejected(
            "max_length",
            f"is {max_length}, which the {empty.cost} special tokens of each text take up",
            f"Pass --max-length {empty.cost + 1} or more.",
        )
