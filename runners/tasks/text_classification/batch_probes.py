"""Finding out at registration how texts can share a batch without changing their answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from kaiten.errors import ModelRejected
from runners.engines import MAX_TOKENS
from runners.engines.base import SENTENCES, PadSide, softmax
from runners.engines.torch_engine import TorchEngine
from runners.probe_texts import PROBE_TEXTS
from runners.tasks.text_classification.model_config import reject_load_errors
from runners.tasks.text_classification.serving import TextProcessor
from runners.tokenization import TextTokenizer, TokenisedText, TokenizationSettings
from runners.tokenizer_inspection import InspectedTokenizer

# Texts of mixed batches are cut at so many tokens: enough for any network to show a difference.
PROBE_TOKENS = 256
# The sizes of the mixed batches, and how many of each.
_BATCHES = {2: 6, 8: 2, 32: 1}
# Between a text alone and in a batch: the largest difference of a probability, and of a logit
# relative to its size.
_SCORE_TOLERANCE = 1e-4
_LOGIT_TOLERANCE = 1e-3
# The rounding error between equal logits.
_ROUNDING = 2e-5
_MAX_SPECIAL_TOKENS = 8
# Of the shortest text that a network computes, in tokens: CANINE pools four at a time.
_MIN_LENGTHS = (0, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A network and its tokenizer; ``first_logits`` are a long text's, computed before any other.

    ``notes`` are for the model card.
    """

    engine: TorchEngine
    tokenizer: TextTokenizer
    settings: TokenizationSettings
    max_length: int
    notes: list[str]
    first_logits: NDArray[np.float32] | None = None

    @property
    def processor(self) -> TextProcessor:
        """The processor that would serve it."""
        return TextProcessor(self.tokenizer, self.settings, self.max_length)

    def logits(self, texts: Sequence[TokenisedText]) -> NDArray[np.float32]:
        """Return the logits of one batch, shape (texts, labels)."""
        return self.engine.compute(self.processor.batch(texts)).logits


def fit_inputs(engine: TorchEngine, inspected: InspectedTokenizer) -> LoadedClassifier:
    """Return the classifier with the inputs that its network needs: minimum length, token types.

    Raises:
        ModelRejected: The network computes no text.

    """
    classifier = LoadedClassifier(
        engine,
        inspected.text_tokenizer,
        inspected.settings,
        inspected.max_length,
        inspected.notes,
    )
    with _reject_compute_errors():
        first_logits = classifier.logits([classifier.processor.probe(MAX_TOKENS)])
    classifier = _with_min_length(replace(classifier, first_logits=first_logits))
    if not classifier.settings.token_types:
        return classifier
    return _without_idle_types(classifier, inspected)


def _with_min_length(classifier: LoadedClassifier) -> LoadedClassifier:
    """Return the classifier with the length to which shorter texts have to be padded."""
    shortest = min(classifier.tokenizer.encode(["a", "I", "5"]), key=lambda text: text.cost)
    for length in _MIN_LENGTHS:
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
    # Its error is raised where texts of any length are computed.
    return classifier


def _without_idle_types(
    classifier: LoadedClassifier, inspected: InspectedTokenizer
) -> LoadedClassifier:
    """Return the classifier without token types if its network answers the same without them."""
    (sample,) = classifier.tokenizer.encode(SENTENCES[3:4])
    if any(sample.types):
        return classifier
    tokenizer, settings = inspected.without_token_types()
    settings = settings.model_copy(update={"min_length": classifier.settings.min_length})
    plain = replace(classifier, settings=settings, tokenizer=tokenizer)
    with _reject_compute_errors():
        # GPT-2 takes a type for a token, and adds its embedding.
        same = _agree(plain.logits([sample]), classifier.logits([sample]))
    return plain if same else classifier


def choose_batching(classifier: LoadedClassifier, labels: int) -> LoadedClassifier:
    """Compute probe texts alone and in mixed batches; return how the classifier is to be served.

    Raises:
        ModelRejected: A text's answer depends on earlier computations, or is not finite.

    """
    with reject_load_errors("tokenizer"):
        probes = _make_probes(classifier)
    alone = _compute_alone(classifier, probes, labels)
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


def _compute_alone(
    classifier: LoadedClassifier, probes: Sequence[TokenisedText], labels: int
) -> NDArray[np.float32]:
    """Return each probe's logits, once they are seen to depend on the text alone."""
    # BigBird's attention is sparse until it meets a short text, and whole from then on.
    long, first = classifier.processor.probe(MAX_TOKENS), classifier.first_logits
    with _reject_compute_errors():
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
    return alone


def _paddings(classifier: LoadedClassifier) -> Iterator[TokenizationSettings]:
    """Yield ways to pad: the tokenizer's id first, then the network's, each on both sides.

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


def _make_probes(classifier: LoadedClassifier) -> list[TokenisedText]:
    """Return real texts of many lengths, some of them with the model's special tokens in them."""
    texts = [*SENTENCES, *accumulate(SENTENCES, lambda text, sentence: f"{text} {sentence}")][:16]
    texts += PROBE_TEXTS[:: len(PROBE_TEXTS) // 7]
    encoded = [_shorten(text) for text in classifier.tokenizer.encode(texts) if not text.blank]
    return [*encoded, *insert_special_tokens(classifier)]


def insert_special_tokens(classifier: LoadedClassifier) -> list[TokenisedText]:
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


def _shorten(text: TokenisedText) -> TokenisedText:
    if text.cost <= PROBE_TOKENS:
        return text
    ids, types = text.ids, text.types
    end = PROBE_TOKENS - 1
    return TokenisedText([*ids[:end], ids[-1]], [*types[:end], types[-1]] if types else ())


def _depends_on_longest(classifier: LoadedClassifier) -> bool:
    """Return whether rotary positions are scaled by the longest text of a batch."""
    config = classifier.engine.network.config
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    scalings = [scaling, *scaling.values()] if isinstance(scaling, dict) else []
    kinds = {
        entry.get("rope_type", entry.get("type")) for entry in scalings if isinstance(entry, dict)
    }
    return bool(kinds & {"longrope", "dynamic"})


def _is_batchable(
    classifier: LoadedClassifier, probes: Sequence[TokenisedText], alone: NDArray[np.float32]
) -> bool:
    """Return whether texts score in batches of several sizes as they do alone."""
    random = np.random.default_rng(0)
    for size, batches in _BATCHES.items():
        for _ in range(batches):
            indices = random.permutation(len(probes))[:size]
            try:
                logits = classifier.logits([probes[index] for index in indices])
            except Exception:  # noqa: BLE001  such as BART's, where the counts of </s> differ
                return False
            if not _agree(logits, alone[indices]):
                return False
    return True


def _agree(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return np.allclose(
        softmax(logits), softmax(expected), rtol=0, atol=_SCORE_TOLERANCE
    ) and np.allclose(logits, expected, rtol=_LOGIT_TOLERANCE, atol=_LOGIT_TOLERANCE)


@contextmanager
def _reject_compute_errors() -> Iterator[None]:
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


def _check_spread(logits: NDArray[np.float32], classifier: LoadedClassifier) -> None:
    """Reject a network that scores all texts the same."""
    if np.allclose(logits, logits[:1], rtol=_ROUNDING, atol=_ROUNDING):
        decoder = getattr(classifier.engine.network.config, "is_decoder", False)
        hint = "set is_decoder to false in config.json" if decoder else "fine-tune it"
        raise ModelRejected(
            "model",
            "gives the same scores for all texts",
            f"Check that it was trained, with transformers and one text at a time, or {hint}.",
        )


def _check_logits(logits: NDArray[np.float32], labels: int) -> None:
    finite = bool(np.isfinite(logits).all())
    if logits.shape[1] != labels or not finite:
        raise ModelRejected(
            "weights",
            f"give {logits.shape[1]} logits, finite: {finite}, for {labels} labels",
            "Check id2label in config.json, and that training did not diverge.",
        )
