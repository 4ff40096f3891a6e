import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from kaiten.settings.environment import PREFIX, ROOT
from kaiten.settings.loader import load_settings
from kaiten.settings.secrets import SECRET_SETTINGS, check_redis_url, check_secret
from tests.redis_server import redis_server

FOLDER = ROOT / "deploy" / "compose"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
GPU: dict[str, Any] = yaml.safe_load((FOLDER / "compose.gpu.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KAITEN = SERVICES["kaiten"]
# The empty file without which Compose stops.
MARK = "made"
# A variable, or one with a default or a message.
_VARIABLE = re.compile(r"\$\{(\w+)(:[-?][^}]*)?\}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy deploy/ without secrets, as on a new host, and return its folder for Compose."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns("secrets"))
    return tmp_path / "deploy" / "compose"


def make_secrets(folder: Path) -> str:
    # With a umask that makes files private by default.
    command = ["sh", "-c", "umask 077; ./secrets.sh"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout


def read_secrets(folder: Path) -> dict[str, str]:
    return {
        file.name: file.read_text("utf-8")
        for file in (folder / "secrets").iterdir()
        if file.is_file() and file.name != MARK
    }


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    user = service["user"].split(":")[0]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert user.isdigit()
    assert user != "0"
    assert {"mem_limit", "pids_limit", "healthcheck"} <= service.keys()
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & service.keys()
    assert "docker.sock" not in json.dumps(service)


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_published_on_loopback_alone(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+", port)


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "kaiten"])
def test_image_is_pinned_by_version_and_digest(name: str) -> None:
    image = SERVICES[name]["image"]
    assert re.fullmatch(r"[\w/-]+:v?\d+\.\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", image)


def test_own_image_has_no_default() -> None:
    ((name, modifier),) = _VARIABLE.findall(KAITEN["image"])
    assert name == "KAITEN_IMAGE"
    assert modifier.startswith(":?set KAITEN_IMAGE")


def test_redis_and_metrics_are_reached_by_who_needs_them_alone() -> None:
    members = {
        network: {name for name, service in SERVICES.items() if network in service["networks"]}
        for network in COMPOSE["networks"]
    }
    internal = {
        name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")
    }
    assert internal == {"state", "metrics"}
    assert members["state"] == {"kaiten", "redis"}
    assert members["metrics"] == {"kaiten", "prometheus"}
    assert members["callers"] == {"kaiten"}
    # A port is published only from a network that is not internal.
    assert all(
        set(service["networks"]) - internal for service in SERVICES.values() if "ports" in service
    )


def test_secrets_of_kaiten_are_files_named_as_settings_are() -> None:
    setting_names = {f"{PREFIX}{section}__{key}".lower() for section, key in SECRET_SETTINGS}
    assert set(KAITEN["secrets"]) <= setting_names
    assert "kaiten_auth__secret" in KAITEN["secrets"]
    assert KAITEN["env_file"] == [f"./secrets/{MARK}"]
    assert {secret["file"] for secret in COMPOSE["secrets"].values()} == {
        f"./secrets/{name}" for name in COMPOSE["secrets"]
    }
    mounted = [name for service in SERVICES.values() for name in service.get("secrets", [])]
    assert sorted(mounted) == sorted(COMPOSE["secrets"])


def test_environments_hold_no_secret_and_name_real_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for service in [*SERVICES.values(), *GPU["services"].values()]:
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", name):
                assert name.endswith("__FILE")
            if name.startswith(PREFIX):
                monkeypatch.setenv(name, str(value))
    assert load_settings().runners.device == "cuda"


def test_time_to_stop_is_longer_than_a_request_may_take() -> None:
    assert int(KAITEN["stop_grace_period"].removesuffix("s")) > (
        load_settings().serving.request_timeout_s
    )


def test_watchers_are_where_the_configurations_look_for_them() -> None:
    deploy = ROOT / "deploy"
    prometheus = yaml.safe_load((deploy / "prometheus" / "prometheus.yaml").read_text("utf-8"))
    targets = {
        target
        for part in [*prometheus["scrape_configs"], *prometheus["alerting"]["alertmanagers"]]
        for config in part["static_configs"]
        for target in config["targets"]
    }
    assert targets == {"kaiten:3000", "alertmanager:9093"}
    assert KAITEN["ports"][0].endswith(":3000")
    alertmanager = (deploy / "alertmanager" / "alertmanager.yaml").read_text("utf-8")
    (bind,) = [volume for volume in SERVICES["alertmanager"]["volumes"] if isinstance(volume, dict)]
    files = re.findall(r"_file: (\S+)", alertmanager)
    assert files
    assert {str(Path(file).parent) for file in files} == {bind["target"]}


def test_secrets_are_made_once_are_good_and_are_readable_in_containers_alone(
    folder: Path,
) -> None:
    make_secrets(folder)
    secrets = read_secrets(folder)
    output = make_secrets(folder)

    assert secrets.keys() == COMPOSE["secrets"].keys()
    check_secret(secrets["kaiten_auth__secret"].strip())
    check_redis_url(secrets["kaiten_state__redis_url"].strip())
    assert read_secrets(folder) == secrets
    assert "made" not in output
    assert not any(value.strip() in output for value in secrets.values())

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(folder / "secrets") == 0o700
    assert {mode(folder / "secrets" / name) for name in secrets} == {0o644}
    assert mode(folder / "secrets" / "alertmanager") == 0o755


def test_half_of_what_redis_needs_is_made_anew_and_the_rest_is_kept(folder: Path) -> None:
    make_secrets(folder)
    secrets = read_secrets(folder)
    (folder / "secrets" / "redis_acl").unlink()
    make_secrets(folder)
    later_secrets = read_secrets(folder)
    assert {name for name in secrets if later_secrets[name] != secrets[name]} == {
        "kaiten_state__redis_url",
        "redis_acl",
    }


def test_redis_takes_the_password_that_was_made_and_no_other(folder: Path) -> None:
    make_secrets(folder)
    url = read_secrets(folder)["kaiten_state__redis_url"].strip()
    secrets = folder / "secrets"
    places = {"/run/secrets/redis_acl": str(secrets / "redis_acl"), "/data": str(folder)}
    options = [places.get(argument, argument) for argument in SERVICES["redis"]["command"][1:]]
    with redis_server(options=options) as server:
        inside = Redis.from_url(url.replace("redis:6379", f"127.0.0.1:{server.port}"))
        assert inside.set("a", "b")
        config = inside.config_get("appendonly") | inside.config_get("maxmemory-policy")
        assert config == {"appendonly": "yes", "maxmemory-policy": "noeviction"}
        with pytest.raises(AuthenticationError):
            Redis(port=server.port).ping()
        with pytest.raises(NoPermissionError):
            Redis(port=server.port, username="health", password="-").get("a")

        (_, check) = SERVICES["redis"]["healthcheck"]["test"]
        assert check.startswith("redis-cli ")
        check = check.replace("redis-cli", f"redis-cli -p {server.port}")
        subprocess.run(["sh", "-c", check], check=True)


@pytest.fixture
def docker() -> list[str]:
    command = ["docker", "compose"]
    version_check = shutil.which("docker") and subprocess.run(
        [*command, "version"], check=False, capture_output=True
    )
    if not version_check or version_check.returncode:
        pytest.skip("docker compose is not on this machine: install Docker's compose plugin")
    return command


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_docker_compose_takes_the_files_and_asks_for_the_image_and_the_secrets(
    docker: list[str], folder: Path, files: list[str]
) -> None:
    command = [*docker, *(f"--file={file}" for file in files), "config", "--format", "json"]
    env = {k: v for k, v in os.environ.items() if k != "KAITEN_IMAGE"}

    def config(**extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=env | extra, check=False, capture_output=True, text=True
        )

    image = "registry.example.org/kaiten:1.0.0"
    without_secrets = config(KAITEN_IMAGE=image)
    make_secrets(folder)
    without_image = config()
    assert without_secrets.returncode != 0
    assert f"secrets/{MARK}" in without_secrets.stderr
    assert without_image.returncode != 0
    assert "set KAITEN_IMAGE" in without_image.stderr
    read = json.loads(config(KAITEN_IMAGE=image).stdout)
    assert read["services"].keys() == SERVICES.keys()
    assert all(port["host_ip"] == "127.0.0.1" for port in read["services"]["kaiten"]["ports"])
