"""How many of the right labels a server gives."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from benchmarks.servers import Running

_SINGLES = 204
_TOGETHER = 32
_AT_ONCE = 16
_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Question:
    """A text and its right label."""

    text: str
    label: str


def agreement(instance: Running, questions: Sequence[Question], *, batches: bool = True) -> float:
    """Return the share of right labels: most asked alone and at once, the rest by 32.

    A request that fails has no right label. Without ``batches`` all are asked alone.
    """
    alone = list(questions[:_SINGLES] if batches else questions)
    rest = questions[len(alone) :]
    requests = [[question] for question in alone]
    requests += [list(rest[i : i + _TOGETHER]) for i in range(0, len(rest), _TOGETHER)]
    with (
        httpx.Client(timeout=_LIMIT_S, trust_env=False) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        right = pool.map(lambda request: _right(instance, client, request), requests)
        return sum(right) / len(questions)


def _right(instance: Running, client: httpx.Client, request: Sequence[Question]) -> int:
    try:
        labels = instance.ask(client, [question.text for question in request])
    except (httpx.HTTPError, KeyError, ValueError, TypeError):
        return 0
    if len(labels) != len(request):
        return 0
    return sum(question.label == label for question, label in zip(request, labels, strict=True))
