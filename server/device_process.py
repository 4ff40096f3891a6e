"""The device process: holds the models on one device, and computes for the workers of a server."""

import asyncio
import os
import signal
import sys
import threading
from pathlib import Path

import structlog

from kaiten.errors import NotReady, SetupError
from kaiten.settings.environment import metrics_directory
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.snapshot import release_snapshot
from lifecycle.store import ModelStore
from monitors.logging import writer
from monitors.logging.setup import configure_logging
from monitors.metrics.definitions import Metrics
from runners.device_process.server import DeviceServer
from runners.registry import Registry
from server.models import describe, find_baselines, load_runner
from server.shutdown import leave

logger = structlog.get_logger("kaiten.device")


def run_device_process(socket: Path, store: Path) -> None:
    """Serve on a socket until standard input ends; exits the process."""
    import uvloop  # noqa: PLC0415  there is none on Windows, where the other commands run

    parent = _ParentWatch()
    settings = load_settings()
    release_snapshot()
    writer.detach_console()
    configure_logging(settings.logging)
    try:
        code = uvloop.run(
            _serve(settings, socket, ModelStore.at(store, settings.signatures), parent)
        )
    except SetupError as error:
        # The server's log gets a line like all others.
        logger.critical("device_process_failed", reason=error.message)
        code = 1
    # A normal exit would wait for threads that the device blocks.
    leave(code)


class _ParentWatch:
    """Detects the end of the parent process: standard input ends with it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        if self._loop is None:
            # No worker is served yet, and loading a model blocks everything else.
            leave(0)
        else:
            self._loop.call_soon_threadsafe(self._ended.set)

    async def wait_for_end(self) -> None:
        """Wait for the parent's end, which from now on does not exit this process by itself."""
        self._loop = asyncio.get_running_loop()
        await self._ended.wait()


async def _serve(settings: Settings, socket: Path, store: ModelStore, parent: _ParentWatch) -> int:
    """Serve until the parent has ended and all workers have left; return the exit code."""
    died = asyncio.Event()
    metrics = Metrics(metrics_directory())
    writer.report_drops_to(metrics.log_lines_dropped)
    registry = Registry()
    models = [store.get(model_tag) for model_tag in settings.serving.models]
    baselines = find_baselines(models, settings)
    for model in models:
        model_tag, baseline = model.card.tag, baselines[model.card.tag]
        observer = metrics.observer(model_tag)
        runner = load_runner(model, baseline, settings, observer, died.set, remote=True)
        registry.add(describe(model, baseline), runner)
    server = DeviceServer(registry)
    try:
        listener = await server.listen(socket)
    except NotReady:
        return 1
    # The workers need this process for their last requests, and end first.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent_ended = asyncio.create_task(parent.wait_for_end())
    runner_died = asyncio.create_task(died.wait())
    await asyncio.wait([parent_ended, runner_died], return_when=asyncio.FIRST_COMPLETED)
    listener.close()
    if died.is_set():
        return 1
    await server.wait_for_disconnects()
    return 0
