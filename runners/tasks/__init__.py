"""Tasks, each a package: ``text-classification`` is text_classification."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from kaiten.errors import ModelRejected
from kaiten.model_kinds import SERVES, kind_of_task
from runners.tasks.base import InspectionModule, TaskModule


def task_names() -> list[str]:
    """Return the names of all tasks, without importing them."""
    modules = iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.replace("_", "-") for module in modules if module.ispkg)


def find_task(name: str) -> TaskModule:
    """Return a task's module for serving.

    Raises:
        ModelRejected: There is no task of this name.

    """
    module: TaskModule = import_module(f"{_package(name)}.serving")
    return module


def find_inspection(name: str) -> InspectionModule:
    """Return a task's module for registration, which imports torch.

    Raises:
        ModelRejected: There is no task of this name.

    """
    module: InspectionModule = import_module(f"{_package(name)}.inspection")
    return module


def _package(name: str) -> str:
    if name not in task_names():
        names = f"Known: {', '.join(task_names())}."
        if kind := kind_of_task(name):
            raise ModelRejected("task", f"{name!r} is not served", f"{kind.refusal}. {names}")
        remedy = f"Kaiten has no such task; {SERVES}. {names}"
        raise ModelRejected("task", f"{name!r} is not known", remedy)
    return f"{__name__}.{name.replace('-', '_')}"
