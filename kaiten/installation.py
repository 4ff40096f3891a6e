"""How to add packages to this installation, and which commands need a checkout or Unix."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires
from importlib.util import find_spec

from packaging.requirements import Requirement

from kaiten.errors import SetupError
from kaiten.settings.environment import is_bento, is_checkout

# On PyPI, `kaiten` is another project.
DISTRIBUTION = "kaiten-serving"
# In double quotes, anything else reaches the command from any shell, also on Windows.
_UNQUOTED = re.compile(r"[\w./:\\+-]+")


def missing_extra(error: ModuleNotFoundError, extra: str) -> SetupError:
    """Return the error for a missing package of an extra, with the command that installs it."""
    return SetupError(f"{error.name} is not installed. {extra_remedy(extra)}")


def extra_remedy(extra: str) -> str:
    """Return how to install the packages of an extra of pyproject.toml, as a sentence.

    It names the packages themselves: the name of Kaiten's distribution is not on an index.
    """
    try:
        lines = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        lines = []
    if requirements := [*_requirements_of(extra, [*map(Requirement, lines)])]:
        return f"Run: {install_command(requirements)}"
    if is_bento():
        return (
            "A bento has the packages that a server needs: build it with kaiten build, which adds "
            "those of every setting, and run other commands where Kaiten is installed"
        )
    return "In the checkout, run: make env"


def install_command(requirements: Iterable[str]) -> str:
    """Return the shell command that installs packages into the environment of this Python.

    pip is missing in an environment that uv has made.
    """
    python, packages = _quote(sys.executable), " ".join(map(_quote, requirements))
    if find_spec("pip") is None:
        return f"uv pip install --python {python} {packages}"
    return f"{python} -m pip install {packages}"


def require_checkout(action: str) -> None:
    """Check that this code is in a checkout, and not in a bento or installed from a wheel.

    Raises:
        SetupError: It is not, and ``action`` needs the files of a checkout.

    """
    if not is_checkout():
        raise SetupError(
            f"Kaiten cannot {action} without a checkout. Use the command of a checkout, "
            ".venv/bin/kaiten, which make env installs."
        )


def require_unix(action: str) -> None:
    """Check that this is not Windows.

    Raises:
        SetupError: It is, and ``action`` does not work there.

    """
    if sys.platform == "win32":
        raise SetupError(
            f"Kaiten cannot {action} on Windows. Run this command in WSL 2, or on Linux or macOS."
        )


def _requirements_of(extra: str, requirements: Sequence[Requirement]) -> Iterator[str]:
    """Yield the requirements that only this extra adds, and those of the extras that it names."""
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue
        if not marker.evaluate({"extra": extra}):
            continue
        if requirement.name == DISTRIBUTION:
            for named in sorted(requirement.extras):
                yield from _requirements_of(named, requirements)
        else:
            yield str(requirement).partition(";")[0]


def _quote(word: str) -> str:
    return word if _UNQUOTED.fullmatch(word) else f'"{word}"'
