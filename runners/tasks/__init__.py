"""Model families, one a package. ``text-classification`` is the package text_classification."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from kaiten.errors import ModelRejected
from runners.tasks.base import InspectionModule, TaskModule


def task_names() -> list[str]:
    """Return the names of the tasks that there are, without importing them."""
    modules = iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.replace("_", "-") for module in modules if module.ispkg)


def find_task(name: str) -> TaskModule:
    """Return how a task is served; ModelRejected for a name that there is not."""
    module: TaskModule = import_module(f"{_package(name)}.serving")
    return module


def find_inspection(name: str) -> InspectionModule:
    """Return how a task's models are inspected, with torch; ModelRejected for an unknown name."""
    module: InspectionModule = import_module(f"{_package(name)}.inspection")
    return module


def _package(name: str) -> str:
    if name not in task_names():
        raise ModelRejected("task", f"{name!r} is not known", f"Known: {', '.join(task_names())}.")
    return f"{__name__}.{name.replace('-', '_')}"
