"""Keeps circus, BentoML's process supervisor, off the network and restarts workers that end.

It also logs the addresses that the server listens on.

circus executes any command that reaches its controller, shell commands included, without
authentication. BentoML binds the controller and the event publisher to TCP ports on loopback, where
every local account and every container in the same network namespace can connect.
"""

import atexit
import functools
import inspect
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import ParamSpec, Protocol

import structlog

from kaiten.errors import SetupError

logger = structlog.get_logger("kaiten.service")
start_logger = structlog.get_logger("kaiten.start")
# The parameters of circus' arbiter that make it listen.
_LISTENERS = ("endpoint", "pubsub_endpoint", "multicast_endpoint", "stats_endpoint", "httpd")
_REQUIRED = {"watchers", "plugins", "statsd", *_LISTENERS}
_P = ParamSpec("_P")


class _Arbiter(Protocol):
    """circus' arbiter: it listens on the sockets by name, and starts the watchers."""

    sockets: Mapping[str, socket.socket]


class _Watcher(Protocol):
    """circus' watcher: it starts the workers and replaces those that have ended."""

    respawn: bool
    spawn_process: Callable[..., object]
    hooks: dict[str, Callable[..., bool]]

    def is_stopping(self) -> bool: ...
    def is_stopped(self) -> bool: ...


def secure() -> None:
    """Patch circus so that no supervisor of this process listens on the network. Idempotent.

    Raises:
        SetupError: BentoML or circus lacks a class that this module patches. The server does not
            start, because any local account could command it.

    """
    try:
        from bentoml._internal.utils import circus as bentoml_circus  # noqa: PLC0415
        from circus.arbiter import Arbiter  # type: ignore[import-untyped]  # noqa: PLC0415
        from circus.watcher import Watcher  # type: ignore[import-untyped]  # noqa: PLC0415

        expected = issubclass(bentoml_circus.Arbiter, Arbiter) and callable(
            bentoml_circus.create_standalone_arbiter
        )
        missing = _REQUIRED - inspect.signature(Arbiter.__init__).parameters.keys()
        expected = expected and not missing and callable(Watcher.spawn_process)
        expected = expected and "cb" in inspect.signature(Arbiter.start).parameters
    except (ImportError, AttributeError):
        expected = False
    if not expected:
        raise SetupError(
            "The supervisor of this BentoML cannot be taken off the network, because it does not "
            "have the classes that Kaiten expects. Install the version in constraints.txt."
        )
    if not hasattr(Arbiter.__init__, "__wrapped__"):
        Arbiter.__init__ = _unreachable(Arbiter.__init__)
        Arbiter.start = announce_addresses(Arbiter.start)


def _unreachable(init: Callable[_P, None]) -> Callable[_P, None]:
    """Wrap the arbiter's constructor so that it ignores the addresses that it is given."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(*args: _P.args, **kwargs: _P.kwargs) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.arguments.update(_addresses(bound.arguments))
        for watcher in bound.arguments["watchers"]:
            _restart_workers(watcher)
        init(*bound.args, **bound.kwargs)

    return construct


def announce_addresses(start: Callable[..., object]) -> Callable[..., object]:
    """Wrap the arbiter's start so that it logs the addresses that it listens on.

    The callback that it is given logs BentoML's line, which names localhost for every address.
    """

    @functools.wraps(start)
    def begin(arbiter: _Arbiter, _callback: object = None) -> object:
        return start(arbiter, lambda _: _log_addresses(arbiter.sockets.values()))

    return begin


def _log_addresses(sockets: Iterable[socket.socket]) -> None:
    # Imported late: it reads BENTOML_CONFIG.
    from bentoml._internal.configuration.containers import BentoMLContainer  # noqa: PLC0415

    scheme = "https" if BentoMLContainer.ssl.enabled.get() else "http"
    for listener in sockets:
        if listener.family != socket.AF_UNIX:
            host, port = listener.getsockname()[:2]
            netloc = f"[{host}]:{port}" if listener.family == socket.AF_INET6 else f"{host}:{port}"
            start_logger.info("listening", address=f"{scheme}://{netloc}")


def _addresses(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return addresses inside this process or, if there are plugins, in a private folder.

    A plugin, such as that of ``bentoml serve --reload``, is a separate process that must connect.
    """
    base = f"inproc://{id(arguments['self'])}"
    if arguments.get("plugins"):
        # mkdtemp makes it with mode 0700, so that no other account can reach a socket in it.
        folder = Path(tempfile.mkdtemp(prefix="kaiten-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        base = f"ipc://{folder}"
    closed: dict[str, object] = dict.fromkeys(_LISTENERS) | {"httpd": False, "statsd": False}
    return closed | {"endpoint": f"{base}/controller", "pubsub_endpoint": f"{base}/events"}


def _restart_workers(watcher: _Watcher) -> None:
    """Make a watcher replace each process that ends, and log it."""
    # In a container BentoML turns this off: of two workers, one would be left after a crash.
    watcher.respawn = True
    watcher.spawn_process = functools.partial(_spawn, watcher.spawn_process)
    watcher.hooks["after_reap"] = _log_end


def _spawn(spawn: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> object:
    """Start a process, or log the failure and let circus try again at its next check.

    It returns True in place of False, on which circus would stop the running processes too.
    """
    started = spawn(*args, **kwargs)
    if started is False:
        logger.error("worker_not_started", remedy="the limits on processes, memory and open files")
        return True
    return started


def _log_end(watcher: _Watcher, process_pid: int, exit_code: int | None, **_: object) -> bool:
    if not (watcher.is_stopping() or watcher.is_stopped()):
        logger.error("worker_ended", process=process_pid, code=exit_code)
    return True
