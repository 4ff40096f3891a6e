"""Where the benchmarks keep what they make: under .kaiten/benchmarks, or BENCHMARKS_HOME."""

import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("BENCHMARKS_HOME", ROOT / ".kaiten" / "benchmarks")).resolve()
MODEL = HOME / "model"
STORE = HOME / "bentoml"
# What makes a process of Kaiten's touch nothing of the user's.
KAITEN = {"BENTOML_HOME": str(STORE), "KAITEN_HOME": str(HOME / "home")}
BODIES = HOME / "bodies"
LOGS = HOME / "logs"
ENVIRONMENTS = HOME / "peers"
PEERS = Path(__file__).parent / "peers"
RESULTS = Path(__file__).parent / "results"
# That which runs this, with all that it has installed.
PYTHON = Path(sys.executable)
_STEERING_PREFIXES = (
    "KAITEN_",
    "BENTOML_",
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VIRTUAL_ENV",
)


def environment(**changes: str) -> dict[str, str]:
    """Return this process's environment without what could steer a server, and with the changes."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith(_STEERING_PREFIXES)
    }
    return {**variables, **changes}


def write_json(path: Path, value: object) -> None:
    """Replace a file whole, so that a reader never meets half of it."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file whole, so that a reader never meets half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)
