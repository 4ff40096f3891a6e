"""The right labels: those that torch gives, one text at a time."""

import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.labels import Question

_QUESTIONS = 300
_MIXED = 40
# Under this distance between the two best logits, two right engines may differ.
_NEAR_TIE = 1e-3


@torch.inference_mode()
def questions(model: Path, short: Sequence[str], mixed: Sequence[str]) -> list[Question]:
    """Return texts of all lengths with torch's labels, near ties left out."""
    chance = random.Random(_QUESTIONS)
    alone = min(_QUESTIONS - _MIXED, len(short))
    texts = [*chance.sample(mixed, _MIXED), *chance.sample(short, alone)]
    chance.shuffle(texts)
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSequenceClassification.from_pretrained(model).eval()
    clear_questions: list[Question] = []
    for text in texts:
        logits = network(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
        best, next_best = logits.topk(2).values.tolist()
        if best - next_best >= _NEAR_TIE:
            clear_questions.append(Question(text, network.config.id2label[int(logits.argmax())]))
    return clear_questions
