import subprocess
import sys
from threading import Barrier, Event

import pytest

from monitors.feedback.daemon_threads import DaemonThreads

HANGS = """
import threading
from monitors.feedback.daemon_threads import DaemonThreads
begun = threading.Event()
DaemonThreads(1, "test").submit(lambda: (begun.set(), threading.Event().wait()))
begun.wait()
"""


def test_what_is_given_is_done_at_once_by_as_many() -> None:
    threads, barrier = DaemonThreads(3, "test"), Barrier(3)
    futures = [threads.submit(lambda: barrier.wait(30)) for _ in range(3)]
    assert sorted(future.result(30) for future in futures) == [0, 1, 2]
    threads.close()


def test_failure_is_handed_on_and_ends_no_thread() -> None:
    threads = DaemonThreads(1, "test")
    with pytest.raises(ZeroDivisionError):
        threads.submit(lambda: 1 // 0).result(30)
    assert threads.submit(lambda: 1).result(30) == 1
    threads.close()


def test_what_is_cancelled_before_its_turn_is_not_done() -> None:
    threads, free, done = DaemonThreads(1, "test"), Event(), Event()
    threads.submit(lambda: free.wait(30))
    assert threads.submit(done.set).cancel()
    free.set()
    threads.submit(lambda: None).result(30)
    assert not done.is_set()
    threads.close()


def test_thread_that_hangs_keeps_no_process_from_ending() -> None:
    subprocess.run([sys.executable, "-c", HANGS], check=True, timeout=60)
