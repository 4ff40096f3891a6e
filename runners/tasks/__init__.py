"""Model families, one a file. ``text-classification`` is the module text_classification."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from kaiten.errors import ModelRejected
from runners.tasks.base import TaskModule


def task_names() -> list[str]:
    """Return the names of the tasks that there are, without importing them."""
    modules = iter_modules([str(Path(__file__).parent)])
    return sorted(module.name.replace("_", "-") for module in modules if module.name != "base")


def find_task(name: str) -> TaskModule:
    """Return the module of a task; ModelRejected for a name that there is not."""
    if name not in task_names():
        raise ModelRejected("task", f"{name!r} is not known", f"Known: {', '.join(task_names())}.")
    module: TaskModule = import_module(f"{__name__}.{name.replace('-', '_')}")
    return module
