"""Closed and open loops, and what they brought."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus

from benchmarks.client import Answer, Pool
from benchmarks.load import percentile

# Past the server's own deadline: an answer that takes this long never comes.
_ANSWER_LIMIT_S = 90
_REFUSALS = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


@dataclass
class Load:
    """The answers to a load that was sent for so many seconds; ``unsent`` could not be sent."""

    start: float
    seconds: float
    answers: list[Answer] = field(default_factory=list)
    unsent: int = 0

    @property
    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(answer.status for answer in self.answers).items()))

    @property
    def accepted(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == HTTPStatus.OK]

    @property
    def refused(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status in _REFUSALS]

    @property
    def failed(self) -> list[Answer]:
        """Neither answered nor refused in the way that is promised."""
        return [
            answer
            for answer in self.answers
            if answer.status != HTTPStatus.OK
            and not (answer.status in _REFUSALS and answer.retry_after)
        ]

    def rate(self, first: float = 0, last: float = math.inf) -> float:
        """Return the accepted requests per second between two times, in seconds from the start."""
        last = min(last, self.seconds)
        within = (first <= answer.done - self.start < last for answer in self.accepted)
        return sum(within) / (last - first)

    def latency(self, share: float) -> float:
        """Return a percentile of the accepted requests' seconds; 0 of none."""
        return percentile([answer.seconds for answer in self.accepted], share)


async def closed_loop(
    pool: Pool, requests: Iterator[bytes], lanes: int, seconds: float = math.inf
) -> Load:
    """Keep so many requests in flight until the time is up or there are no more of them."""
    start = time.monotonic()
    answers: list[Answer] = []

    async def lane() -> None:
        for request in requests:
            answers.append(await pool.ask(request))
            if time.monotonic() - start >= seconds:
                break

    limit = _ANSWER_LIMIT_S + seconds if seconds < math.inf else None
    async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    elapsed_s = min(seconds, time.monotonic() - start)
    return Load(start, elapsed_s, answers)


@dataclass(frozen=True)
class Offer:
    """A load that does not wait for answers; over ``most`` in flight, a request is not sent."""

    rate: float
    seconds: float
    most: int


async def open_loop(
    pool: Pool, requests: Iterator[bytes], offer: Offer, sent_all: Callable[[], None]
) -> Load:
    """Send at the offered rate whatever the answers do; ``sent_all`` is called before the rest."""
    load = Load(time.monotonic(), offer.seconds)

    async def ask(due: float) -> None:
        load.answers.append(await pool.ask(next(requests), due))

    async with asyncio.timeout(offer.seconds + _ANSWER_LIMIT_S), asyncio.TaskGroup() as group:
        for number in range(round(offer.rate * offer.seconds)):
            due = load.start + number / offer.rate
            # Zero, where it is late, lets the answers come in.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if pool.busy < offer.most:
                group.create_task(ask(due))
            else:
                load.unsent += 1
        sent_all()
    return load
