"""Servers for the suites: the checkout as it is, or a copy with the fragile task in it."""

import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Pool
from lifecycle.card import ModelCard
from tests.acceptance.target import Target
from tests.acceptance.watch import Watch
from tests.servers import ROOT, Server, environment, serving, until_all_ready

RESULTS = Path(__file__).parent / "results"
ONE_WORKER: Mapping[str, str] = {}
TWO_WORKERS = {"BENTOML_CONFIG_OPTIONS": "services.kaiten_service.workers=2"}
_FRAGILE = Path(__file__).parent / "fragile_classification"
_SERVED = ("cli", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten")
_FILES = ("service.py", "kaiten.yaml", "configuration.yaml", "bentofile.yaml", "README.md")
_STARTED = "Completed async startup hook"


@dataclass(frozen=True)
class WatchedServer:
    """A ready server, and what a suite needs to load and to watch it."""

    server: Server
    target: Target
    watch: Watch

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        """Yield a pool of connections, and close them."""
        pool = Pool(self.target.port)
        try:
            yield pool
        finally:
            await pool.close()

    def wait_for_starts(self, count: int) -> None:
        """Wait until so many workers have started since the server was."""
        self.server.process.wait_for(_STARTED, count)


@contextmanager
def serve(
    store: Path,
    home: Path,
    settings: Mapping[str, str] = ONE_WORKER,
    cwd: Path = ROOT,
    prefix: Sequence[str] = (),
) -> Iterator[WatchedServer]:
    """Serve from a folder with code; it is ready once all of its workers have started."""
    env = environment(store, home, PYTHONPATH=str(cwd), **settings)
    with serving(env, cwd=cwd, prefix=prefix) as server:
        target = Target(int(server.url.rpartition(":")[2]), server.token())
        watched_server = WatchedServer(server, target, Watch(server.process.popen.pid))
        watched_server.wait_for_starts(2 if settings.items() >= TWO_WORKERS.items() else 1)
        # A worker that has started may still be warming its models up.
        until_all_ready(server.url)
        yield watched_server


@contextmanager
def serve_fragile(
    store: Path, folder: Path, settings: Mapping[str, str] = ONE_WORKER
) -> Iterator[WatchedServer]:
    """Serve a copy of the checkout that has the fragile task, and a model of it."""
    code = folder / "code"
    for name in _SERVED:
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copyfile(ROOT / name, code / name)
    shutil.copytree(_FRAGILE, code / "runners" / "tasks" / _FRAGILE.name)
    models = _fragile_store(store, folder / "bentoml")
    with serve(models, folder / "home", settings, code) as server:
        yield server


def _fragile_store(store: Path, copy: Path) -> Path:
    """Return a store with the same models, whose cards name the fragile task."""
    shutil.copytree(store / "models", copy / "models")
    for path in copy.glob("models/*/*/model_card.json"):
        card = ModelCard.read(path.parent)
        path.unlink()
        changed = card.model_copy(update={"task": _FRAGILE.name.replace("_", "-")})
        changed.write(path.parent)
    return copy
