import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.auth.signing_secret import secret_of, signing_secret
from kaiten.pseudonyms import key_setting, pseudonym_key
from kaiten.settings.environment import (
    ROOT,
    cuda_visible_devices,
)
from kaiten.settings.handover import (
    hand_down_settings,
    remove_settings_variables,
    with_pseudonym_key,
)
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import LoggingSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE
from kaiten.settings.snapshot import (
    read_key_file,
)
from tests.unit.kaiten.settings.refusals import OTHER, SECRET

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
    "KAITEN_SERVING__REPORTS": '{"a:1.0.0": "one"}',
    "KAITEN_RATE_LIMIT__REQUESTS": "off",
    "KAITEN_RATE_LIMIT__PLANS": '{"batch": {"tokens": "9/minute"}}',
    "KAITEN_RATE_LIMIT__SUBJECTS": '{"kaiten|a": "batch"}',
    "KAITEN_VALIDATION__MODELS": '{"topic": {"min_accuracy": 0.9}}',
    "KAITEN_VERSIONING__RELEASE_PROCESS": "[]",
    "KAITEN_AUTH__ISSUERS": json.dumps(
        [{"issuer": "a", "audience": "b", "jwks_url": "https://a/", "algorithms": ["ES256"]}]
    ),
    "KAITEN_PROFILES__TARGET": "s3://bucket/prefix",
}


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def load_after_handover(settings: Settings) -> Settings:
    hand_down_settings(settings, holders=1)
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
    hand_down_settings(settings, holders=1)
    worker_settings = load_settings()
    assert worker_settings.runners.threads >= 1
    assert worker_settings.model_dump(exclude={"runners"}) == expected.model_dump(
        exclude={"runners"}
    )
    # A limit that a plan leaves out is still the default one.
    assert worker_settings.rate_limit.plan("batch").requests is None


def test_every_setting_of_the_file_survives_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = yaml.safe_load((ROOT / "kaiten.yaml").read_text("utf-8"))
    named["runners"]["threads"] = 1
    file = tmp_path / "kaiten.yaml"
    file.write_text(yaml.safe_dump(named), encoding="utf-8")
    monkeypatch.setenv("KAITEN_CONFIG", str(file))
    before = load_settings()
    assert load_after_handover(before) == before.model_copy(update={"home": before.home.resolve()})


def test_no_setting_is_left_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"KAITEN_AUTH__AUDIENCE": "theirs", "KAITEN_SERVICE_HOST": "10.0.0.1"}
    set_all(monkeypatch, SECRETS | variables)
    settings = load_settings()
    # A start refuses a variable that is not in capitals; it leaves the environment all the same.
    monkeypatch.setenv("kaiten_auth__secret", SECRET)
    hand_down_settings(settings, holders=1)
    names = {name for name in os.environ if name.lower().startswith("kaiten_")}
    assert names == {"KAITEN_SNAPSHOT", "KAITEN_SERVICE_HOST"}
    assert load_settings().auth.audience == "theirs"


@pytest.mark.parametrize("change", ["rotate", "delete"])
def test_files_that_change_afterwards_do_not_change_the_snapshot(
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
    hand_down_settings(load_settings(), holders=1)
    for file, (_, after) in contents.items():
        file.write_text(after) if change == "rotate" else file.unlink()

    worker_settings = load_settings()
    key = worker_settings.logging.pseudonym_key
    assert key is not None
    assert key.get_secret_value() == SECRET
    assert secret_of(worker_settings.auth) == SECRET
    assert worker_settings.auth.audience == "first"
    named = worker_settings.auth.issuers[0].secret_file
    assert named is not None
    assert read_key_file(named) == SECRET.encode()


@pytest.mark.parametrize("change", ["rotate", "delete"])
def test_development_secret_stays_in_the_snapshot(change: str, tmp_path: Path) -> None:
    secret = signing_secret(load_settings())
    hand_down_settings(load_settings(), holders=1)
    file = tmp_path / DEVELOPMENT_SECRET_FILE
    file.write_text(OTHER) if change == "rotate" else file.unlink()
    assert signing_secret(load_settings()) == secret
    assert file.exists() is (change == "rotate")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_secrets_leave_the_environment_that_the_parent_was_started_with() -> None:
    program = (
        "import os\n"
        "from kaiten.settings.handover import hand_down_settings\n"
        "from kaiten.settings.loader import load_settings\n"
        "settings = load_settings()\n"
        "assert hand_down_settings(settings, holders=1)\n"
        "print(open('/proc/self/environ').read())\n"
        "assert os.environ['NEIGHBOUR'] == os.popen('echo $NEIGHBOUR').read().strip() == 'here'\n"
    )
    environment = {**os.environ, **SECRETS, "NEIGHBOUR": "here"}
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert not [word for word in SECRETS.values() if word in output]
    assert "NEIGHBOUR=here" in output


def test_settings_are_forgotten_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, SECRETS | {"KAITEN_SECRETS": "/run/secrets", "OTHER_SECRET": "x"})
    remove_settings_variables()
    assert not [name for name in os.environ if name.startswith("KAITEN_")]
    assert os.environ["OTHER_SECRET"] == "x"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an empty folder of secrets."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("KAITEN_SECRETS", str(folder))
    return folder


def test_workers_find_the_folder_of_secrets_wherever_they_stand(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.chdir(secrets.parent)
    monkeypatch.setenv("KAITEN_SECRETS", secrets.name)
    hand_down_settings(load_settings(), holders=1)
    monkeypatch.chdir("/")
    assert secret_of(load_settings().auth) == SECRET


def test_workers_are_handed_the_home_and_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_HOME", "state")
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "3")
    hand_down_settings(load_settings(), holders=2)
    settings = load_settings()
    assert settings.home == tmp_path / "state"
    assert settings.runners.threads == 3


@pytest.mark.parametrize("workers", [1, 1_000_000])
def test_cores_are_shared_by_the_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "0")
    hand_down_settings(load_settings(), workers)
    threads = load_settings().runners.threads
    cores = os.cpu_count() or 1
    assert 1 <= threads <= max(1, cores // workers)


@pytest.mark.parametrize(("devices", "expected"), [(["3", "GPU-1"], "3,GPU-1"), ([], "7")])
def test_workers_are_handed_the_devices_to_share_out(
    devices: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    hand_down_settings(load_settings(), 2, devices)
    assert cuda_visible_devices() == os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert load_settings().runners.device == ("cuda" if devices else "auto")


def test_workers_are_handed_one_key_for_pseudonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", "")
    hand_down_settings(with_pseudonym_key(load_settings(), SECRET), holders=1)
    key = load_settings().logging.pseudonym_key
    assert key is not None
    assert key.get_secret_value() == SECRET


def test_hand_down_makes_relative_paths_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", "secret")
    hand_down_settings(load_settings(), None)
    assert load_settings().auth.secret_file == tmp_path / "secret"


@pytest.mark.parametrize("target", ["s3://bucket/prefix", "/srv/profiles", "profiles"])
def test_hand_down_makes_the_folder_of_profiles_absolute_and_leaves_an_address(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    hand_down_settings(load_settings(), None)
    expected = str(tmp_path / target) if target == "profiles" else target
    assert load_settings().profiles.target == expected


def test_hand_down_makes_the_files_of_issuers_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    issuer = {"issuer": "them", "audience": "us", "public_key_file": "them.pem"}
    other = {"issuer": "others", "audience": "us", "jwks_url": "https://others.example/jwks"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer, other]))
    hand_down_settings(load_settings(), None)
    monkeypatch.chdir("/")
    issuers = load_settings().auth.issuers
    assert [issuer.issuer for issuer in issuers] == ["them", "others"]
    assert issuers[0].public_key_file == tmp_path / "them.pem"
    assert issuers[1].jwks_url == other["jwks_url"]


def test_workers_follow_the_file_of_the_signing_secret(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = secrets / "kaiten_auth__secret"
    file.write_text(f"{SECRET}\n{OTHER} until 2000-01-01\n")
    hand_down_settings(load_settings(), holders=1)
    auth = load_settings().auth
    assert (auth.secret, auth.secret_file) == (None, file)
    secret = signing_secret(load_settings())
    assert (secret.value, secret.file) == (SECRET, file)


def test_workers_take_the_signing_secret_of_a_variable_as_it_is(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    hand_down_settings(load_settings(), holders=1)
    secret = signing_secret(load_settings())
    assert (secret.value, secret.file) == (SECRET, None)


def test_workers_keep_a_derived_pseudonym_key() -> None:
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    hand_down_settings(with_pseudonym_key(load_settings(), key_setting(key)), holders=1)
    assert pseudonym_key(load_settings().logging, OTHER) == key
