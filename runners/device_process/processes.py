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
# One that fails as it starts is tried again after ever longer pauses; one that had run for longer
# than the longest of them is started at once.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 60.0
_COMMAND = (sys.executable, "-m", "cli", "device")


def own_folder() -> Path:
    """Make a folder for this server's sockets, which nobody else may enter; it goes as we do."""
    # Not under KAITEN_HOME: the path of a socket may have 108 bytes.
    folder = Path(tempfile.mkdtemp(prefix="kaiten-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def socket_of(settings: RunnerSettings, worker: int) -> Path:
    """Return where the device process of a worker listens; workers are numbered from 0."""
    if settings.sockets is None:
        reason = "is device, but nobody has started a device process; serve with bentoml serve"
        raise InvalidSettings([Detail("runners.process", reason)], "runners")
    return _socket(settings.sockets, place_of(settings, worker))


class DeviceProcesses:
    """Starts a process for each device that a worker is placed on, and another where one ends.

    They listen in the folder ``sockets``, find their models in the folder ``store``, and note their
    metrics in the folder ``metrics``.
    """

    def __init__(
        self, settings: RunnerSettings, workers: int, sockets: Path, store: Path, metrics: Path
    ) -> None:
        self._store = store
        self._environments: dict[Path, Mapping[str, str]] = {
            _socket(sockets, name): {
                "PROMETHEUS_MULTIPROC_DIR": str(metrics),
                # It sees this device alone.
                "CUDA_VISIBLE_DEVICES": name,
                "KAITEN_RUNNERS__DEVICE": "cuda",
            }
            for name in places(settings, workers)
        } or {_socket(sockets, None): {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}}

    def start(self) -> None:
        """Start them, and keep them for as long as this process lives."""
        for socket in self._environments:
            # The first one here: until it has begun, it holds whatever sockets this process opens,
            # and BentoML frees ports to take them itself right after.
            first = self._start(socket)
            threading.Thread(target=self._keep, args=(socket, first), daemon=True).start()

    def _keep(self, socket: Path, process: subprocess.Popen[bytes] | None) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            if process is not None:
                _wait_for(process, socket)
            lasted = time.monotonic() - started > _LAST_PAUSE_S
            pause_s = _FIRST_PAUSE_S if lasted else min(2 * pause_s, _LAST_PAUSE_S)
            time.sleep(pause_s)
            process = self._start(socket)

    def _start(self, socket: Path) -> subprocess.Popen[bytes] | None:
        """Start a process; None where that fails, for whatever reason."""
        # Its standard input ends when this process does, however that comes. In a session of its
        # own: Ctrl-C is for the workers, which still need it for what they hold.
        try:
            process = subprocess.Popen(  # noqa: S603  our own command
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
    # BentoML's supervisor may have reaped it, and then its code is not known: it reads as 0.
    logger.error("device_process_ended", device=socket.stem, code=code or None)


def _socket(folder: Path, device: str | None) -> Path:
    """Return where the process of a CUDA device listens, or of the CPU where there is none."""
    # The name of a MIG slice may have slashes in it.
    return folder / f"{(device or 'cpu').replace('/', '_')}.sock"
