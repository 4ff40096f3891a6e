"""Registering a text classifier: any local AutoModelForSequenceClassification with torch."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
from yaml import YAMLError

from kaiten.errors import ModelRejected
from kaiten.settings.models import RunnerSettings
from runners.engines import MAX_TOKENS
from runners.engines.base import SENTENCES, PadSide, softmax
from runners.engines.export import export
from runners.engines.torch_engine import TorchEngine
from runners.probe_texts import PROBE_TEXTS
from runners.tasks.base import ModelFacts
from runners.tasks.text_classification.serving import TOKEN_TYPES, TextProcessor
from runners.tokenization import (
    TOKENIZER_FILE,
    FastTokenizer,
    PythonTokenizer,
    TextTokenizer,
    TokenisedText,
    TokenizationSettings,
)

# In tokens: without a limit of the model's own, attention's cost needs one.
_MAX_LENGTH_CAP = 8192
# Of mixed batches, texts are cut at so many tokens: enough for any network to show a difference.
_PROBE_TOKENS = 256
# The sizes of the mixed batches, and how many of each.
_BATCHES = {2: 6, 8: 2, 32: 1}
# Between a text alone and in a batch: the largest difference of a probability, and of a logit
# relative to its size.
_SCORE_TOLERANCE = 1e-4
_LOGIT_TOLERANCE = 1e-3
# What is left of a difference that is none.
_ROUNDING = 2e-5
_PAIR_TASKS = {
    "mnli",
    "qnli",
    "qqp",
    "rte",
    "mrpc",
    "wnli",
    "stsb",
    "sts-b",
    "snli",
    "xnli",
    "anli",
}
# Without "not"; two of them tell, as a single text may be a duplicate, too.
_PAIR_LABELS = {
    *("entailment", "entail", "entails", "entailed"),
    *("contradiction", "contradict", "contradicts", "contradictory"),
    *("paraphrase", "equivalent", "duplicate", "semantically equivalent"),
}
_MIN_PAIR_LABELS = 2
# What a hub's model card calls models that are asked pairs.
_PAIR_TAGS = {"zero-shot-classification", "text-ranking", "sentence-similarity"}
_MAX_SPECIAL_TOKENS = 8
# What a network is given; the sequence length and the like are no inputs.
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
# Of the shortest text that a network computes, in tokens: CANINE pools four at a time.
_LEAST_LENGTHS = (0, 4, 8, 16, 32)
_INPUT = {
    "type": "string",
    "description": "A text. Only a part of a text over the maximum length is read.",
}
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Classifier:
    """A loaded folder: its network, its tokenizer, and what was found out about both.

    ``first_logits`` are those of a long text, computed before any other text.
    """

    engine: TorchEngine
    tokenizer: TextTokenizer
    settings: TokenizationSettings
    max_length: int
    notes: list[str]
    first_logits: NDArray[np.float32] | None = None

    @property
    def processor(self) -> TextProcessor:
        return TextProcessor(self.tokenizer, self.settings, self.max_length)

    def logits(self, texts: Sequence[TokenisedText]) -> NDArray[np.float32]:
        """Return the logits of one batch, shape (texts, labels)."""
        return self.engine.compute(self.processor.batch(texts)).logits


def inspect(
    folder: Path,
    made: Path,
    *,
    max_length: int | None = None,
    progress: Progress = lambda _: None,
) -> ModelFacts:
    """Load a folder as a classifier on the CPU, and find out how it can be served exactly.

    Writes the tokenizer into ``made``, and the network as ONNX if that computes the same.

    Raises:
        ModelRejected: The folder is no classifier of single texts, or cannot be served exactly.

    """
    architecture, labels = _read_config(folder)
    progress("Loading the weights")
    with _loading("model"):
        engine = TorchEngine(folder, RunnerSettings(device="cpu"))
        _check_finite(engine)
    with _loading("tokenizer"):
        classifier = _load_tokenizer(folder, made, engine, max_length)
    progress("Computing texts alone and in batches")
    classifier = _check_answers(classifier, len(labels))
    classifier.settings.write(made)
    progress("Exporting the network to ONNX")
    short, medium, long = map(classifier.processor.probe, (0, _PROBE_TOKENS, MAX_TOKENS))
    sentences = classifier.tokenizer.encode(SENTENCES)
    texts = [short, *_with_special_tokens(classifier), *sentences, medium, long]
    chosen = export(
        engine,
        classifier.processor.batch(texts),
        made,
        together=classifier.settings.batched,
        limited=classifier.max_length > MAX_TOKENS,
        progress=progress,
    )
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    versions = {name: version(name) for name in packages}
    needed = set()
    if chosen.name == "torch" or classifier.max_length > MAX_TOKENS:
        needed |= {"torch", "transformers"}
    if classifier.settings.backend == "transformers":
        needed |= {"transformers"}
    return ModelFacts(
        labels,
        classifier.max_length,
        architecture,
        versions,
        chosen,
        _INPUT,
        _output_schema(labels),
        [*_conversions(folder), *classifier.notes],
        sorted(needed),
    )


def _output_schema(labels: Sequence[str]) -> dict[str, Any]:
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    properties = {"label": {"type": "string", "enum": [*labels]}, "score": probability}
    return {"type": "object", "properties": properties, "required": [*properties]}


@contextmanager
def _loading(field: str) -> Iterator[None]:
    """Turn any error of transformers into ModelRejected."""
    try:
        yield
    except ModelRejected:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"cannot be loaded: {type(error).__name__}: {lines[0] if lines else ''}"
        remedy = "Load it with transformers once to see why, and save it again."
        raise ModelRejected(field, reason, remedy) from error


def _read_config(folder: Path) -> tuple[str, list[str]]:
    """Return the architecture and the labels."""
    written = json.loads((folder / "config.json").read_bytes())
    if "quantization_config" in written:
        settings = written["quantization_config"]
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        raise ModelRejected(
            "config.json",
            f"is of a model quantised by {method or 'some method'}, which a CPU cannot compute "
            "exactly",
            "Register the model that it was made from, in full or half precision.",
        )
    with _loading("config.json"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    architectures = config.architectures
    architecture = (
        str(architectures[0]) if isinstance(architectures, list | tuple) and architectures else ""
    )
    if not architecture.endswith("ForSequenceClassification"):
        kind = "no text classifier"
        if (folder / "modules.json").is_file():
            kind = "a sentence-transformers model: it embeds texts, and has no labels"
        raise ModelRejected(
            "config.json",
            f"names the architecture {architecture or 'none'}, which is {kind}",
            "Fine-tune and save an AutoModelForSequenceClassification.",
        )
    labels = _labels(config.id2label)
    _check_kind(folder, config, written, labels)
    return architecture, labels


def _labels(id2label: Any) -> list[str]:  # noqa: ANN401  transformers has no types
    """Return the labels in order."""
    remedy = 'Set id2label in config.json to one text a label: {"0": "billing", "1": "delivery"}.'
    try:
        labels = [id2label[index] for index in range(len(id2label))]
    except (KeyError, TypeError):
        reason = "has an id2label that does not number its labels from 0"
        raise ModelRejected("config.json", reason, remedy) from None
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            reason = f"has the label {label!r} under {index} in id2label, which is no text"
            raise ModelRejected("config.json", reason, remedy)
    equal = sorted({label for label in labels if labels.count(label) > 1})
    if equal:
        reason = f"has the label {equal[0]!r} more than once in id2label"
        raise ModelRejected("config.json", reason, "Give each label in id2label a name of its own.")
    return labels


def _check_kind(
    folder: Path,
    config: Any,  # noqa: ANN401
    written: dict[str, Any],
    labels: Sequence[str],
) -> None:
    """Refuse classifiers of another kind than one of several labels for one text."""
    problem = config.problem_type
    if problem == "regression" or len(labels) < 2:  # noqa: PLR2004
        raise ModelRejected(
            "config.json",
            "is of a regression (problem_type), or has fewer than two labels",
            "The task text-classification takes models that choose one of several labels.",
        )
    if problem == "multi_label_classification":
        raise ModelRejected(
            "config.json",
            "is of a multi-label classifier (problem_type)",
            "The task text-classification takes models that choose one of several labels.",
        )
    evidence = _pair_evidence(folder, written, labels)
    if evidence:
        raise ModelRejected(
            "config.json",
            f"is of a model of sentence pairs ({evidence}), and no task serves pairs yet",
            "If it was trained on single texts, correct what tells otherwise, and register it "
            "again.",
        )


def _pair_evidence(folder: Path, written: dict[str, Any], labels: Sequence[str]) -> str | None:
    """Return what tells that the model was trained on pairs of texts; None if nothing does."""
    task = str(written.get("finetuning_task") or "").lower()
    if task in _PAIR_TASKS:
        return f"finetuning_task is {task} in config.json"
    if "sentence_transformers" in written or "sbert_ce_default_activation_function" in written:
        return "config.json is of a sentence-transformers cross-encoder"
    words = (label.lower().replace("_", " ").replace("-", " ") for label in labels)
    named = [word for word in words if word.removeprefix("not ").strip() in _PAIR_LABELS]
    if len(named) >= _MIN_PAIR_LABELS:
        return f"its labels are {', '.join(labels[:3])}"
    if (folder / "README.md").is_file():
        try:
            card = ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
            tag = card.data.get("pipeline_tag")
        except (ValueError, OSError, YAMLError):
            return None
        if tag in _PAIR_TAGS:
            return f"its README.md says pipeline_tag: {tag}"
    return None


def _load_tokenizer(
    folder: Path, made: Path, engine: TorchEngine, requested: int | None
) -> _Classifier:
    """Load the tokenizer that is to serve, write it, and set the maximum length."""
    reference = _reference_tokenizer(folder)
    if reference.pad_token_id is None:
        raise ModelRejected(
            "tokenizer",
            "has no padding token, so texts cannot share a batch",
            "Set tokenizer.pad_token and model.config.pad_token_id as in training, and save both.",
        )
    _check_inputs(reference, engine)
    max_length = _max_length(reference, engine, requested)
    notes: list[str] = []
    source: Any = _own_tokenizer(folder, reference, notes) if reference.is_fast else reference
    types = engine.takes(TOKEN_TYPES) and (
        TOKEN_TYPES in reference.model_input_names or _has_types_of_4(folder, source)
    )
    settings = TokenizationSettings(
        backend="tokenizers" if reference.is_fast else "transformers",
        pad_id=reference.pad_token_id,
        pad_side=reference.padding_side,
        token_types=types,
        pad_type=int(getattr(reference, "pad_token_type_id", 0) or 0) if types else 0,
    )
    if reference.is_fast:
        source.enable_truncation(max_length, direction=reference.truncation_side)
        source.enable_padding(pad_id=reference.pad_token_id, pad_token=reference.pad_token)
        (made / TOKENIZER_FILE).parent.mkdir(parents=True)
        source.save(str(made / TOKENIZER_FILE))
    else:
        notes.append(
            f"Texts are tokenised by transformers' {type(reference).__name__}, which is in Python "
            "and slower, as the tokenizer has no fast form (tokenizer.json)."
        )
    tokenizer = _text_tokenizer(source, settings, max_length)
    _check_vocabulary(tokenizer, engine)
    _check_room(tokenizer, max_length)
    classifier = _Classifier(engine, tokenizer, settings, max_length, notes)
    with _computing():
        first = classifier.logits([classifier.processor.probe(MAX_TOKENS)])
    classifier = _with_least_length(replace(classifier, first_logits=first))
    return _without_idle_types(classifier, source) if types else classifier


def _with_least_length(classifier: _Classifier) -> _Classifier:
    """Return the classifier with the length to which shorter texts have to be padded."""
    shortest = min(classifier.tokenizer.encode(["a", "I", "5"]), key=lambda text: text.cost)
    for length in _LEAST_LENGTHS:
        settings = classifier.settings.model_copy(update={"min_length": length})
        candidate = replace(classifier, settings=settings)
        try:
            candidate.logits([shortest])
        except Exception:  # noqa: BLE001, S112  whatever a network raises for too short a text
            continue
        if length:
            classifier.notes.append(
                f"Texts of under {length} tokens are padded, as the network computes none so short."
            )
        return candidate
    # Its error is told where texts of any length are computed.
    return classifier


def _reference_tokenizer(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
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
        # Of a class that transformers does not have any more: its file is all that counts.
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _text_tokenizer(
    source: Any,  # noqa: ANN401  of tokenizers, or of transformers
    settings: TokenizationSettings,
    max_length: int,
) -> TextTokenizer:
    kind = FastTokenizer if settings.backend == "tokenizers" else PythonTokenizer
    return kind(source, max_length, token_types=settings.token_types)


def _without_idle_types(classifier: _Classifier, source: Any) -> _Classifier:  # noqa: ANN401
    """Return the classifier without token types, if its network answers the same without them."""
    (sample,) = classifier.tokenizer.encode(SENTENCES[3:4])
    if any(sample.types):
        return classifier
    settings = classifier.settings.model_copy(update={"token_types": False, "pad_type": 0})
    tokenizer = _text_tokenizer(source, settings, classifier.max_length)
    plain = replace(classifier, settings=settings, tokenizer=tokenizer)
    with _computing():
        # GPT-2 takes a type for a token, and adds its embedding.
        same = _agree(plain.logits([sample]), classifier.logits([sample]))
    return plain if same else classifier


def _has_types_of_4(folder: Path, source: Any) -> bool:  # noqa: ANN401
    """Return whether a tokenizer gives types that transformers 4 fed, and 5 leaves out.

    Those are XLNet's and Funnel's, whose templates have a type of its own for one token.
    """
    if not isinstance(source, Tokenizer) or not any(source.encode(SENTENCES[0]).type_ids):
        return False
    # Since 5, save_pretrained notes the backend.
    return "backend" not in _tokenizer_config(folder)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    written: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return written


def _check_inputs(reference: Any, engine: TorchEngine) -> None:  # noqa: ANN401
    """Refuse a network that reads more than a text's tokens, such as boxes or shapes."""
    given = {*reference.model_input_names}
    try:
        encoding = reference(SENTENCES[0])
        given |= encoding.keys()
        types = encoding.get(TOKEN_TYPES)
        if types and not isinstance(types[0], int):
            reason = "takes several token types for each token, as of the cells of a table"
            raise ModelRejected("model", reason, _TEXT_ALONE)
    except (TypeError, ValueError) as error:
        # LayoutLM's and TAPAS' tokenizers take words with boxes, or tables.
        if not any(engine.takes(name) for name in given - _INPUTS):
            reason = f"does not tokenise a plain text: {str(error).strip().splitlines()[0]}"
            raise ModelRejected("tokenizer", reason, _TEXT_ALONE) from None
    others = sorted(name for name in given - _INPUTS if engine.takes(name))
    if others:
        raise ModelRejected(
            "model",
            f"takes {', '.join(others)} besides tokens, such as boxes or pages' layout, which text "
            "classification does not give it",
            _TEXT_ALONE,
        )


def _check_room(tokenizer: TextTokenizer, max_length: int) -> None:
    (empty,) = tokenizer.encode([""])
    if empty.cost >= max_length:
        raise ModelRejected(
            "max_length",
            f"is {max_length}, which the {empty.cost} special tokens of each text take up",
            f"Pass --max-length {empty.cost + 1} or more.",
        )


def _own_tokenizer(folder: Path, reference: Any, notes: list[str]) -> Tokenizer:  # noqa: ANN401
    """Return the folder's own tokenizer; transformers' where it has no tokenizer.json.

    transformers 5 rebuilds some classes from their vocabulary, and so loses the normaliser that the
    model was trained with.
    """
    rebuilt = Tokenizer.from_str(reference.backend_tokenizer.to_str())
    rebuilt.no_truncation()
    rebuilt.no_padding()
    file = folder / "tokenizer.json"
    if not file.is_file():
        if not _PLAIN_VOCABULARIES.intersection(path.name for path in folder.iterdir()):
            notes.append(
                f"The tokenizer was converted from its SentencePiece vocabulary by transformers "
                f"{version('transformers')}; other versions may give other token ids. Save a "
                "tokenizer.json by the version that the model was trained with."
            )
        return rebuilt
    try:
        written = json.loads(file.read_bytes())
    except ValueError:
        written = None
    if not isinstance(written, dict):
        raise ModelRejected(
            "tokenizer.json",
            "is no JSON object",
            "Save the tokenizer again: tokenizer.save_pretrained(FOLDER).",
        )
    _check_consistency(folder, written)
    try:
        own = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  the package raises no narrower class
        raise ModelRejected(
            "tokenizer.json",
            f"cannot be read: {str(error).splitlines()[0]}",
            "Save the tokenizer again: tokenizer.save_pretrained(FOLDER).",
        ) from None
    own.no_truncation()
    own.no_padding()
    differing = [
        text
        for text, ours, theirs in zip(
            PROBE_TEXTS,
            own.encode_batch(list(PROBE_TEXTS)),
            rebuilt.encode_batch(list(PROBE_TEXTS)),
            strict=True,
        )
        if ours.ids != theirs.ids
    ]
    if differing:
        notes.append(
            f"tokenizer.json, by which texts are served, gives other token ids than transformers "
            f"{version('transformers')} for {len(differing)} of {len(PROBE_TEXTS)} probe texts, "
            f"such as {differing[0]!r}: that version rebuilds the tokenizer and loses a part of it."
        )
    return own


def _check_consistency(folder: Path, written: dict[str, Any]) -> None:
    """Refuse a tokenizer.json that tokenises at random, or that tokenizer_config.json contradicts.

    transformers lets the configuration change these two parts of the file, and no others.
    """
    model = written.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        raise ModelRejected(
            "tokenizer",
            "has a BPE dropout in tokenizer.json, so it tokenises at random",
            'Set "dropout": null in tokenizer.json, or save it so, as for inference.',
        )
    config = _tokenizer_config(folder)
    for part, kind, setting, option in _CONFIGURED:
        for step in _steps(written.get(part)):
            comparable = step.get("type") == kind and setting in step
            if comparable and config.get(option) not in {None, step[setting]}:
                raise ModelRejected(
                    "tokenizer",
                    f"has {option}: {json.dumps(config[option])} in tokenizer_config.json, and "
                    f"{setting}: {json.dumps(step[setting])} in tokenizer.json",
                    f"Set {option} as in training, and save the tokenizer again by transformers.",
                )


def _steps(part: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401  as it lies in the file
    """Yield a normaliser's or a splitter's steps, if it is a sequence, and else itself."""
    if isinstance(part, dict):
        yield part
        for key in ("normalizers", "pretokenizers"):
            steps = part.get(key)
            yield from (step for step in steps or () if isinstance(step, dict))


def _max_length(tokenizer: Any, engine: TorchEngine, requested: int | None) -> int:  # noqa: ANN401
    """Return the most tokens of a text: what was asked for, within what the model allows."""
    positions = min(engine.positions or _MAX_LENGTH_CAP, _MAX_LENGTH_CAP)
    stated = tokenizer.model_max_length
    if requested is not None:
        if not 1 <= requested <= positions:
            reason = f"is {requested}, and the model takes texts of up to {positions} tokens"
            raise ModelRejected("max_length", reason, f"Pass --max-length {positions} or less.")
        return requested
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


def _check_answers(classifier: _Classifier, labels: int) -> _Classifier:
    """Compute probe texts alone and in mixed batches; return how the classifier is to be served.

    Its answer for a text must depend on that text alone: not on what it computed before, nor on
    the other texts of a batch.
    """
    with _loading("tokenizer"):
        probes = _probes(classifier)
    # BigBird's attention is sparse until it meets a short text, and whole from then on.
    long, first = classifier.processor.probe(MAX_TOKENS), classifier.first_logits
    with _computing():
        alone = np.concatenate([classifier.logits([text]) for text in probes])
        again = [classifier.logits([text]) for text in (long, probes[0])]
        if classifier.max_length > MAX_TOKENS:
            longest = classifier.processor.probe(classifier.max_length)
            _check_logits(classifier.logits([longest]), labels)
    _check_logits(np.concatenate([alone, again[0]]), labels)
    _check_spread(alone, classifier)
    if first is None or not (_agree(again[0], first) and _agree(again[1], alone[:1])):
        raise ModelRejected(
            "model",
            "answers otherwise when the same text is asked again",
            "Set config.json so that its forward pass is deterministic and keeps no state (such as "
            "BigBird's attention_type original_full), or pass a lower --max-length.",
        )
    for settings in _paddings(classifier):
        candidate = replace(classifier, settings=settings)
        if not _depends_on_longest(candidate) and _is_batchable(candidate, probes, alone):
            return candidate
    hint = ""
    if getattr(classifier.engine.network.config, "pad_token_id", None) is None:
        hint = f' Set "pad_token_id": {classifier.settings.pad_id} in config.json for batches.'
    classifier.notes.append(
        "Texts are computed one at a time, as this model's answers in a padded batch differ from "
        f"those alone.{hint}"
    )
    return replace(classifier, settings=classifier.settings.model_copy(update={"batched": False}))


def _paddings(classifier: _Classifier) -> Iterator[TokenizationSettings]:
    """Yield ways to pad: as the tokenizer says first, then with the network's id, on both sides.

    A decoder finds a text's last token by the padding id in its config.json.
    """
    settings = classifier.settings
    configured = getattr(classifier.engine.network.config, "pad_token_id", None)
    pad_ids = [settings.pad_id]
    if isinstance(configured, int) and configured not in pad_ids:
        pad_ids.append(configured)
    other: PadSide = "left" if settings.pad_side == "right" else "right"
    for pad_id in pad_ids:
        for side in (settings.pad_side, other):
            yield settings.model_copy(update={"pad_id": pad_id, "pad_side": side})


def _probes(classifier: _Classifier) -> list[TokenisedText]:
    """Return real texts of many lengths, some of them with the model's special tokens in them."""
    texts = [*SENTENCES, *accumulate(SENTENCES, lambda text, sentence: f"{text} {sentence}")][:16]
    texts += PROBE_TEXTS[:: len(PROBE_TEXTS) // 7]
    encoded = [_shortened(text) for text in classifier.tokenizer.encode(texts) if not text.blank]
    return [*encoded, *_with_special_tokens(classifier)]


def _with_special_tokens(classifier: _Classifier) -> list[TokenisedText]:
    """Return a text with each special token in its middle, as a caller can write it."""
    (text,) = classifier.tokenizer.encode([SENTENCES[3]])
    middle, types = len(text.ids) // 2, text.types
    return [
        TokenisedText(
            [*text.ids[:middle], special, *text.ids[middle:]],
            [*types[:middle], types[middle], *types[middle:]] if types else (),
        )
        for special in sorted(classifier.tokenizer.special_ids)[:_MAX_SPECIAL_TOKENS]
        if len(text.ids) < classifier.max_length
    ]


def _shortened(text: TokenisedText) -> TokenisedText:
    if text.cost <= _PROBE_TOKENS:
        return text
    ids, types = text.ids, text.types
    end = _PROBE_TOKENS - 1
    return TokenisedText([*ids[:end], ids[-1]], [*types[:end], types[-1]] if types else ())


def _depends_on_longest(classifier: _Classifier) -> bool:
    """Return whether rotary positions are scaled by the longest text of a batch."""
    config = classifier.engine.network.config
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    kinds = [scaling, *scaling.values()] if isinstance(scaling, dict) else []
    types = {each.get("rope_type", each.get("type")) for each in kinds if isinstance(each, dict)}
    return bool(types & {"longrope", "dynamic"})


def _is_batchable(
    classifier: _Classifier, probes: Sequence[TokenisedText], alone: NDArray[np.float32]
) -> bool:
    """Return whether texts score in batches of several sizes as they do alone."""
    random = np.random.default_rng(0)
    for size, batches in _BATCHES.items():
        for _ in range(batches):
            chosen = random.permutation(len(probes))[:size]
            try:
                logits = classifier.logits([probes[index] for index in chosen])
            except Exception:  # noqa: BLE001  such as BART's, where the counts of </s> differ
                return False
            if not _agree(logits, alone[chosen]):
                return False
    return True


def _agree(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return np.allclose(
        softmax(logits), softmax(expected), rtol=0, atol=_SCORE_TOLERANCE
    ) and np.allclose(logits, expected, rtol=_LOGIT_TOLERANCE, atol=_LOGIT_TOLERANCE)


@contextmanager
def _computing() -> Iterator[None]:
    """Turn any error of the network into ModelRejected."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ModelRejected(
            "model",
            f"cannot be computed from a text alone: {type(error).__name__}: "
            f"{lines[0] if lines else ''}",
            "Compute one text with transformers on a CPU to see why; a model that also needs "
            "images, boxes or tables cannot be served.",
        ) from error


def _check_spread(logits: NDArray[np.float32], classifier: _Classifier) -> None:
    """Refuse a network that scores all texts the same."""
    if np.allclose(logits, logits[:1], rtol=_ROUNDING, atol=_ROUNDING):
        decoder = getattr(classifier.engine.network.config, "is_decoder", False)
        hint = "set is_decoder to false in config.json" if decoder else "fine-tune it"
        raise ModelRejected(
            "model",
            "gives the same scores for all texts",
            f"Check that it was trained, with transformers and one text at a time, or {hint}.",
        )


def _check_finite(engine: TorchEngine) -> None:
    """Refuse weights that are no numbers: those of a rare token show in no probe."""
    for name, parameter in engine.network.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise ModelRejected(
                "weights",
                f"are not finite in {name}: there are infinities or NaN",
                "Check that training did not diverge, and save the model again.",
            )


def _check_logits(logits: NDArray[np.float32], labels: int) -> None:
    finite = bool(np.isfinite(logits).all())
    if logits.shape[1] != labels or not finite:
        raise ModelRejected(
            "weights",
            f"give {logits.shape[1]} logits, finite: {finite}, for {labels} labels",
            "Check id2label in config.json, and that training did not diverge.",
        )


def _conversions(folder: Path) -> Iterator[str]:
    """Yield what loading the weights as float32 has changed."""
    types: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            types |= {weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    halves = sorted(types & {"F16", "BF16"})
    if halves:
        names = {"F16": "float16", "BF16": "bfloat16"}
        converted = " and ".join(names[each] for each in halves)
        yield f"Weights in {converted} were converted to float32, which changes no weight."
