"""The processor cores that this process may use: by its affinity, and by its cgroup's quota."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

HIERARCHY = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores(hierarchy: Path = HIERARCHY, membership: Path = MEMBERSHIP) -> int:
    """Return how many cores this process may keep busy, at least one.

    Part of a core is left out: threads over the quota are all stopped until its next period.
    """
    allowed, limit = affinity(), quota(hierarchy, membership)
    return max(1, allowed if limit is None else min(allowed, int(limit)))


def share(workers: object) -> int:
    """Return the cores of each worker, at least one.

    ``workers`` is BentoML's setting: a number, ``cpu_count``, or None for one.
    """
    return max(1, cores() // max(1, count_of(workers)))


def count_of(workers: object) -> int:
    """Return how many workers BentoML's setting stands for, as share takes it."""
    if isinstance(workers, int):
        return workers
    return cores() if workers == "cpu_count" else 1


def affinity() -> int:
    """Return how many cores this process may be put on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota(hierarchy: Path = HIERARCHY, membership: Path = MEMBERSHIP) -> float | None:
    """Return the smallest quota of the groups around this process, in cores; None without one."""
    return min(_quotas(hierarchy, membership), default=None)


def _quotas(hierarchy: Path, membership: Path) -> Iterator[float]:
    """Yield, in cores, the quota of each group that holds this process, where it has one."""
    for group in _groups(hierarchy, membership):
        try:
            if (group / "cpu.max").exists():  # version 2
                quota, period = (group / "cpu.max").read_text().split()
            else:  # version 1
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue  # No such group, or no quota: "max".


def _groups(hierarchy: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of our groups and of those around them.

    A container sees its own group as the root of the hierarchy, whatever path ``membership`` has.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    own = {"cpu": "/", "": "/"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for top, path in ((hierarchy, own[""]), (hierarchy / "cpu", own["cpu"])):
        inner = PurePosixPath(path).relative_to("/")
        for group in (inner, *inner.parents):
            yield top / group
