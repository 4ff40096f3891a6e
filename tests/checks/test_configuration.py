import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pathspec
import pytest
import yaml

from kaiten.settings.environment import ROOT
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import SettingsSection

# Secrets never stand in the file, and these two depend on where it lies.
LEFT_OUT = {
    "auth.secret",
    "auth.secret_file",
    "environment",
    "home",
    "signatures.password",
    "state.redis_url",
    "state.database_url",
    "serving.reports",
    "runners.sockets",
    "state.credentials_copy",
    "logging.pseudonym_key",
}


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def decorator(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what service.py's decorator is given, by a process of its own, as it configures it."""
    environment = {name: value for name, value in os.environ.items() if "KAITEN_" not in name}
    environment["BENTOML_HOME"] = str(tmp_path_factory.mktemp("bentoml"))
    code = "import json, service; print(json.dumps([service.Kaiten.name, service.Kaiten.config]))"
    command = [sys.executable, "-c", code]
    output = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout
    name, config = json.loads(output)
    return {"name": name, **config}


def test_configuration_says_what_the_decorator_says(decorator: dict[str, Any]) -> None:
    # The address depends on the environment and TLS on our settings, which a file cannot express.
    values = {key: decorator[key] for key in decorator.keys() - {"name", "http", "ssl"}}
    assert read("configuration.yaml") == {"services": {decorator["name"]: values}}


def test_development_listens_on_this_machine_only(decorator: dict[str, Any]) -> None:
    assert decorator["http"] == {"host": "127.0.0.1"}


def test_bentomls_timeout_is_above_ours(decorator: dict[str, Any]) -> None:
    assert decorator["traffic"]["timeout"] > load_settings().serving.request_timeout_s


# What BentoML makes of each key of configuration.yaml, in the process that serves.
IN_FORCE = """
import json, service
from _bentoml_impl.server.allocator import ResourceAllocator
from _bentoml_impl.server.app import ServiceAppFactory
service.Kaiten.inject_config()
middlewares = {
    middleware.cls.__name__: middleware.kwargs
    for middleware in ServiceAppFactory(service.Kaiten, is_main=True).middlewares
}
print(json.dumps({
    "workers": ResourceAllocator().get_worker_env(service.Kaiten)[0],
    "traffic.timeout": middlewares["BackStopMiddleware"]["timeout"],
    "metrics.enabled": "RunnerTrafficMetricsMiddleware" in middlewares,
    "logging.access.enabled": "AccessLogMiddleware" in middlewares,
}))
"""
CHANGED = {
    "workers": 3,
    "traffic.timeout": 45,
    "metrics.enabled": True,
    "logging.access.enabled": True,
}


def flat(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return leaves


def test_every_key_of_the_configuration_is_in_force(tmp_path: Path) -> None:
    """A key that BentoML passes over would leave what service.py says."""
    stated = flat(read("configuration.yaml")["services"]["kaiten_service"])
    assert stated.keys() == CHANGED.keys()
    assert all(stated[key] != value for key, value in CHANGED.items())
    changed = read("configuration.yaml")
    for path, value in CHANGED.items():
        *sections, key = path.split(".")
        section = changed["services"]["kaiten_service"]
        for name in sections:
            section = section[name]
        section[key] = value
    (tmp_path / "changed.yaml").write_text(yaml.safe_dump(changed))
    for file, expected in (
        (ROOT / "configuration.yaml", stated),
        (tmp_path / "changed.yaml", CHANGED),
    ):
        env = {name: value for name, value in os.environ.items() if "KAITEN_" not in name}
        env |= {"BENTOML_CONFIG": str(file), "BENTOML_HOME": str(tmp_path / "bentoml")}
        command = [sys.executable, "-c", IN_FORCE]
        done = subprocess.run(
            command, cwd=ROOT, env=env, check=True, capture_output=True, text=True
        )
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_bentoml_takes_our_back_stop_for_its_own() -> None:
    code = (
        "import service; service.Kaiten.inject_config(); "
        "from _bentoml_impl.server.app import ServiceAppFactory; "
        "stops = ServiceAppFactory(service.Kaiten, is_main=True).middlewares; "
        "print([stop.kwargs for stop in stops if stop.cls.__name__ == 'BackStopMiddleware'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[{'timeout': 60}]"


def test_bento_installs_what_the_project_depends_on() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (file,) = setup["setuptools"]["dynamic"]["dependencies"]["file"]
    assert read("bentofile.yaml")["python"]["requirements_txt"] == f"./{file}"


def test_bento_holds_every_module_and_no_other() -> None:
    # The syntax of .gitignore, by the library that BentoML matches them with.
    included = pathspec.PathSpec.from_lines("gitignore", read("bentofile.yaml")["include"])
    tops = [path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")]
    modules = {path for top in tops for path in top.rglob("*.py")} | {*ROOT.glob("*.py")}
    bento_modules = {path for path in modules if included.match_file(path.relative_to(ROOT))}
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    packages = [path for path in packages if path.name not in ("tests", "benchmarks")]
    package_modules = {path for package in packages for path in package.rglob("*.py")}
    assert bento_modules == package_modules | {ROOT / "service.py"}


@pytest.mark.parametrize("name", ["kaiten.yaml", "configuration.yaml"])
def test_bento_holds_its_settings(name: str) -> None:
    included = pathspec.PathSpec.from_lines("gitignore", read("bentofile.yaml")["include"])
    assert (ROOT / name).is_file()
    assert included.match_file(name)


def test_image_is_made_with_the_tested_uv() -> None:
    # BentoML's own line takes the newest, unless this one has installed it.
    source = (ROOT / "server" / "bentoml_config.py").read_text()
    (pin,) = re.findall(r"pip install --no-cache-dir (\S+)\"", source)
    assert pin in (ROOT / "constraints.txt").read_text().splitlines()


def test_bento_names_the_service() -> None:
    assert read("bentofile.yaml")["service"] == "service:Kaiten"


def test_settings_file_states_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = load_settings()
    (tmp_path / "empty.yaml").touch()
    monkeypatch.setenv("KAITEN_CONFIG", str(tmp_path / "empty.yaml"))
    assert load_settings() == stated


def test_settings_file_names_every_setting_and_no_other() -> None:
    stated = {f"{section}.{key}" for section, part in read("kaiten.yaml").items() for key in part}
    settings = set()
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, SettingsSection):
            settings |= {f"{name}.{key}" for key in type(field.default).model_fields}
        else:
            settings.add(name)
    assert settings >= LEFT_OUT
    assert stated == settings - LEFT_OUT
