"""One text that fails its batch, among many that do not."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.client import Answer
from tests.acceptance.fragile_classification.serving import POISON
from tests.acceptance.load import closed_loop
from tests.acceptance.places import WatchedServer, serve_fragile
from tests.acceptance.report import Report
from tests.servers import quickstart_texts

# Their requests fit into the queue: a rejection is not a failure, but would count as one.
LANES = 32
_SIZES = (1, 1, 1, 2, 3, 5, 8, 13, 32)
_CLOSE = 1e-4
_AT_ONCE = 200
_SEED = 20261122


@dataclass
class Outcome:
    """What requests got whose texts were known, one of them poisoned."""

    requests: int
    statuses: dict[int, int]
    code: str
    with_poison: bool
    wrong: int
    batch_failures: int
    logged_texts: list[str]


async def send_poison(server: WatchedServer, inputs: int) -> Outcome:
    """Ask with one poisoned text among so many, in requests of mixed sizes, all at once."""
    texts = quickstart_texts()[:inputs]
    expected = await _predictions_by_text(server, texts)
    chance = random.Random(_SEED)
    texts[chance.randrange(inputs)] += f" {POISON}"
    parts = _parts(texts, chance)
    parts_by_name = {f"part-{number}": part for number, part in enumerate(parts)}
    requests = [server.target.v2(part, X_Request_ID=name) for name, part in parts_by_name.items()]
    async with server.pool() as pool:
        load = await closed_loop(pool, iter(requests), LANES)
        metrics = await pool.ask(server.target.get("/metrics"))
    bad = [answer for answer in load.answers if answer.status != 200]
    error = json.loads(bad[0].body)["error"] if bad and bad[0].body else {}
    failed = parts_by_name.get(str(error.get("request_id")), [])
    wrong = sum(not _is_right(answer, parts_by_name, expected) for answer in load.accepted)
    log = server.server.process.log
    return Outcome(
        requests=len(parts),
        statuses=dict(Counter(answer.status for answer in load.answers)),
        code=str(error.get("code")),
        with_poison=any(POISON in text for text in failed),
        wrong=wrong,
        batch_failures=int(metrics.total("kaiten_batch_failures_total")),
        # Texts of a word or two may be part of a log's own words.
        logged_texts=[
            text for text in [*texts, POISON] if text in log and (text == POISON or " " in text)
        ],
    )


async def _predictions_by_text(server: WatchedServer, texts: Sequence[str]) -> dict[str, Any]:
    """Return what each text gets while nothing is poisoned."""
    starts = range(0, len(texts), _AT_ONCE)
    parts = [texts[at : at + _AT_ONCE] for at in starts]
    async with server.pool() as pool:
        load = await closed_loop(pool, iter([server.target.v2(part) for part in parts]), 1)
    predictions = [
        row for answer in load.accepted for row in json.loads(answer.body)["predictions"]
    ]
    return dict(zip(texts, predictions, strict=True))


def _parts(texts: Sequence[str], chance: random.Random) -> list[list[str]]:
    parts, at = [], 0
    while at < len(texts):
        size = chance.choice(_SIZES)
        parts.append([*texts[at : at + size]])
        at += size
    return parts


def _is_right(answer: Answer, parts: dict[str, list[str]], expected: dict[str, Any]) -> bool:
    body = json.loads(answer.body)
    texts = parts[body["request_id"]]
    return len(texts) == len(body["predictions"]) and all(
        row["label"] == expected[text]["label"]
        and abs(row["score"] - expected[text]["score"]) < _CLOSE
        for text, row in zip(texts, body["predictions"], strict=True)
    )


async def run(report: Report, store: Path, folder: Path) -> None:
    inputs = max(50, round(1000 * report.scale))
    with serve_fragile(store, folder) as server:
        outcome = await send_poison(server, inputs)
    report.tell(
        "poison", inputs=inputs, **{**vars(outcome), "logged_texts": len(outcome.logged_texts)}
    )
    answered_requests = outcome.requests - 1
    report.check(
        "exactly one error, 500 inference_failed, for the request with the poison",
        f"{outcome.statuses} {outcome.code}",
        passed=outcome.statuses == {200: answered_requests, 500: 1}
        and outcome.code == "inference_failed"
        and outcome.with_poison,
    )
    report.check("all other answers are right", f"{outcome.wrong} wrong", passed=not outcome.wrong)
    report.check("no text in the log", len(outcome.logged_texts), passed=not outcome.logged_texts)
