"""A worker that ends under load; `make acceptance SUITE=kill_worker` is the longer form."""

from pathlib import Path

from tests.acceptance import kill_worker
from tests.acceptance.places import TWO_WORKERS, serve, serve_fragile

FEW = 100


async def test_killed_worker_comes_back_and_costs_only_what_it_held(
    bentoml_home: Path, tmp_path: Path
) -> None:
    with serve(bentoml_home, tmp_path, TWO_WORKERS) as server:
        outcome = await kill_worker.kill_worker(server, FEW)

    assert outcome.rate_ratio_meanwhile > 0
    assert outcome.failures_elsewhere == []
    assert outcome.on_one_connection <= 1
    assert {answer.status for answer in outcome.bad} <= {0}
    assert outcome.started != outcome.ended
    assert (outcome.ready.status, outcome.answered.status) == (200, 200)


async def test_worker_whose_batcher_dies_ends_and_another_takes_its_place(
    bentoml_home: Path, tmp_path: Path
) -> None:
    with serve_fragile(bentoml_home, tmp_path, TWO_WORKERS) as server:
        outcome, fatal, red = await kill_worker.break_batcher(server, FEW)
        log = server.server.process.log

    assert fatal.status == 503
    # The worker may close the connection before it answers.
    assert red.status in {0, 503} or red.port != fatal.port
    assert outcome.failures_elsewhere == []
    assert {answer.status for answer in outcome.bad} <= {0, 503}
    assert (outcome.ready.status, outcome.answered.status) == (200, 200)
    assert "batcher_died" in log
