import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.environment import ROOT
from kaiten.settings.handover import hand_down_settings
from kaiten.settings.loader import load_settings
from kaiten.settings.snapshot import (
    Snapshot,
    inherited_snapshot,
    memory_file,
    read_key_file,
    release_snapshot,
    replace_key_file,
    snapshot_descriptors,
)
from tests.unit.kaiten.settings.refusals import OTHER, SECRET

SECRETS = {
    "KAITEN_AUTH__SECRET": SECRET,
    "KAITEN_SIGNATURES__PASSWORD": "word-of-the-key",
    "KAITEN_STATE__REDIS_URL": "redis://:word-of-redis@localhost:6379/0",
    "KAITEN_STATE__DATABASE_URL": "postgresql+psycopg://user:word-of-sql@localhost/name",
    "KAITEN_LOGGING__PSEUDONYM_KEY": OTHER,
}


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_key_file_is_binary_safe_and_read_from_disk_without_a_snapshot(tmp_path: Path) -> None:
    file, content = tmp_path / "key", bytes(range(256))
    file.write_bytes(content)
    assert read_key_file(file) == content
    snapshot = Snapshot({}, {str(file): content}, 1, 0)
    snapshot.publish()
    assert inherited_snapshot() == snapshot
    assert read_key_file(file) == content
    release_snapshot()


def test_workers_read_the_snapshot_any_number_of_times_and_their_children_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, SECRETS)
    hand_down_settings(load_settings(), holders=1)
    program = (
        "import os, subprocess, sys\n"
        "from kaiten.settings.loader import load_settings\n"
        "from kaiten.settings.snapshot import release_snapshot\n"
        "first, second = load_settings(), load_settings()\n"
        "assert first == second\n"
        "release_snapshot()\n"
        "told = open('/proc/self/environ').read()\n"
        'child = \'import os; print(open("/proc/self/environ").read());'
        ' print([os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")'
        ' if os.path.exists(f"/proc/self/fd/{fd}")])\'\n'
        "told += subprocess.run([sys.executable, '-c', child], close_fds=False,"
        " capture_output=True, text=True, check=True).stdout\n"
        "print(first.auth.secret.get_secret_value(), told.count('memfd:kaiten'), told)\n"
    )
    for _ in range(2):
        output = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            pass_fds=snapshot_descriptors(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        secret, files, rest = output.split(" ", 2)
        assert secret == SECRET
        assert not [word for word in SECRETS.values() if word in rest]
        # The roster only, which holds none.
        assert int(files) == 1


@pytest.mark.parametrize("named", ["", "abc", "-1", "99999", "file", "pipe"])
def test_invalid_snapshot_is_rejected(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = os.pipe()
    descriptors = {"file": memory_file(b'{"settings": {}}'), "pipe": ends[0]}
    monkeypatch.setenv("KAITEN_SNAPSHOT", str(descriptors.get(named, named)))
    with pytest.raises(InvalidSettings, match="which a server sets for its workers only"):
        load_settings()
    for descriptor in (*ends, descriptors["file"]):
        os.close(descriptor)


def test_released_snapshot_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_down_settings(load_settings(), holders=1)
    snapshot, _ = snapshot_descriptors()
    release_snapshot()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(snapshot)
    assert snapshot_descriptors() == ()
    release_snapshot()


@pytest.mark.parametrize(
    ("hard", "limit"), [(resource.RLIM_INFINITY, 1), (4096, 1), (1, 1), (0, 0)]
)
def test_parent_and_workers_leave_no_core_dump(
    hard: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits_set: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(
        resource, "setrlimit", lambda kind, limits: limits_set.append((kind, limits))
    )
    monkeypatch.setattr("kaiten.settings.snapshot.sys.platform", "linux")
    hand_down_settings(load_settings(), holders=1)
    # On behalf of the parent, and of a worker whose parent was another's.
    load_settings()
    assert limits_set[:2] == [(resource.RLIMIT_CORE, (limit, hard))] * 2


def test_process_that_may_not_change_its_limits_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: object) -> None:
        raise PermissionError(limits)

    monkeypatch.setattr(resource, "setrlimit", refuse)
    hand_down_settings(load_settings(), holders=1)
    assert load_settings().serving.models


def test_replaced_key_file_is_what_later_processes_read(tmp_path: Path) -> None:
    file, roster = tmp_path / "key", memory_file()
    snapshot = Snapshot({"home": "/"}, {str(file): b"before", "/other": b"same"}, 2, roster)
    snapshot.publish()
    descriptors = snapshot_descriptors()
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from kaiten.settings.snapshot import read_key_file\n"
        "print(read_key_file(Path(sys.argv[1])).decode())\n"
    )
    for content in (b"after", b"later, and longer"):
        replace_key_file(file, content)
        assert snapshot_descriptors() == descriptors
        output = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            cwd=ROOT,
            pass_fds=descriptors,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert output == f"{content.decode()}\n"
    replaced = Snapshot({"home": "/"}, {**snapshot.files, str(file): content}, 2, roster)
    assert inherited_snapshot() == replaced
    release_snapshot()
    os.close(roster)


def test_without_a_snapshot_no_key_file_is_replaced(tmp_path: Path) -> None:
    replace_key_file(tmp_path / "key", b"content")
    assert inherited_snapshot() is None
