"""The results, stored as they come, with the conditions of the run."""

import json
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks import places

_PACKAGES = ("bentoml", "torch", "transformers", "onnxruntime", "tokenizers", "numpy", "uvicorn")
Record = dict[str, Any]


@dataclass
class Results:
    """A file of records, whole after each one, so that a run that is cut off can be reported."""

    path: Path
    conditions: Record
    records: list[Record] = field(default_factory=list)

    def add(self, kind: str, **facts: Any) -> Record:
        """Keep a record; numbers are rounded to what the measurement can tell."""
        rounded = {key: _rounded(value) for key, value in facts.items()}
        record = {"kind": kind, **rounded}
        self.records.append(record)
        self.save()
        return record

    def save(self) -> None:
        places.write_json(self.path, {"conditions": self.conditions, "records": self.records})

    @classmethod
    def load(cls, path: Path) -> "Results":
        read = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, read["conditions"], read["records"])

    def of(self, kind: str, **values: Any) -> list[Record]:
        """Return the records of a kind that have these values."""
        return [
            row
            for row in self.records
            if row["kind"] == kind and all(row.get(key) == value for key, value in values.items())
        ]


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def machine() -> Record:
    """Return what the numbers depend on: machine, system, commit and our own versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "os": platform.freedesktop_os_release().get("PRETTY_NAME", platform.system()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(_git("status", "--porcelain")),
        "versions": {name: version(name) for name in _PACKAGES if _installed(name)},
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((row.split(":")[1].strip() for row in lines if row.startswith("model name")), "?")


def _git(*options: str) -> str:
    # A copy on another machine may have neither git nor a history.
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(places.ROOT), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True
