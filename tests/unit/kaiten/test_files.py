"""How many files a process may open, and which faults of a disk pass."""

import errno
import resource

import pytest

from kaiten import files
from kaiten.files import descriptor_limit, is_disk_full, is_out_of_descriptors


@pytest.mark.parametrize(
    ("soft", "hard", "raised"),
    [
        (64, 64, 64),
        (256, 4096, 4096),
        (1024, 1 << 20, 65_536),
        (1024, resource.RLIM_INFINITY, 65_536),
        (1 << 20, 1 << 20, None),
    ],
)
def test_descriptor_limit_is_raised_as_far_as_allowed(
    soft: int, hard: int, raised: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits_set: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: limits_set.append(limits))
    limit = files.raise_descriptor_limit()
    assert limit == descriptor_limit()
    assert limits_set == ([] if raised in (None, soft) else [(raised, hard)])


def test_full_disks_and_exhausted_descriptors_are_distinguished() -> None:
    disk_full = [number for number in errno.errorcode if is_disk_full(OSError(number, ""))]
    out_of_descriptors = [
        number for number in errno.errorcode if is_out_of_descriptors(OSError(number, ""))
    ]
    assert sorted(disk_full) == sorted([errno.ENOSPC, errno.EDQUOT])
    assert sorted(out_of_descriptors) == sorted([errno.EMFILE, errno.ENFILE])
    assert not is_out_of_descriptors(ValueError())
