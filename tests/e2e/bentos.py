"""Builds a real bento of the quickstart model."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import BIN, QUICKSTART, ROOT, copied_store, environment

MODEL = "support-intent:1.0.0"


@dataclass(frozen=True)
class Bento:
    """A bento, as the command describes it, and the environment that it was built in."""

    description: Mapping[str, Any]
    env: Mapping[str, str]

    @property
    def tag(self) -> str:
        return str(self.description["bento"])

    @property
    def folder(self) -> Path:
        return Path(self.description["folder"])


def kaiten(env: Mapping[str, str], *arguments: str) -> str:
    """Run a command that succeeds, or skip the test if no package index can be reached."""
    command = [str(BIN / "kaiten"), *arguments]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    if "No set of versions" in done.stderr:
        pytest.skip(f"an index of packages is needed to lock them: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(store: Path, folder: Path) -> Bento:
    """Validate and promote the quickstart model in a copy of a store, and build its bento."""
    env = environment(copied_store(store, folder / "bentoml"), folder / "home")
    rows = str(QUICKSTART / "data" / "test.jsonl")
    kaiten(env, "validate", MODEL, "--data", rows)
    kaiten(env, "promote", MODEL, "--to", "staging", "--reason", "a test")
    return Bento(json.loads(kaiten(env, "build", "--model", MODEL, "--json")), env)
