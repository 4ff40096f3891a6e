"""Writes lines to the console and to log files asynchronously, on threads of their own.

Code that logs, prints or warns only puts a line into a bounded queue, so that a full pipe, a paused
terminal or a slow disk delays no request. Lines that do not fit are dropped and counted, and a
notice before the next written line says how many are missing.
"""

import atexit
import io
import json
import math
import os
import select
import stat
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TextIO

# The bytes that may wait for one target, and the overhead of a line in them.
_MAX_BYTES = 4 << 20
_LINE_BYTES = 200
# Text without a newline is written once it is longer than this.
_MAX_PARTIAL = 1 << 16
_FLUSH_S = 2.0
_POLL_MS = 1000
# By time.monotonic(): set at exit, so that all waits share one limit.
_exit_deadline = math.inf

_writers: "weakref.WeakSet[LineWriter]" = weakref.WeakSet()


class _Drops:
    """Counts dropped lines by target, and buffers the counts until there is a metric."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._report: Callable[[str, int], None] | None = None

    def add(self, target: str) -> None:
        if self._report is not None:
            self._report(target, 1)
        else:
            self._counts[target] += 1

    def report_to(self, report: Callable[[str, int], None]) -> None:
        self._report = report
        for target, count in self._counts.items():
            report(target, count)
        self._counts.clear()


_drops = _Drops()


def report_drops_to(report: Callable[[str, int], None]) -> None:
    """Call ``report`` with the target and the number of lines whenever lines are dropped."""
    _drops.report_to(report)


class LineWriter:
    """Writes lines in order, on a thread that starts with the first line.

    ``write`` takes a line with its newline, may block, and raises OSError if the line is lost. A
    forked process starts with an empty queue, because the parent writes the waiting lines.
    """

    def __init__(self, target: str, write: Callable[[str], None]) -> None:
        self._target = target
        self._write = write
        self._reset()
        _writers.add(self)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        # Each line with the number of lines dropped before it.
        self._lines: deque[tuple[int, str]] = deque()
        self._bytes = 0
        self._dropped = 0
        self._writing = False
        self._thread: threading.Thread | None = None

    def put(self, line: str) -> None:
        """Queue a line, or drop and count it if the queue is full; never blocks."""
        cost = len(line) + _LINE_BYTES
        with self._changed:
            if (self._lines and self._bytes + cost > _MAX_BYTES) or not self._started():
                self._dropped += 1
                dropped = True
            else:
                self._lines.append((self._dropped, line))
                self._dropped, dropped = 0, False
                self._bytes += cost
                self._changed.notify_all()
        if dropped:
            _drops.add(self._target)

    def drain(self, timeout_s: float = _FLUSH_S) -> bool:
        """Wait until all lines are written, at most ``timeout_s``; return whether they are."""
        timeout_s = max(min(timeout_s, _exit_deadline - time.monotonic()), 0)
        with self._changed:
            return self._changed.wait_for(lambda: not (self._lines or self._writing), timeout_s)

    def _started(self) -> bool:
        if self._thread is None or not self._thread.is_alive():
            name = f"kaiten-lines-{self._target}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # The interpreter is shutting down, or the limit of threads is reached.
                self._thread = None
        return self._thread is not None

    def _run(self) -> None:
        missing = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._lines))
                before, line = self._lines.popleft()
                self._bytes -= len(line) + _LINE_BYTES
                self._writing = True
            missing = self._write_line(missing + before, line)
            with self._changed:
                last = not self._lines
                if last:
                    missing, self._dropped = missing + self._dropped, 0
            if last and missing and self._succeeds(_notice(missing)):
                missing = 0
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _write_line(self, missing: int, line: str) -> int:
        """Write a line; return how many lines are missing after it."""
        if missing and not self._succeeds(_notice(missing)):
            _drops.add(self._target)
            return missing + 1
        if self._succeeds(line):
            return 0
        _drops.add(self._target)
        return 1

    def _succeeds(self, line: str) -> bool:
        try:
            self._write(line)
        except (OSError, ValueError):
            # A closed file raises ValueError.
            return False
        return True


def _notice(count: int) -> str:
    event = {
        "event": "log_lines_dropped",
        "count": count,
        "level": "warning",
        "logger": "kaiten.logs",
        "timestamp": datetime.now(UTC).isoformat(),
    }
    return json.dumps(event) + "\n"


def flush(timeout_s: float = _FLUSH_S) -> None:
    """Wait until all lines are written, at most ``timeout_s`` in total."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _QueuedStream):
            stream.flush()
    deadline = time.monotonic() + timeout_s
    for writer in [*_writers]:
        writer.drain(deadline - time.monotonic())


class _QueuedStream(io.TextIOBase):
    """A standard stream that passes its text to a LineWriter, line by line."""

    def __init__(self, stream: TextIO, writer: LineWriter) -> None:
        self._stream = stream
        self._writer = writer
        self._lock = threading.RLock()
        self._partial = ""

    def write(self, text: str) -> int:
        with self._lock:
            lines, newline, self._partial = (self._partial + text).rpartition("\n")
            if newline:
                self._writer.put(lines + newline)
            if len(self._partial) > _MAX_PARTIAL:
                self.flush()
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if self._partial:
                self._writer.put(self._partial)
                self._partial = ""

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def buffer(self) -> object:
        return self._stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute in the base class
        return self._stream.encoding

    def reset_lock(self) -> None:
        """Replace the lock in a forked process: another thread may have held it at the fork."""
        self._lock = threading.RLock()
        self._partial = ""


class _Console:
    """Writes to the file descriptor of a standard stream."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, line: str) -> None:
        rest = memoryview(line.encode("utf-8", "backslashreplace"))
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(_POLL_MS)


def detach_console() -> None:
    """Queue everything that Python code writes to standard output and error.

    That includes prints of libraries and tracebacks of threads. C code writes to the descriptor
    itself, which becomes non-blocking: without a reader, its output is lost.
    """
    writers: dict[tuple[int, int], LineWriter] = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, _QueuedStream):
            continue
        try:
            stream.flush()
            descriptor = stream.fileno()
            status = os.fstat(descriptor)
        except (OSError, ValueError):
            # The stream is closed, or a test's, without a descriptor.
            continue
        _unblock(descriptor, status.st_mode)
        # If both streams go to one file, one writer keeps their order.
        file = (status.st_dev, status.st_ino)
        if file not in writers:
            writers[file] = LineWriter("console", _Console(descriptor).write)
        setattr(sys, name, _QueuedStream(stream, writers[file]))


def _unblock(descriptor: int, mode: int) -> None:
    """Make writes non-blocking, without affecting other processes that share the file."""
    # If that is not permitted, only the writing thread and C code can block.
    with suppress(OSError):
        if stat.S_ISSOCK(mode):
            # A socket cannot be reopened. Only this server's processes share it.
            os.set_blocking(descriptor, False)
        elif stat.S_ISFIFO(mode) or os.isatty(descriptor):
            flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
            reopened = os.open(f"/proc/self/fd/{descriptor}", flags)
            os.dup2(reopened, descriptor)
            os.close(reopened)


def _after_fork() -> None:
    for writer in [*_writers]:
        writer._reset()  # noqa: SLF001  one module
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _QueuedStream):
            stream.reset_lock()


def _at_exit() -> None:
    global _exit_deadline  # noqa: PLW0603  the process has one end
    _exit_deadline = time.monotonic() + _FLUSH_S
    flush()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
