"""An update of one host under load: three times forward and back, with a bento for each version."""

import asyncio
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.acceptance.report import Report
from tests.e2e.bentos import MODEL, Bento, build, kaiten
from tests.e2e.blue_green import Traffic, hosting
from tests.servers import QUICKSTART

_ROUNDS = 3
# In each round, over both directions.
_REQUESTS = 5_000
_NEXT = "support-intent:1.1.0"
_NETWORK = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


async def run(report: Report, store: Path, folder: Path) -> None:
    """Build two bentos, and switch between them."""
    await asyncio.to_thread(_run, report, store, folder)


def _run(report: Report, store: Path, folder: Path) -> None:
    first = build(store, folder)
    tags = {"blue": first.tag, "green": _build_next(first, folder)}
    report.tell("bentos", **tags)
    requests = round(_REQUESTS * report.scale)
    for number in range(1, _ROUNDS + 1):
        host_folder = folder / f"host-{number}"
        host_folder.mkdir()
        _switch(report, number, host_folder, first.env, tags, requests)


def _build_next(first: Bento, folder: Path) -> str:
    """Release the same network as the next version, while the first stays in production."""
    network = folder / "network"
    network.mkdir()
    for name in _NETWORK:
        shutil.copy(Path(first.env["BENTOML_HOME"]) / "models/support-intent/1.0.0" / name, network)
    env, reason = first.env, ("--reason", "an acceptance test")
    kaiten(env, "promote", MODEL, "--to", "production", *reason)
    named = ("--name", "support-intent", "--version", "1.1.0", "--task", "text-classification")
    kaiten(env, "register", str(network), *named)
    kaiten(env, "validate", _NEXT, "--data", str(QUICKSTART / "data" / "test.jsonl"))
    kaiten(env, "promote", _NEXT, "--to", "staging", *reason)
    description: Mapping[str, object] = json.loads(kaiten(env, "build", "--model", _NEXT, "--json"))
    return str(description["bento"])


def _switch(
    report: Report,
    number: int,
    folder: Path,
    env: Mapping[str, str],
    tags: Mapping[str, str],
    requests: int,
) -> None:
    with hosting(folder, env, tags) as host:
        host.run("switch", "blue")
        traffic = Traffic(host.url, host.token("predict"))
        with traffic.flowing():
            for instance in ("green", "blue"):
                traffic.wait_for(requests // 4)
                host.run("switch", instance)
                traffic.wait_for(requests // 4)
            traffic.wait_for(max(0, requests - traffic.requests))
        codes = {instance: host.exit_code(instance) for instance in tags}
    answers = host.answers()
    report.tell(
        f"round {number}",
        requests=traffic.requests,
        answers={f"{instance} {status}": count for (instance, status), count in answers.items()},
        failures=traffic.failures[:5],
    )
    served = min(answers["blue", 200], answers["green", 200])
    report.check(
        f"round {number}: no request fails, forward and back",
        f"{len(traffic.failures)} of {traffic.requests}",
        passed=not traffic.failures and traffic.requests >= requests and served > 0,
    )
    report.check(
        f"round {number}: every answer is a 200 of an instance",
        sum(count for (instance, status), count in answers.items() if status != 200),
        passed={status for _, status in answers} == {200} and not answers["none", 200],
    )
    report.check(
        f"round {number}: the instance that was stopped ended in good order",
        str(codes),
        passed=codes == {"green": 0, "blue": None},
    )
