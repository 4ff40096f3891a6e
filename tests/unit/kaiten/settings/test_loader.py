import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.auth.signing_secret import secret_of
from kaiten.errors import InvalidSettings
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import AuthSettings, SettingsSection
from tests.unit.kaiten.settings.refusals import SECRET, fields, settings_error


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAITEN_HOME")
    settings = load_settings()
    assert settings.environment == "development"
    assert not settings.in_production
    assert settings.home == ROOT / ".kaiten"
    assert settings.serving.models == ("support-intent:1.0.0",)
    assert settings.gateway.max_inputs <= settings.batching.max_queue_items
    assert settings.runners.device == "auto"
    assert settings.auth == AuthSettings(issuer="kaiten", audience="kaiten", leeway_s=10)
    assert secret_of(settings.auth) is None


def test_file_outranks_defaults(file: Path) -> None:
    file.write_text("batching:\n  max_batch_items: 7\n")
    batching = load_settings().batching
    assert (batching.max_batch_items, batching.max_queue_items) == (7, 512)


def test_environment_outranks_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("batching:\n  max_batch_items: 7\n  max_batch_tokens: 77\n")
    monkeypatch.setenv("KAITEN_BATCHING__MAX_BATCH_ITEMS", "8")
    batching = load_settings().batching
    assert (batching.max_batch_items, batching.max_batch_tokens) == (8, 77)


@pytest.mark.parametrize("name", ["environment", "home", "serving"])
def test_settings_are_frozen(name: str) -> None:
    settings = load_settings()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, getattr(settings, name))


def test_every_problem_is_named_at_once(file: Path) -> None:
    file.write_text("runners:\n  device: tpu\nlogging:\n  level: trace\n")
    error = settings_error()
    assert fields(error) == ["runners.device", "logging.level"]
    assert all(f"\n  {field}: " in error.message for field in fields(error))


@pytest.mark.parametrize("max_inputs", [8, 9])
def test_largest_request_must_fit_the_queue(
    max_inputs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_BATCHING__MAX_QUEUE_ITEMS", "8")
    monkeypatch.setenv("KAITEN_GATEWAY__MAX_INPUTS", str(max_inputs))
    if max_inputs == 8:
        assert load_settings().gateway.max_inputs == 8
        return
    reason = settings_error().details[0].reason
    assert "gateway.max_inputs is over batching.max_queue_items" in reason
    assert "lower the first or raise the second" in reason


IN_FILES = {
    "auth.secret": SECRET,
    "signatures.password": SECRET,
    "state.redis_url": "redis://:word@host:6379/0",
    "state.database_url": "postgresql://user:word@host/name",
    "logging.pseudonym_key": SECRET[::-1],
}


@pytest.mark.parametrize(
    ("in_a_bento", "text", "variable", "environment"),
    [
        (False, "", None, "development"),
        (True, "", None, "production"),
        (True, "environment: development", None, "development"),
        (True, "environment: production", "development", "development"),
    ],
)
def test_environment_defaults_to_production_inside_a_bento(
    in_a_bento: bool,  # noqa: FBT001  a case's own
    text: str,
    variable: str | None,
    environment: str,
    tmp_path: Path,
) -> None:
    source = tmp_path / "bento" / "src"
    shutil.copytree(ROOT / "kaiten", source / "kaiten")
    (source / "kaiten.yaml").write_text(text)
    if in_a_bento:
        (tmp_path / "bento" / "bento.yaml").touch()
    env = {name: value for name, value in os.environ.items() if not name.startswith("KAITEN_")}
    if variable is not None:
        env["KAITEN_ENVIRONMENT"] = variable
    code = "from kaiten.settings.loader import load_settings; print(load_settings().environment)"
    command = [sys.executable, "-c", code]
    output = subprocess.run(
        command, cwd=source, env=env, check=True, capture_output=True, text=True
    ).stdout
    assert output.strip() == environment


def test_keys_are_fetched_by_https_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = {"issuer": "them", "audience": "us", "jwks_url": "http://them.example/jwks"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer]))
    assert load_settings().auth.issuers
    monkeypatch.setenv("KAITEN_ENVIRONMENT", "production")
    with pytest.raises(InvalidSettings, match="is not https"):
        load_settings()


@pytest.mark.parametrize("empty", ["", "null", "~", "''", '""'])
def test_setting_left_empty_has_its_default(empty: str, file: Path) -> None:
    defaults = load_settings()
    lines = [f"environment: {empty}"]
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, SettingsSection):
            lines += [f"{name}:", *_each_left_empty(name, type(field.default), empty)]
    file.write_text("\n".join(lines))
    assert load_settings() == defaults


def _each_left_empty(path: str, section: type[SettingsSection], empty: str) -> list[str]:
    lines: list[str] = []
    for key, field in section.model_fields.items():
        name, indent = f"{path}.{key}", "  " * (path.count(".") + 1)
        if isinstance(field.default, SettingsSection):
            lines += [f"{indent}{key}:", *_each_left_empty(name, type(field.default), empty)]
        elif name not in IN_FILES:
            lines.append(f"{indent}{key}: {empty}")
    return lines or ["  {}"]
