"""A client that is created before a fork, as with gunicorn's --preload and Celery.

Threads of the parent send requests while it forks, and every child uses the same client object.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.acceptance.field.http_clients import reference_labels
from tests.acceptance.places import serve
from tests.acceptance.report import Report
from tests.servers import ROOT

BEFORE: dict[str, object] = {}
FORKS, CHILDREN = 300, 4
_LIMIT_S = 400


def count_outcomes(labels: dict[str, str], rows: list[list[str]]) -> Counter[str]:
    """Count the outcomes of requests, by parent and child."""
    ends: Counter[str] = Counter()
    for process, text, label in rows:
        is_right = label == labels.get(text)
        fault = "another's label" if label in labels.values() else f"an error: {label[:60]}"
        ends[f"{process}: {'right' if is_right else fault}"] += 1
    return ends


async def run(report: Report, store: Path, folder: Path) -> None:
    """Fork with a client of each kind, and compare every answer with a reference."""
    forks = max(5, round(FORKS * report.scale))
    with serve(store, folder / "home") as server:
        labels = await reference_labels(server, 100)
        url = f"http://127.0.0.1:{server.target.port}"
        # Half of the forks with each client.
        for kind, count in (("sync", forks - forks // 2), ("async", forks // 2)):
            orders = {
                "url": url,
                "kind": kind,
                "texts": [*labels],
                "forks": count,
                "children": CHILDREN,
                "requests": 1,
                "token": server.target.token,
            }
            rows = await asyncio.to_thread(_rows, orders)
            ends = count_outcomes(labels, rows)
            answered = ends["child: right"]
            report.check(
                f"{kind} client, {count} forks with {CHILDREN} children: every answer its own",
                dict(ends),
                passed=answered == count * CHILDREN
                and answered + ends["parent: right"] == len(rows),
            )


def _rows(orders: dict[str, object]) -> list[list[str]]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "client")])
    ended = subprocess.run(
        [sys.executable, "-m", "tests.unit.client.forking"],
        input=json.dumps(orders),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        timeout=_LIMIT_S,
        check=True,
    )
    rows: list[list[str]] = json.loads(ended.stdout)
    return rows
