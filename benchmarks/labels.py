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


def agreement(running: Running, asked: Sequence[Question], *, batches: bool = True) -> float:
    """Return the share of right labels: most asked alone and at once, the rest by 32.

    A request that fails has no right label. Without ``batches`` all are asked alone.
    """
    alone = list(asked[:_SINGLES] if batches else asked)
    rest = asked[len(alone) :]
    requests = [[question] for question in alone]
    requests += [list(rest[i : i + _TOGETHER]) for i in range(0, len(rest), _TOGETHER)]
    with (
        httpx.Client(timeout=_LIMIT_S, trust_env=False) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        right = pool.map(lambda request: _right(running, client, request), requests)
        return sum(right) / len(asked)


def _right(running: Running, client: httpx.Client, request: Sequence[Question]) -> int:
    try:
        given = running.ask(client, [question.text for question in request])
    except (httpx.HTTPError, KeyError, ValueError, TypeError):
        return 0
    if len(given) != len(request):
        return 0
    return sum(question.label == label for question, label in zip(request, given, strict=True))
