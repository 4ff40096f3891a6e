"""The real quickstart model, made once for each version of its sources, and one shared server."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.house import ROOT, Server, environment, serving

QUICKSTART = ROOT / "examples" / "quickstart"


@pytest.fixture(scope="session")
def bentoml_home() -> Path:
    """A model store with the quickstart model; made by its own script where it is not there yet."""
    sources = sorted([QUICKSTART / "train.py", *(QUICKSTART / "data").glob("*.jsonl")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    home = ROOT / ".kaiten" / "tests" / f"bentoml-{digest}"
    if not (home / "models" / "support-intent" / "1.0.0").exists():
        for outdated in home.parent.glob("bentoml-*"):
            shutil.rmtree(outdated)
        home.mkdir(parents=True)
        command = [sys.executable, str(QUICKSTART / "train.py")]
        subprocess.run(command, env=environment(home, home), check=True, cwd=ROOT)
    return home


@pytest.fixture(scope="session")
def server(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, with two workers."""
    home = tmp_path_factory.mktemp("home")
    env = environment(
        bentoml_home, home, BENTOML_CONFIG_OPTIONS="services.kaiten_service.workers=2"
    )
    with serving(env) as server:
        server.process.wait_for("Completed async startup hook", count=2)
        yield server


@pytest.fixture(scope="session")
def token(server: Server) -> str:
    return server.token()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Two thousand different texts: the quickstart's, and its shortest in pairs."""
    rows = [
        json.loads(line)["text"]
        for name in ("test", "train")
        for line in (QUICKSTART / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    shortest = sorted(rows, key=len)[:50]
    pairs = (f"{first} {second}" for first in shortest for second in shortest)
    return list(dict.fromkeys([*rows, *pairs]))[:2000]
