"""Few requests start at once, and subjects take turns."""

import asyncio
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from gateway.http.backlog import Backlog, Turns


class Clock:
    """A clock that turns put forward."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_few_requests_start_in_an_iteration_and_subjects_take_turns() -> None:
    backlog, started = Backlog(100, per_iteration=2, max_wait_s=1), list[str]()
    for number in range(5):
        if backlog.starts_now():
            started.append(f"heavy {number}")
        else:
            backlog.add("heavy", partial(started.append, f"heavy {number}"))
    backlog.add("light", partial(started.append, "light"))

    snapshots = [list(started)]
    while len(started) < 6:
        await asyncio.sleep(0)
        snapshots.append(list(started))

    assert snapshots[0] == ["heavy 0", "heavy 1"]
    assert started == ["heavy 0", "heavy 1", "heavy 2", "light", "heavy 3", "heavy 4"]
    counts = [len(snapshot) for snapshot in snapshots]
    assert all(later - before <= 2 for before, later in pairwise(counts))


async def test_an_idle_loop_starts_requests_without_a_wait() -> None:
    backlog = Backlog(10, per_iteration=1, max_wait_s=1)
    for _ in range(5):
        assert backlog.starts_now()
        # A callback of this iteration gives the next one its room.
        await asyncio.sleep(0)


async def test_a_request_that_fails_to_start_leaves_the_others_their_turn() -> None:
    backlog, started = Backlog(10, per_iteration=1, max_wait_s=1), list[str]()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))

    def fail() -> None:
        raise RuntimeError

    assert backlog.starts_now()
    backlog.add("a", fail)
    backlog.add("b", partial(started.append, "b"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert (started, len(reported)) == (["b"], 1)


async def test_subjects_share_the_room_that_there_is() -> None:
    backlog = Backlog(4, per_iteration=1, max_wait_s=1)
    while backlog.has_room("heavy"):
        backlog.add("heavy", lambda: None)
    assert len(backlog._waiting["heavy"]) == 4
    assert backlog.has_room("light")
    backlog.add("light", lambda: None)
    assert not backlog.has_room("heavy")
    assert backlog.has_room("light")


async def test_a_subject_whose_oldest_request_waits_for_long_has_no_room() -> None:
    clock = Clock()
    backlog = Backlog(100, 1, max_wait_s=1, clock=clock)
    assert backlog.starts_now()
    for _ in range(2):
        backlog.add("heavy", lambda: None)
    clock.now_s = 1.1
    backlog.add("light", lambda: None)
    assert not backlog.has_room("heavy")
    assert backlog.has_room("light")
    assert backlog.has_room("new")
    # Of those that remain, the oldest counts.
    await asyncio.sleep(0)
    backlog.add("heavy", lambda: None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert backlog.waiting("heavy") == 1
    assert backlog.has_room("heavy")


@dataclass
class Connection:
    """Takes a millisecond for each of its turns."""

    name: str
    turns: Turns
    clock: Clock
    order: list[str]
    turns_left: int = 1

    def turn(self) -> None:
        self.clock.now_s += 0.001
        self.order.append(self.name)
        self.turns_left -= 1
        if self.turns_left:
            self.turns.wait(self.turn)


async def test_turns_take_a_part_of_each_iteration_and_newcomers_wait_for_no_one() -> None:
    clock, order = Clock(), list[str]()
    turns = Turns(0.0035, clock)
    endless = [Connection(name, turns, clock, order, 100) for name in "abcdef"]
    for connection in endless:
        turns.take(connection.turn)
    assert order == ["a", "b", "c", "d"]
    order.clear()
    await asyncio.sleep(0)
    # Half of the time, in order of waiting.
    assert order == ["a", "b"]
    newcomer = Connection("new", turns, clock, order)
    turns.take(newcomer.turn)
    assert order == ["a", "b", "new"]
    for _ in range(2):
        await asyncio.sleep(0)
    assert order[3:] == ["c", "d", "e", "f"]


async def test_a_few_urgent_turns_pass_all_that_wait() -> None:
    clock, order = Clock(), list[str]()
    turns = Turns(0.0035, clock)
    for number in range(20):
        turns.take(Connection(f"flood {number}", turns, clock, order).turn)
    order.clear()
    for number in range(6):
        turns.take(Connection(f"probe {number}", turns, clock, order).turn, urgent=True)
    assert order == ["probe 0", "probe 1", "probe 2", "probe 3"]
    await asyncio.sleep(0)
    turns.take(Connection("late probe", turns, clock, order).turn, urgent=True)
    assert order[-1] == "late probe"
    # The others wait like any other connection.
    for _ in range(20):
        await asyncio.sleep(0)
    assert order.index("flood 19") < order.index("probe 4") < order.index("probe 5")


async def test_a_connection_that_waits_takes_one_turn_at_a_time() -> None:
    clock, order = Clock(), list[str]()
    turns = Turns(1, clock)
    only = Connection("a", turns, clock, order, 3)
    turns.take(only.turn)
    turns.take(only.turn)
    assert order == ["a"]
    for turn_count in (2, 3, 3):
        await asyncio.sleep(0)
        assert len(order) == turn_count
