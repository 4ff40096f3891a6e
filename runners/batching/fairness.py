"""Fair queueing: subjects share one queue's service by cost, and its capacity by thresholds.

Service is shared by start-time fair queueing (Goyal, Vin and Cheng, 1996): the subject that has
been served least is next. Subjects whose service differs by less than a quantum count as equal, and
of those the one with the least waiting cost goes first. Unlike with deficit round robin, a light
subject does not wait for a round of the others. Capacity is shared by dynamic thresholds
(Choudhury and Hahne, 1998).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import islice
from typing import Generic, Protocol, TypeVar

# Subjects without waiting items whose service is remembered; beyond it, the oldest is forgotten.
_MAX_IDLE = 1024
# Divisors of the limit of items: the reserve for newcomers, and the most that one of them adds.
_RESERVE_SHARE, _NEWCOMER_SHARE = 4, 64


class Entry(Protocol):
    """An item in the queue: its subject, and its cost on the device."""

    @property
    def subject(self) -> str: ...
    @property
    def cost(self) -> int: ...


EntryT = TypeVar("EntryT", bound=Entry)


def has_room(items: int, held: int, waiting: int, limit: int) -> bool:
    """Return whether a subject may add items, if it holds ``held`` of the ``waiting`` ones.

    A subject may hold as much as it leaves free of twice the limit: the limit if it is alone, and
    less as others hold more. Ten or more heavy subjects leave almost nothing of that, so a quarter
    of the limit is reserved for subjects that hold nothing and add few items.
    """
    if held + items <= 2 * limit - waiting - items:
        return True
    newcomer = not held and items <= max(1, limit // _NEWCOMER_SHARE)
    return newcomer and waiting + items <= 2 * limit + limit // _RESERVE_SHARE


@dataclass(slots=True)
class _Backlog(Generic[EntryT]):
    """The waiting items of one subject, oldest first, and their total cost.

    ``served`` is the cost that the subject has been served, on the queue's virtual clock, and
    ``passed_over`` the number of batches taken since one had an item of it.
    """

    served: int
    entries: list[EntryT] = field(default_factory=list)
    cost: int = 0
    passed_over: int = 0


class FairQueue(Generic[EntryT]):
    """A queue that is fair to subjects, and first in, first out for each of them.

    A subject that has been passed over by ``max_passed_over`` batches precedes all that have been
    passed over less often, regardless of their service.
    """

    def __init__(self, max_passed_over: int) -> None:
        self._max_passed_over = max_passed_over
        self._backlogs: dict[str, _Backlog[EntryT]] = {}
        self._idle: dict[str, int] = {}
        # The service of the least served subject when a batch was last chosen.
        self._virtual_time = 0
        self._length = 0
        self.cost = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[EntryT]:
        for backlog in self._backlogs.values():
            yield from backlog.entries

    def items_of(self, subject: str) -> int:
        """Return the number of waiting items of a subject."""
        backlog = self._backlogs.get(subject)
        return len(backlog.entries) if backlog else 0

    def cost_of(self, subject: str) -> int:
        """Return the waiting cost of a subject."""
        backlog = self._backlogs.get(subject)
        return backlog.cost if backlog else 0

    def cost_up_to(self, limit: int) -> int:
        """Return the waiting cost of all subjects whose waiting cost is at most ``limit``."""
        costs = (backlog.cost for backlog in self._backlogs.values())
        return sum(cost for cost in costs if cost <= limit)

    def costs(self) -> dict[str, int]:
        """Return the waiting cost of each subject."""
        return {subject: backlog.cost for subject, backlog in self._backlogs.items()}

    def push(self, subject: str, entries: Sequence[EntryT], cost: int) -> None:
        """Add items behind the subject's others; ``cost`` is the sum of their costs."""
        if not entries:
            return
        backlog = self._backlogs.get(subject)
        if backlog is None:
            served = max(self._idle.pop(subject, 0), self._virtual_time)
            backlog = self._backlogs[subject] = _Backlog(served)
        backlog.entries += entries
        backlog.cost += cost
        self.cost += cost
        self._length += len(entries)

    def candidates(self, size: int, quantum: int) -> list[EntryT]:
        """Return up to ``size`` items in the order of service.

        Subjects whose service differs by less than ``quantum``, a cost, count as equal.
        """
        if len(self._backlogs) == 1:
            (backlog,) = self._backlogs.values()
            # Service of a subject while it is alone must not count against it later.
            self._virtual_time = max(self._virtual_time, backlog.served)
            return backlog.entries[:size]
        least = min(backlog.served for backlog in self._backlogs.values())
        self._virtual_time = max(self._virtual_time, least)
        ranked = sorted(
            self._backlogs.values(), key=lambda backlog: self._rank(backlog, least, quantum)
        )
        first = ranked[0].entries[0]
        shared = merge(*(_tagged(backlog, place) for place, backlog in enumerate(ranked[:size])))
        others = (entry for *_, entry in shared if entry is not first)
        return [first, *islice(others, size - 1)]

    def take(self, entries: Sequence[EntryT]) -> None:
        """Remove the items of a batch, and add their cost to their subjects' service."""
        by_subject: dict[str, list[EntryT]] = {}
        for entry in entries:
            by_subject.setdefault(entry.subject, []).append(entry)
        for subject, backlog in self._backlogs.items():
            backlog.passed_over = 0 if subject in by_subject else backlog.passed_over + 1
        for subject, batch in by_subject.items():
            self._backlogs[subject].served += sum(entry.cost for entry in batch)
            self._remove(subject, batch)
        self._forget()

    def drop(self, unwanted: Callable[[EntryT], bool]) -> list[EntryT]:
        """Remove and return the items for which ``unwanted`` returns true."""
        dropped: list[EntryT] = []
        for subject, backlog in [*self._backlogs.items()]:
            batch = [entry for entry in backlog.entries if unwanted(entry)]
            if batch:
                self._remove(subject, batch)
                dropped += batch
        return dropped

    def clear(self) -> None:
        """Remove everything."""
        self._backlogs.clear()
        self._idle.clear()
        self._length = self.cost = 0

    def _rank(self, backlog: _Backlog[EntryT], least: int, quantum: int) -> tuple[int, int, int]:
        """Return a sort key; sorting is stable, so of equals the oldest subject comes first."""
        late = backlog.passed_over if backlog.passed_over >= self._max_passed_over else 0
        return -late, (backlog.served - least) // max(1, quantum), backlog.cost

    def _remove(self, subject: str, batch: Sequence[EntryT]) -> None:
        backlog = self._backlogs[subject]
        removed = {id(entry) for entry in batch}
        cost = sum(entry.cost for entry in batch)
        backlog.entries = [entry for entry in backlog.entries if id(entry) not in removed]
        backlog.cost -= cost
        self.cost -= cost
        self._length -= len(batch)
        if not backlog.entries:
            del self._backlogs[subject]
            self._idle[subject] = backlog.served

    def _forget(self) -> None:
        """Drop the service of idle subjects that no longer affects the order."""
        if not self._backlogs:
            self._idle.clear()
            self._virtual_time = 0
            return
        for subject, served in [*self._idle.items()]:
            if served <= self._virtual_time or len(self._idle) > _MAX_IDLE:
                del self._idle[subject]


def _tagged(backlog: _Backlog[EntryT], place: int) -> Iterator[tuple[int, int, int, EntryT]]:
    """Yield a subject's items, each with its start tag: the subject's service before it."""
    tag = backlog.served
    for number, entry in enumerate(backlog.entries):
        yield tag, place, number, entry
        tag += entry.cost
