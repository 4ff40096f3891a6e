"""BentoML's supervisor, circus: no address from which to command it, and workers that come back.

circus runs any command that reaches its controller, a shell among them, and asks for no
credentials. BentoML binds the controller and the publisher of its events to TCP ports on loopback,
where every local account and every container of the same network can connect.
"""

import atexit
import functools
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, Protocol

import structlog

from kaiten.errors import SetupError

logger = structlog.get_logger("kaiten.service")
# What circus would listen with, by the parameters of its arbiter.
_LISTENERS = ("endpoint", "pubsub_endpoint", "multicast_endpoint", "stats_endpoint", "httpd")
_REQUIRED = {"watchers", "plugins", "statsd", *_LISTENERS}
_P = ParamSpec("_P")


class _Watcher(Protocol):
    """What starts the workers in circus, and starts another where one has ended."""

    respawn: bool
    spawn_process: Callable[..., object]
    hooks: dict[str, Callable[..., bool]]

    def is_stopping(self) -> bool: ...
    def is_stopped(self) -> bool: ...


def secure() -> None:
    """Keep every supervisor that this process makes off the network. Idempotent.

    Raises SetupError where BentoML or circus is not as this module expects: better no server than
    one that any local account commands.
    """
    try:
        from bentoml._internal.utils import circus as ours  # noqa: PLC0415
        from circus.arbiter import Arbiter  # type: ignore[import-untyped]  # noqa: PLC0415
        from circus.watcher import Watcher  # type: ignore[import-untyped]  # noqa: PLC0415

        expected = issubclass(ours.Arbiter, Arbiter) and callable(ours.create_standalone_arbiter)
        missing = _REQUIRED - inspect.signature(Arbiter.__init__).parameters.keys()
        expected = expected and not missing and callable(Watcher.spawn_process)
    except (ImportError, AttributeError):
        expected = False
    if not expected:
        raise SetupError(
            "The supervisor of this BentoML cannot be taken off the network, because it does not "
            "have the classes that Kaiten expects. Install the version in constraints.txt."
        )
    if not hasattr(Arbiter.__init__, "__wrapped__"):
        Arbiter.__init__ = _unreachable(Arbiter.__init__)


def _unreachable(init: Callable[_P, None]) -> Callable[_P, None]:
    """Return a constructor of arbiters that open no listener, whatever addresses they are given."""
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(*args: _P.args, **kwargs: _P.kwargs) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.arguments.update(_addresses(bound.arguments))
        for watcher in bound.arguments["watchers"]:
            _persist(watcher)
        init(*bound.args, **bound.kwargs)

    return construct


def _addresses(arguments: Mapping[str, object]) -> dict[str, object]:
    """Return addresses inside this process; for plugins, in a folder of this account alone.

    A plugin (the one of ``bentoml serve --reload``) is a process of its own that has to connect.
    """
    base = f"inproc://{id(arguments['self'])}"
    if arguments.get("plugins"):
        # Made with mode 0700, so that a socket in it is never within reach of others.
        folder = Path(tempfile.mkdtemp(prefix="kaiten-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        base = f"ipc://{folder}"
    closed: dict[str, object] = dict.fromkeys(_LISTENERS) | {"httpd": False, "statsd": False}
    return closed | {"endpoint": f"{base}/controller", "pubsub_endpoint": f"{base}/events"}


def _persist(watcher: _Watcher) -> None:
    """Have a watcher replace its processes whenever one ends, and log each end."""
    # In a container BentoML replaces none: one of two workers that is killed leaves half of them.
    watcher.respawn = True
    watcher.spawn_process = functools.partial(_spawn, watcher.spawn_process)
    watcher.hooks["after_reap"] = _log_end


def _spawn(spawn: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> object:
    """Start a process; one that cannot be started now is tried again at the next check.

    circus takes False for a reason to stop the processes that run as well.
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
