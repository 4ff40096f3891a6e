import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.auth.signing_secret import secret_of, signing_secret
from kaiten.errors import InvalidSettings
from kaiten.settings.handover import Roster, Snapshot, memory_file
from kaiten.settings.loader import (
    DEVELOPMENT_SECRET_FILE,
    ROOT,
    Settings,
    forget_environment,
    hand_down,
    load_settings,
    read_key_file,
    release_snapshot,
    roster,
    snapshot_descriptors,
)

SECRET, OTHER = "8f14e45fceea167a5a36dedd4bea2543", "c9f0f895fb98ab9159f51fd0297e236d"
SECRETS = {
    "KAITEN_AUTH__SECRET": SECRET,
    "KAITEN_SIGNATURES__PASSWORD": "word-of-the-key",
    "KAITEN_STATE__REDIS_URL": "redis://:word-of-redis@localhost:6379/0",
    "KAITEN_STATE__DATABASE_URL": "postgresql+psycopg://user:word-of-sql@localhost/name",
    "KAITEN_LOGGING__PSEUDONYM_KEY": OTHER,
}
# One of each kind of value: dates, addresses, lists of objects, names that YAML would change.
KINDS = {
    "KAITEN_API_VERSIONS__V1__DEPRECATED_AT": "2026-01-02",
    "KAITEN_API_VERSIONS__V1__SUNSET_AT": "2027-01-02",
    "KAITEN_API_VERSIONS__V1__LINK": "https://example.com/a",
    "KAITEN_SERVING__MODELS": "a:1.0.0,b",
    "KAITEN_SERVING__REFERENCES": '{"a:1.0.0": "one"}',
    "KAITEN_RATE_LIMIT__REQUESTS": "off",
    "KAITEN_VERSIONING__RELEASE_PROCESS": "[]",
    "KAITEN_AUTH__ISSUERS": json.dumps(
        [{"issuer": "a", "audience": "b", "jwks_url": "https://a/", "algorithms": ["ES256"]}]
    ),
    "KAITEN_PROFILES__TARGET": "s3://bucket/prefix",
}


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def handed_down(settings: Settings) -> Settings:
    hand_down(settings, holders=1)
    return load_settings()


def test_snapshot_gives_a_worker_the_settings_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, SECRETS | KINDS)
    settings = load_settings()
    expected = settings.model_copy(
        update={
            "home": settings.home.resolve(),
            "runners": settings.runners.model_copy(update={"threads": os.cpu_count()}),
        }
    )
    hand_down(settings, holders=1)
    found = load_settings()
    assert found.runners.threads >= 1
    assert found.model_dump(exclude={"runners"}) == expected.model_dump(exclude={"runners"})


def test_every_setting_of_the_file_survives_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = yaml.safe_load((ROOT / "kaiten.yaml").read_text("utf-8"))
    named["runners"]["threads"] = 1
    file = tmp_path / "kaiten.yaml"
    file.write_text(yaml.safe_dump(named), encoding="utf-8")
    monkeypatch.setenv("KAITEN_CONFIG", str(file))
    before = load_settings()
    assert handed_down(before) == before.model_copy(update={"home": before.home.resolve()})


def test_no_setting_is_left_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {"KAITEN_AUTH__AUDIENCE": "theirs", "KAITEN_SERVICE_HOST": "10.0.0.1"}
    set_all(monkeypatch, SECRETS | others)
    settings = load_settings()
    # A start refuses a variable that is not in capitals; it leaves the environment all the same.
    monkeypatch.setenv("kaiten_auth__secret", SECRET)
    hand_down(settings, holders=1)
    left = {name for name in os.environ if name.lower().startswith("kaiten_")}
    assert left == {"KAITEN_SNAPSHOT", "KAITEN_SERVICE_HOST"}
    assert load_settings().auth.audience == "theirs"


@pytest.mark.parametrize("change", ["rotate", "delete"])
def test_files_that_change_afterwards_change_no_worker(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    config = tmp_path / "kaiten.yaml"
    issuer = {"issuer": "them", "audience": "us", "secret_file": str(keys / "them")}
    contents = {
        keys / "kaiten_logging__pseudonym_key": (SECRET, OTHER),
        keys / "ours": (SECRET, OTHER),
        keys / "them": (SECRET, OTHER),
        config: ("auth: {audience: first}", "auth: {audience: second}"),
    }
    for file, (before, _) in contents.items():
        file.write_text(before)
    monkeypatch.setenv("KAITEN_SECRETS", str(keys))
    monkeypatch.setenv("KAITEN_CONFIG", str(config))
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(keys / "ours"))
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer]))
    hand_down(load_settings(), holders=1)
    for file, (_, after) in contents.items():
        file.write_text(after) if change == "rotate" else file.unlink()

    found = load_settings()
    key = found.logging.pseudonym_key
    assert key is not None
    assert key.get_secret_value() == SECRET
    assert secret_of(found.auth) == SECRET
    assert found.auth.audience == "first"
    named = found.auth.issuers[0].secret_file
    assert named is not None
    assert read_key_file(named) == SECRET.encode()


@pytest.mark.parametrize("change", ["rotate", "delete"])
def test_development_secret_stays_the_same_for_all_workers(change: str, tmp_path: Path) -> None:
    made = signing_secret(load_settings())
    hand_down(load_settings(), holders=1)
    file = tmp_path / DEVELOPMENT_SECRET_FILE
    file.write_text(OTHER) if change == "rotate" else file.unlink()
    assert signing_secret(load_settings()) == made
    assert file.exists() is (change == "rotate")


def test_key_file_is_binary_safe_and_read_from_disk_without_a_snapshot(tmp_path: Path) -> None:
    file, content = tmp_path / "key", bytes(range(256))
    file.write_bytes(content)
    assert read_key_file(file) == content
    snapshot = Snapshot({}, {str(file): content}, 1, 0)
    assert Snapshot.read(snapshot.write()).files == {str(file): content}


def test_workers_read_the_snapshot_any_number_of_times_and_their_children_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, SECRETS)
    hand_down(load_settings(), holders=1)
    program = (
        "import os, subprocess, sys\n"
        "from kaiten.settings.loader import load_settings, release_snapshot\n"
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
        told = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            pass_fds=snapshot_descriptors(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        secret, files, rest = told.split(" ", 2)
        assert secret == SECRET
        assert not [word for word in SECRETS.values() if word in rest]
        # The roster only, which holds none.
        assert int(files) == 1


@pytest.mark.parametrize("named", ["", "abc", "-1", "99999", "file", "pipe"])
def test_variable_that_names_no_snapshot_is_refused(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = os.pipe()
    descriptors = {"file": memory_file(b'{"settings": {}}'), "pipe": ends[0]}
    monkeypatch.setenv("KAITEN_SNAPSHOT", str(descriptors.get(named, named)))
    with pytest.raises(InvalidSettings, match="only a server sets this variable"):
        load_settings()
    for descriptor in (*ends, descriptors["file"]):
        os.close(descriptor)


def test_released_snapshot_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_down(load_settings(), holders=1)
    snapshot, _ = snapshot_descriptors()
    release_snapshot()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(snapshot)
    assert snapshot_descriptors() == ()
    release_snapshot()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_secrets_leave_the_environment_that_the_parent_was_started_with() -> None:
    program = (
        "import os\n"
        "from kaiten.settings.loader import hand_down, load_settings\n"
        "settings = load_settings()\n"
        "assert hand_down(settings, holders=1)\n"
        "print(open('/proc/self/environ').read())\n"
        "assert os.environ['NEIGHBOUR'] == os.popen('echo $NEIGHBOUR').read().strip() == 'here'\n"
    )
    environment = {**os.environ, **SECRETS, "NEIGHBOUR": "here"}
    told = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not [word for word in SECRETS.values() if word in told]
    assert "NEIGHBOUR=here" in told


@pytest.mark.parametrize(
    ("hard", "limit"), [(resource.RLIM_INFINITY, 1), (4096, 1), (1, 1), (0, 0)]
)
def test_parent_and_workers_leave_no_core_dump(
    hard: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (hard, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: made.append((kind, limits)))
    monkeypatch.setattr("kaiten.settings.handover.sys.platform", "linux")
    hand_down(load_settings(), holders=1)
    # On behalf of the parent, and of a worker whose parent was another's.
    load_settings()
    assert made[:2] == [(resource.RLIMIT_CORE, (limit, hard))] * 2


def test_process_that_may_not_change_its_limits_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int, limits: object) -> None:
        raise PermissionError(limits)

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert handed_down(load_settings())


def test_settings_are_forgotten_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SECRETS | {"KAITEN_SECRETS": "/run/secrets", "OTHER_SECRET": "x"})
    forget_environment()
    assert not [name for name in os.environ if name.startswith("KAITEN_")]
    assert os.environ["OTHER_SECRET"] == "x"


HOLD = (
    "import sys\n"
    "from kaiten.settings.handover import Roster\n"
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

        def tell(state: str) -> int:
            stdin.write(f"{state}\n")
            stdin.flush()
            return int(stdout.readline())

        assert (first.workers, first.count_ready()) == (2, 0)
        assert (tell("ready"), first.count_ready()) == (1, 1)
        first.set_ready(ready=True)
        assert (tell("ready"), first.count_ready()) == (2, 2)
        assert (tell("not"), first.count_ready()) == (1, 1)
        assert tell("ready") == 2
        second.kill()
        second.wait()
        assert first.count_ready() == 1
    first.set_ready(ready=False)
    assert first.count_ready() == 0
    os.close(file)


def test_roster_comes_from_the_snapshot_or_is_of_one_worker() -> None:
    alone = roster(0)
    alone.set_ready(ready=True)
    assert (alone.workers, alone.count_ready()) == (1, 1)
    hand_down(load_settings(), 1, workers=3)
    assert roster(2).workers == 3
