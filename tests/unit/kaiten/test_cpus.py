import os
from pathlib import Path

import pytest

from kaiten.cpus import affinity_cores, available_cores, cores_per_process, quota_cores

ALL = len(os.sched_getaffinity(0))


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    file = tmp_path / "membership"
    file.write_text("0::/pod/container\n")
    return file


def test_without_a_quota_every_core_counts(tmp_path: Path, membership: Path) -> None:
    assert available_cores(tmp_path, membership) == ALL
    assert available_cores(tmp_path / "absent", tmp_path / "absent") == ALL
    write(tmp_path / "pod/container", cpu__max="max 100000\n")
    assert available_cores(tmp_path, membership) == ALL


@pytest.mark.parametrize("group", ["pod/container", "pod", "."])
def test_quota_of_any_group_around_counts(group: str, tmp_path: Path, membership: Path) -> None:
    write(tmp_path / group, cpu__max="100000 100000\n")
    assert available_cores(tmp_path, membership) == 1


def test_part_of_a_core_is_left_out_but_one_remains(tmp_path: Path, membership: Path) -> None:
    write(tmp_path / "pod", cpu__max="50000 100000\n")
    assert available_cores(tmp_path, membership) == 1


def test_quota_above_the_cores_changes_nothing(tmp_path: Path, membership: Path) -> None:
    write(tmp_path / "pod", cpu__max=f"{(ALL + 1) * 100000} 100000\n")
    assert available_cores(tmp_path, membership) == ALL


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("-1", ALL)])
def test_first_version_of_cgroups(quota: str, expected: int, tmp_path: Path) -> None:
    file = tmp_path / "membership"
    file.write_text("4:cpu,cpuacct:/box\n1:name=systemd:/elsewhere\n")
    write(tmp_path / "cpu/box", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert available_cores(tmp_path, file) == expected


def test_affinity_and_quota_are_reported_separately(tmp_path: Path, membership: Path) -> None:
    assert affinity_cores() == ALL
    assert quota_cores(tmp_path, membership) is None
    write(tmp_path / "pod", cpu__max="50000 100000\n")
    assert quota_cores(tmp_path, membership) == 0.5


@pytest.mark.parametrize(
    ("workers", "expected"),
    [
        (None, available_cores()),
        (1, available_cores()),
        ("cpu_count", 1),
        (10 * available_cores(), 1),
    ],
)
def test_workers_share_the_cores(workers: object, expected: int) -> None:
    assert cores_per_process(workers) == expected
