"""Texts that are not what a model was validated on, each in a way of its own."""

import json
import pydoc_data.topics
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from runners.tasks.text_classification.serving import TextProcessor, load_processor
from runners.tokenization import TOKENIZER_FILE, FastTokenizer, TokenizationSettings

Texts = Sequence[str]
_SENTENCE_END = re.compile(r"(?<=[.?])\s+")
_WORDS = range(4, 31)


@dataclass(frozen=True)
class Shift:
    """A change of texts or of what tokenises them, and which features are its cause.

    ``share`` of a window comes from the changed texts, the rest as usual.
    """

    causes: frozenset[str]
    texts: Callable[[Texts], Texts] = lambda texts: texts
    processor: Callable[[Path, int], TextProcessor] = load_processor
    share: float = 1.0


def other_domain_sentences(texts: Texts) -> Texts:
    """Return sentences of another domain, Python's own manual, of about the same lengths."""
    sentences = {
        sentence
        for topic in pydoc_data.topics.topics.values()
        for sentence in _SENTENCE_END.split(" ".join(topic.split()))
        if len(sentence.split()) in _WORDS
    }
    candidates = sorted(sentences, key=lambda sentence: (len(sentence), sentence))
    target_lengths = sorted(map(len, texts))
    # As many as there are; each takes the nearest length that is left.
    step = max(1, -(-len(target_lengths) * 3 // len(candidates)))
    chosen = []
    for length in target_lengths[::step]:
        lengths = np.array([len(sentence) for sentence in candidates])
        chosen.append(candidates.pop(int(np.abs(lengths - length).argmin())))
    return chosen


def _without_lower_case(folder: Path, max_length: int) -> TextProcessor:
    """Load a model's tokenizer without its lower-casing, so that it knows no capitals."""
    parts = json.loads((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
    parts["normalizer"]["lowercase"] = False
    tokenizer = FastTokenizer(Tokenizer.from_str(json.dumps(parts)), max_length)
    return TextProcessor(tokenizer, TokenizationSettings.read(folder), max_length)


SHIFTS: Mapping[str, Shift] = {
    "a fifth from another domain": Shift(
        frozenset({"distance"}), other_domain_sentences, share=0.2
    ),
    "lengths doubled": Shift(
        frozenset({"text_length", "token_count"}),
        lambda texts: [f"{text} {text}" for text in texts],
    ),
    "a broken tokenizer": Shift(frozenset({"unknown_share"}), processor=_without_lower_case),
    "all upper case": Shift(
        frozenset({"upper_case_share"}), lambda texts: [text.upper() for text in texts]
    ),
}
