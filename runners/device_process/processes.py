"""The device processes of a server, kept alive by the process that starts its workers."""

import atexit
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.environment import ROOT, environment_for
from kaiten.settings.models import RunnerSettings
from kaiten.settings.snapshot import snapshot_descriptors
from runners.engines.placement import place_of, places

logger = structlog.get_logger(__name__)
# A process that fails at its start is restarted with exponential backoff, which starts anew after a
# process that ran for longer than the maximum.
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 1.0, 60.0
_COMMAND = (sys.executable, "-m", "cli", "device")


def make_socket_folder() -> Path:
    """Make a private folder for this server's sockets, which is removed as the process ends."""
    # Not under KAITEN_HOME, because the path of a socket may have at most 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="kaiten-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def socket_of(settings: RunnerSettings, worker: int) -> Path:
    """Return the socket of a worker's device process; workers are numbered from 0."""
    if settings.sockets is None:
        reason = "is device, but no device process was started; serve with bentoml serve"
        raise InvalidSettings([Detail("runners.process", reason)], "runners")
    return _socket(settings.sockets, place_of(settings, worker))


class DeviceProcesses:
    """Starts a process for each device of a worker, and replaces one that ends.

    They listen in the folder ``sockets``, load models from the folder ``store``, and write their
    metrics into the folder ``metrics``.
    """

    def __init__(
        self, settings: RunnerSettings, workers: int, sockets: Path, store: Path, metrics: Path
    ) -> None:
        self._store = store
        self._environments: dict[Path, Mapping[str, str]] = {
            _socket(sockets, name): {
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                # It sees this device only.
                "CUDA_VISIBLE_DEVICES": name,
                "KAITEN_RUNNERS__DEVICE": "cuda",
            }
            for name in places(settings, workers)
        } or {_socket(sockets, None): {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}}

    def start(self) -> None:
        """Start them, and restart them for as long as this process lives."""
        for socket in self._environments:
            # The first one in this thread: until it has started, it inherits the sockets that this
            # process opens, and BentoML frees ports to bind them itself right after.
            first = self._start(socket)
            threading.Thread(target=self._keep_running, args=(socket, first), daemon=True).start()

    def _keep_running(self, socket: Path, process: subprocess.Popen[bytes] | None) -> None:
        backoff_s = _MIN_BACKOFF_S
        while True:
            started = time.monotonic()
            if process is not None:
                _wait_for(process, socket)
            ran_long = time.monotonic() - started > _MAX_BACKOFF_S
            backoff_s = _MIN_BACKOFF_S if ran_long else min(2 * backoff_s, _MAX_BACKOFF_S)
            time.sleep(backoff_s)
            process = self._start(socket)

    def _start(self, socket: Path) -> subprocess.Popen[bytes] | None:
        """Start a process; return None if that fails."""
        # Its standard input ends with this process in any case. It has its own session, because
        # Ctrl-C is for the workers, which need it for their last requests.
        try:
            process = subprocess.Popen(  # noqa: S603  a fixed command
                [*_COMMAND, str(socket), str(self._store)],
                env=environment_for(dict(self._environments[socket])),
                cwd=ROOT,
                stdin=subprocess.PIPE,
                pass_fds=snapshot_descriptors(),
                start_new_session=True,
            )
        except Exception:
            logger.exception("device_process_not_started", device=socket.stem)
            return None
        logger.info("device_process_started", device=socket.stem, process=process.pid)
        return process


def _wait_for(process: subprocess.Popen[bytes], socket: Path) -> None:
    with process:
        code = process.wait()
    # If BentoML's supervisor has reaped it, its code is unknown, and reads as 0.
    logger.error("device_process_ended", device=socket.stem, code=code or None)


def _socket(folder: Path, device: str | None) -> Path:
    """Return the socket for the process of a CUDA device, or of the CPU."""
    # The name of a MIG slice may contain slashes.
    return folder / f"{(device or 'cpu').replace('/', '_')}.sock"
