"""The same questions for every server, of the lengths that a shape promises."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from benchmarks.texts import (
    LONGEST,
    SHAPES,
    SHORTEST,
    counter,
    mixed_texts,
    requests,
    short_texts,
    write_bodies,
)

WORDS = [f"word{index}" for index in range(40)]
SHORT = [" ".join(WORDS[start : start + 4]) for start in range(36)]


def a_tokenizer() -> Tokenizer:
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def test_short_texts_come_once_each_and_always_in_the_same_order() -> None:
    assert short_texts([*SHORT, *SHORT]) == short_texts(list(reversed(SHORT)))
    assert sorted(short_texts(SHORT)) == sorted(SHORT)


def test_mixed_texts_span_the_lengths_evenly_by_ratio_in_every_block() -> None:
    tokenizer = a_tokenizer()
    lengths = [len(tokenizer.encode(text).ids) for text in mixed_texts(SHORT, tokenizer)]
    assert min(lengths) >= SHORTEST
    assert max(lengths) <= LONGEST
    middle = (SHORTEST * LONGEST) ** 0.5
    for start in range(0, len(lengths), 64):
        block = lengths[start : start + 64]
        assert 30 <= sum(length < middle for length in block) <= 34


def test_mixed_texts_are_the_same_each_time() -> None:
    assert mixed_texts(SHORT, a_tokenizer()) == mixed_texts(SHORT, a_tokenizer())


def test_requests_group_texts_and_count_their_tokens() -> None:
    texts = [f"{word} again" for word in WORDS[:4] for _ in range(16)]
    shape_requests = requests(SHAPES["32x4"], texts, [], counter(a_tokenizer()))
    assert [len(request.texts) for request in shape_requests] == [32, 32]
    assert [request.tokens for request in shape_requests] == [128, 128]


def test_the_mixed_shape_asks_mixed_texts() -> None:
    shape_requests = requests(SHAPES["mixed"], ["word1"], ["word2 word3"], counter(a_tokenizer()))
    assert [(request.texts, request.tokens) for request in shape_requests] == [
        (("word2 word3",), 4)
    ]


def test_bodies_are_one_json_a_line_whatever_is_in_a_text(tmp_path: Path) -> None:
    shape_requests = requests(
        SHAPES["1x1"], ["two\nlines", 'a "quote"'], [], counter(a_tokenizer())
    )
    write_bodies(tmp_path / "made" / "bodies", shape_requests, lambda texts: {"text": texts[0]})
    lines = (tmp_path / "made" / "bodies").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["two\nlines", 'a "quote"']
