"""More than the server can do, in short; `make acceptance SUITE=overload` measures it."""

from collections.abc import AsyncIterator, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from benchmarks.client import Pool
from tests.acceptance.load import Offer, closed_loop, open_loop
from tests.acceptance.places import WatchedServer, serve

# Full with two of the requests of 32 texts.
SMALL_QUEUE = {"KAITEN_BATCHING__MAX_QUEUE_ITEMS": "64", "KAITEN_GATEWAY__MAX_INPUTS": "64"}


@pytest.fixture(scope="module")
def small(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedServer]:
    with serve(bentoml_home, tmp_path_factory.mktemp("home"), SMALL_QUEUE) as server:
        yield server


@pytest.fixture
async def pool(small: WatchedServer) -> AsyncIterator[Pool]:
    async with small.pool() as pool:
        yield pool


@pytest.mark.parametrize(("texts_at_once", "requests"), [(1, 1000), (32, 200)])
async def test_what_is_too_much_is_refused_and_the_rest_is_answered(
    small: WatchedServer, pool: Pool, texts: list[str], texts_at_once: int, requests: int
) -> None:
    target = small.target
    if texts_at_once == 1:
        bodies = cycle([target.v1(text) for text in texts])
    else:
        bodies = cycle([target.v2(texts[at : at + 32]) for at in range(0, 1600, 32)])
    # All at once, as nearly as a client can.
    load = await open_loop(pool, bodies, Offer(requests * 100, 0.01, requests), lambda: None)
    after = await closed_loop(pool, iter([next(bodies)]), 1)

    assert len(load.answers) == requests
    assert load.failed == []
    assert load.accepted
    assert {answer.status for answer in load.refused} == {429}
    assert after.statuses == {200: 1}


async def test_short_timeouts_are_answered_504_and_leave_nothing_behind(
    small: WatchedServer, pool: Pool, texts: list[str]
) -> None:
    request = small.target.v2(texts[:32], X_Request_Timeout_Ms="1")
    load = await closed_loop(pool, iter([request] * 50), 2)
    after = await closed_loop(pool, iter([small.target.v2(texts[:32])]), 1)

    # Two at once: the second is refused at the door where the first one waits.
    assert load.statuses[504] > 0
    assert set(load.statuses) <= {429, 504}
    assert load.failed == []
    assert after.statuses == {200: 1}
