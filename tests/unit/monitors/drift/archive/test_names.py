from datetime import UTC, datetime

import pytest

from monitors.drift.archive.names import ArchivedProfile
from monitors.drift.spool import Source
from tests.unit.monitors.drift.archive.windows import SOURCE, window


def test_a_name_says_all_but_what_was_measured() -> None:
    profile = ArchivedProfile.of(window(), None, "host-1.example")
    assert str(profile.path) == (
        "intent/1.0.0/production/"
        "20260921T141320123Z_20260921T141420123Z_1000_host-1.example_1790000000123-17-1-1000.bin"
    )
    assert profile.started_at == datetime(2026, 9, 21, 14, 13, 20, 123000, UTC)


def test_a_pseudonym_has_a_folder_of_its_own() -> None:
    path = ArchivedProfile.of(window(), "0123456789abcdef", "host").path
    assert path.parts[:5] == ("intent", "1.0.0", "production", "subjects", "0123456789abcdef")


@pytest.mark.parametrize("pseudonym", [None, "others"])
@pytest.mark.parametrize("host", ["host", "ein wirt_ü/..", "", "a.b-c"])
def test_a_name_is_read_as_it_was_written(pseudonym: str | None, host: str) -> None:
    profile = ArchivedProfile.of(window(source=Source("a-b_c:1.0", "canary")), pseudonym, host)
    assert len(profile.path.parts) == (4 if pseudonym is None else 6)
    assert ArchivedProfile.parse(profile.source, pseudonym, profile.path.name) == profile


def test_names_sort_by_time() -> None:
    profiles = [
        ArchivedProfile.of(window(at), None, host)
        for at, host in ((0, "z"), (0.5, "b"), (86400, "a"))
    ]
    assert sorted(profiles, key=lambda profile: profile.path.name) == profiles


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        ".20260921T141320123Z_20260921T141420123Z_1000_host_1.bin.0011",
        "20260921T141320123Z_20260921T141420123Z_many_host_1.bin",
        "20260921T141320123Z-17.bin",
    ],
)
def test_another_file_is_no_profile(name: str) -> None:
    assert ArchivedProfile.parse(SOURCE, None, name) is None
