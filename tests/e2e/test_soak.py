"""Some thousand requests; `make acceptance SUITE=soak` sends 200,000 and looks for slopes."""

from pathlib import Path

import pytest

from tests.acceptance import soak
from tests.acceptance.places import serve

REQUESTS = 2000


async def test_every_one_of_many_requests_is_answered_and_counted(
    bentoml_home: Path, tmp_path: Path
) -> None:
    with serve(bentoml_home, tmp_path) as server:
        windows = await soak.send_in_windows(server, REQUESTS, 5)
        async with server.pool() as pool:
            metrics = await pool.ask(server.target.get("/metrics"))

    assert soak.count_statuses(windows) == {200: REQUESTS}
    assert metrics.total("model_requests_total") == REQUESTS


def test_slope_tells_growth_over_the_whole_run() -> None:
    rising = soak.Slope.of([100.0 + step for step in range(11)])
    level = soak.Slope.of([100.0, 101.0, 99.0, 101.0, 100.0, 99.0])

    assert rising.change == pytest.approx(10 / 105)
    assert rising.error == pytest.approx(0, abs=1e-9)
    assert abs(level.change) < 0.01
