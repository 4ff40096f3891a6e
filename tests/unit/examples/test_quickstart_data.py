"""The quickstart's data keeps to what it promises."""

import json
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "data"
INTENTS = 14


def rows(name: str) -> list[dict[str, str]]:
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("name", "least"), [("train", 40), ("test", 15)])
def test_enough_utterances_of_every_intent(name: str, least: int) -> None:
    counts = Counter(row["label"] for row in rows(name))
    assert len(counts) == INTENTS
    assert min(counts.values()) >= least


@pytest.mark.parametrize("name", ["train", "test"])
def test_utterances_have_3_to_60_words_and_vary(name: str) -> None:
    lengths = [len(row["text"].split()) for row in rows(name)]
    assert 3 <= min(lengths) <= 4
    assert 45 <= max(lengths) <= 60


def test_no_utterance_stands_twice_or_in_both_sets() -> None:
    texts = [row["text"].casefold() for name in ("train", "test") for row in rows(name)]
    assert len(set(texts)) == len(texts)


def test_no_template_opens_more_than_two_in_a_hundred() -> None:
    texts = [row["text"].casefold() for row in rows("train")]
    openings = Counter(" ".join(text.split()[:3]) for text in texts)
    assert max(openings.values()) <= len(texts) * 0.02
