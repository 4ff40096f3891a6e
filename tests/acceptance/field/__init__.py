"""Faults, load and attacks against a running server: one module for each kind.

A module defines ``BEFORE``, the baseline figures of commit d62cd7b by the names of its checks, and
``async def run(report, store, folder)``, which adds its checks to the report.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from tests.acceptance.report import Report


def modules() -> Mapping[str, ModuleType]:
    """Return the modules of this suite by name, in alphabetical order."""
    return {
        info.name: importlib.import_module(f"{__name__}.{info.name}")
        for info in pkgutil.iter_modules(__path__)
    }


async def run(report: Report, store: Path, folder: Path, only: str | None = None) -> None:
    """Run every module, or only the one named; a failure does not stop the others."""
    for name, module in modules().items():
        if only not in (None, name):
            continue
        report.tell(f"before: {name}", **module.BEFORE)
        module_folder = folder / name
        module_folder.mkdir()
        try:
            await module.run(report, store, module_folder)
        except Exception as error:  # noqa: BLE001  reported, and the other modules run
            report.check(
                f"{name}: runs to its end", f"{type(error).__name__}: {error}", passed=False
            )
