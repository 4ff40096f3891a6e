"""The CPU cores that this process may use, by its affinity and its cgroup's quota."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

HIERARCHY = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cores(hierarchy: Path = HIERARCHY, membership: Path = MEMBERSHIP) -> int:
    """Return how many cores this process can keep busy, at least one.

    A quota is rounded down: once it is exceeded, all threads stop until its next period.
    """
    allowed, quota = affinity_cores(), quota_cores(hierarchy, membership)
    return max(1, allowed if quota is None else min(allowed, int(quota)))


def cores_per_process(processes: object) -> int:
    """Return the cores for each of several processes, at least one; see ``process_count``."""
    return max(1, available_cores() // max(1, process_count(processes)))


def process_count(setting: object) -> int:
    """Return the number that BentoML's ``workers`` stands for: an int, ``cpu_count`` or None."""
    if isinstance(setting, int):
        return setting
    return available_cores() if setting == "cpu_count" else 1


def affinity_cores() -> int:
    """Return how many cores the scheduler may run this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota_cores(hierarchy: Path = HIERARCHY, membership: Path = MEMBERSHIP) -> float | None:
    """Return the smallest CPU quota of the cgroups that contain this process, if any."""
    return min(_quotas(hierarchy, membership), default=None)


def _quotas(hierarchy: Path, membership: Path) -> Iterator[float]:
    """Yield, in cores, the quota of each cgroup that contains this process and has one."""
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
            continue  # The group does not exist, or has no quota: "max".


def _groups(hierarchy: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroups and their ancestors.

    A container sees its own cgroup as the root of the hierarchy, whatever path ``membership`` has.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    paths = {"cpu": "/", "": "/"}
    for line in lines:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for root, path in ((hierarchy, paths[""]), (hierarchy / "cpu", paths["cpu"])):
        relative = PurePosixPath(path).relative_to("/")
        for group in (relative, *relative.parents):
            yield root / group
