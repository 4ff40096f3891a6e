"""`make acceptance SUITE=name`: run a suite in full, and write down what it found."""

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path

from tests.acceptance import (
    bench_gpu,
    blue_green,
    contract,
    drift,
    field,
    fuzz,
    gate,
    image,
    jwks,
    kill_worker,
    monitors,
    overload,
    poison,
    registration,
    soak,
    wheel,
    zoo,
)
from tests.acceptance.report import Report, console
from tests.servers import ROOT, quickstart_store

Suite = Callable[[Report, Path, Path], Coroutine[None, None, None]]
_SUITES: dict[str, Suite] = {
    "overload": overload.run,
    "kill_worker": kill_worker.run,
    "poison": poison.run,
    "soak": soak.run,
    "gate": gate.run,
    "fuzz": fuzz.run,
    "contract": contract.run,
    "jwks": jwks.run,
    "image": image.run,
    "wheel": wheel.run,
    "blue_green": blue_green.run,
    "drift": drift.run,
    "monitors": monitors.run,
    "bench_gpu": bench_gpu.run,
    "field": field.run,
    "registration": registration.run,
    "zoo": zoo.run,
}


def main() -> int:
    """Run the requested suites; 1 if a check fails."""
    parser = argparse.ArgumentParser(prog="make acceptance", description=__doc__)
    parser.add_argument("suite", choices=[*_SUITES, "all"])
    parser.add_argument(
        "--scale", type=float, default=1.0, help="the share of a suite's full size, for a try"
    )
    parser.add_argument("--only", choices=[*field.modules()], help="one module of the field suite")
    arguments = parser.parse_args()
    store = quickstart_store()
    suites = dict(_SUITES)
    if arguments.only:
        suites["field"] = partial(field.run, only=arguments.only)
    reports = [
        _run(name, suite, arguments.scale, store)
        for name, suite in suites.items()
        if arguments.suite in (name, "all")
    ]
    return 0 if all(report.passed for report in reports) else 1


def _run(name: str, suite: Suite, scale: float, store: Path) -> Report:
    console.print(f"{name}:")
    report = Report(name, scale)
    with tempfile.TemporaryDirectory(prefix="kaiten-") as folder:
        try:
            asyncio.run(suite(report, store, Path(folder)))
        except Exception as error:
            report.check("it ran to its end", f"{type(error).__name__}: {error}", passed=False)
            raise
        finally:
            path = report.write()
            console.print(
                f"{name}: {'passed' if report.passed else 'FAILED'}, see {path.relative_to(ROOT)}"
            )
    return report


if __name__ == "__main__":
    sys.exit(main())
