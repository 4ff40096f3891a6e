import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kaiten.settings.environment import ROOT
from kaiten.settings.handover import hand_down_settings
from kaiten.settings.loader import load_settings
from kaiten.settings.roster import Roster, open_roster
from kaiten.settings.snapshot import memory_file

HOLD = (
    "import sys\n"
    "from kaiten.settings.roster import Roster\n"
    "roster = Roster(int(sys.argv[1]), 2, 1)\n"
    "for line in sys.stdin:\n"
    "    state, connections = f'{line.strip()} 0'.split()[:2]\n"
    "    roster.set_ready(ready=state == 'ready')\n"
    "    while roster.count < int(connections):\n"
    "        roster.opened()\n"
    "    while roster.count > int(connections):\n"
    "        roster.closed()\n"
    "    print(roster.count_ready(), flush=True)\n"
)


@pytest.fixture
def file() -> Iterator[int]:
    file = memory_file()
    yield file
    os.close(file)


@dataclass
class SecondWorker:
    """The second of two workers, in a process of its own."""

    process: subprocess.Popen[str]

    def report(self, state: str) -> int:
        """Set its state, as in ``ready 3`` with three connections; return its count of workers."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{state}\n")
        stdin.flush()
        return int(stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def second(file: int) -> Iterator[SecondWorker]:
    command = [sys.executable, "-c", HOLD, str(file)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, pass_fds=[file], stdin=pipe, stdout=pipe, text=True
    ) as process:
        worker = SecondWorker(process)
        yield worker
        worker.kill()


def test_roster_counts_the_workers_that_are_ready_and_alive(
    file: int, second: SecondWorker
) -> None:
    first = Roster(file, 2, 0)
    assert (first.workers, first.count_ready()) == (2, 0)
    assert (second.report("ready"), first.count_ready()) == (1, 1)
    first.set_ready(ready=True)
    assert (second.report("ready"), first.count_ready()) == (2, 2)
    assert (second.report("not"), first.count_ready()) == (1, 1)
    assert second.report("ready") == 2
    second.kill()
    assert first.count_ready() == 1
    first.set_ready(ready=False)
    assert first.count_ready() == 0


@pytest.mark.parametrize(
    ("connections", "of_second", "has_room"),
    [
        (0, "ready 0", False),
        (1, "ready 0", True),
        (1, "ready 1", False),
        (1, "not 0", False),
        (1, "ready 2", False),
        # An eighth more is still a fair share.
        (9, "ready 8", False),
        (10, "ready 8", True),
        (90, "ready 80", False),
    ],
)
def test_another_worker_has_room_if_it_is_ready_with_fewer_connections(
    file: int, second: SecondWorker, connections: int, of_second: str, *, has_room: bool
) -> None:
    first = Roster(file, 2, 0)
    first.set_ready(ready=True)
    for _ in range(connections):
        first.opened()
    second.report(of_second)
    assert first.another_has_room() == has_room


def test_worker_that_is_not_ready_leaves_connections_to_one_that_is(
    file: int, second: SecondWorker
) -> None:
    first = Roster(file, 2, 0)
    second.report("ready 8")
    assert first.another_has_room()
    second.report("not 8")
    assert not first.another_has_room()


def test_connections_of_a_worker_that_has_ended_do_not_count(
    file: int, second: SecondWorker
) -> None:
    first = Roster(file, 2, 0)
    first.set_ready(ready=True)
    for _ in range(3):
        first.opened()
    second.report("ready 1")
    assert first.another_has_room()
    for _ in range(2):
        first.closed()
    assert not first.another_has_room()
    first.opened()
    second.kill()
    assert not first.another_has_room()
    # Another that takes its place starts with none.
    assert Roster(file, 2, 1).count == 0


def test_roster_comes_from_the_snapshot_or_is_of_one_worker() -> None:
    alone = open_roster(0)
    alone.set_ready(ready=True)
    assert (alone.workers, alone.count_ready()) == (1, 1)
    hand_down_settings(load_settings(), 1, workers=3)
    assert open_roster(2).workers == 3
