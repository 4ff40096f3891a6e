import os
import subprocess
import sys

from kaiten.settings.environment import (
    ROOT,
)
from kaiten.settings.handover import hand_down_settings
from kaiten.settings.loader import load_settings
from kaiten.settings.roster import Roster, open_roster
from kaiten.settings.snapshot import memory_file

HOLD = (
    "import sys\n"
    "from kaiten.settings.roster import Roster\n"
    "roster = Roster(int(sys.argv[1]), 2, 1)\n"
    "for line in sys.stdin:\n"
    "    roster.set_ready(ready=line.strip() == 'ready')\n"
    "    print(roster.count_ready(), flush=True)\n"
)


def test_roster_counts_the_workers_that_are_ready_and_alive() -> None:
    file = memory_file()
    first = Roster(file, 2, 0)
    command = [sys.executable, "-c", HOLD, str(file)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        pass_fds=[file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as second:
        stdin, stdout = second.stdin, second.stdout
        assert stdin is not None
        assert stdout is not None

        def report_state(state: str) -> int:
            stdin.write(f"{state}\n")
            stdin.flush()
            return int(stdout.readline())

        assert (first.workers, first.count_ready()) == (2, 0)
        assert (report_state("ready"), first.count_ready()) == (1, 1)
        first.set_ready(ready=True)
        assert (report_state("ready"), first.count_ready()) == (2, 2)
        assert (report_state("not"), first.count_ready()) == (1, 1)
        assert report_state("ready") == 2
        second.kill()
        second.wait()
        assert first.count_ready() == 1
    first.set_ready(ready=False)
    assert first.count_ready() == 0
    os.close(file)


def test_roster_comes_from_the_snapshot_or_is_of_one_worker() -> None:
    alone = open_roster(0)
    alone.set_ready(ready=True)
    assert (alone.workers, alone.count_ready()) == (1, 1)
    hand_down_settings(load_settings(), 1, workers=3)
    assert open_roster(2).workers == 3
