import json
import os
import shutil
import subprocess
import sys
import traceback
from datetime import date
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr, ValidationError

from gateway.auth.signing_secret import secret_of
from kaiten.errors import InvalidSettings
from kaiten.settings.loader import (
    ROOT,
    Settings,
    bentoml_configuration,
    check_bentoml_configuration,
    check_secret_sources,
    cuda_visible_devices,
    environment_for,
    hand_down,
    load_settings,
    metrics_directory,
    settings_file,
    with_pseudonym_key,
)
from kaiten.settings.models import PLACEHOLDERS, ApiLifetimeSettings, AuthSettings, SettingsSection

SECRET = "8f14e45fceea167a5a36dedd4bea2543"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an empty kaiten.yaml, so that the checkout's plays no part."""
    path = tmp_path / "kaiten.yaml"
    path.touch()
    monkeypatch.setenv("KAITEN_CONFIG", str(path))
    return path


def refused() -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    return caught.value


def fields(error: InvalidSettings) -> list[str]:
    return [detail.field for detail in error.details]


def everything_told(error: InvalidSettings) -> str:
    return f"{error!r} {error.details} " + "".join(traceback.format_exception(error))


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAITEN_HOME")
    settings = load_settings()
    assert settings.environment == "development"
    assert not settings.in_production
    assert settings.home == Path(".kaiten")
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


@pytest.mark.parametrize(
    ("value", "models"),
    [
        ("a:1.0.0", ("a:1.0.0",)),
        ("a:1.0.0,b:2.0.0-rc.1", ("a:1.0.0", "b:2.0.0-rc.1")),
        ("a:1.0.0, b:2.0.0", ("a:1.0.0", "b:2.0.0")),
        ('["a:1.0.0"]', ("a:1.0.0",)),
        ('["a:1.0.0", "b:2.0.0"]', ("a:1.0.0", "b:2.0.0")),
    ],
)
def test_models_from_commas_and_from_json(
    value: str, models: tuple[str, ...], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f"serving:\n  models: {value if value.startswith('[') else repr(value)}\n")
    assert load_settings().serving.models == models
    file.write_text("")
    monkeypatch.setenv("KAITEN_SERVING__MODELS", value)
    assert load_settings().serving.models == models


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("a:", "'a:' names no version; write name:version, or a name alone"),
        (":1.0.0", "':1.0.0' names no version"),
        ("a:latest", "'a:latest' names no version"),
        ("A", "'A' names no version"),
        ("a:1.0.0,a:2.0.0", "each name once"),
        ("[]", "at least one model"),
        ('["a:1.0.0"', "delimiter"),
    ],
)
def test_unpinned_and_ambiguous_models_are_refused(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_SERVING__MODELS", value)
    error = refused()
    assert fields(error) == ["serving.models"]
    assert reason in error.details[0].reason


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("KAITEN_SERVNG__MODELS", "; did you mean KAITEN_SERVING?"),
        ("KAITEN_BATCHNG__MAX_BATCH_ITEMS", "; did you mean KAITEN_BATCHING?"),
        ("KAITEN_LOGGING_LEVEL", "; did you mean KAITEN_LOGGING?"),
        ("KAITEN_CONFG", "; did you mean KAITEN_CONFIG?"),
        ("KAITEN_ZZZZ", ""),
    ],
)
def test_unknown_variable_is_refused_with_a_suggestion(
    variable: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    error = refused()
    assert fields(error) == [variable]
    assert error.details[0].reason == f"names no setting{remedy}"


def test_a_version_of_the_api_is_given_its_dates_from_either_place(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("api_versions:\n  v1:\n    deprecated_at: 2026-12-01\n    sunset_at:\n")
    monkeypatch.setenv("KAITEN_API_VERSIONS__V1__SUNSET_AT", "2027-06-30")
    versions = load_settings().api_versions
    assert versions.of("1") == ApiLifetimeSettings(
        deprecated_at=date(2026, 12, 1), sunset_at=date(2027, 6, 30)
    )
    assert versions.of("2") == ApiLifetimeSettings()


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        (
            {"V1__DEPRECATED_AT": "2027-01-02", "V1__SUNSET_AT": "2027-01-01"},
            "api_versions.v1",
            "sunset_at is before deprecated_at; move one of them",
        ),
        (
            {"V2__LINK": "https://example.org/move"},
            "api_versions.v2",
            "link is set without deprecated_at or sunset_at",
        ),
        ({"V1__SUNSET_AT": "soon"}, "api_versions.v1.sunset_at", "date"),
        ({"V1__SUNSET_AT": "2027-01-01", "V1__LINK": "a note"}, "api_versions.v1.link", "URL"),
        ({"V3__SUNSET_AT": "2027-01-01"}, "api_versions.v3", "not permitted"),
    ],
)
def test_a_lifetime_that_can_not_be_is_refused(
    values: dict[str, str], field: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"KAITEN_API_VERSIONS__{name}", value)
    error = refused()
    assert fields(error) == [field]
    assert reason in error.details[0].reason


def test_unknown_key_in_a_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_SERVING__MODEL", "a:1.0.0")
    assert fields(refused()) == ["serving.model"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("servng:\n  models: [a:1.0.0]\n", "servng"),
        ("serving:\n  modelz: [a:1.0.0]\n", "serving.modelz"),
        ("max_batch_items: 8\n", "max_batch_items"),
    ],
)
def test_unknown_key_in_the_file_is_refused(text: str, field: str, file: Path) -> None:
    file.write_text(text)
    error = refused()
    assert fields(error) == [field]
    assert str(file) in error.message


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        ("KAITEN_ENVIRONMENT", "prod", "environment"),
        ("KAITEN_SERVING__REQUEST_TIMEOUT_S", "0", "serving.request_timeout_s"),
        ("KAITEN_SERVING__REQUEST_TIMEOUT_S", "601", "serving.request_timeout_s"),
        ("KAITEN_SERVING__REQUEST_TIMEOUT_S", "nan", "serving.request_timeout_s"),
        ("KAITEN_GATEWAY__MAX_BODY_BYTES", "1023", "gateway.max_body_bytes"),
        ("KAITEN_GATEWAY__MAX_INPUTS", "0", "gateway.max_inputs"),
        ("KAITEN_GATEWAY__MAX_TEXT_CHARS", "many", "gateway.max_text_chars"),
        ("KAITEN_BATCHING__MAX_BATCH_TOKENS", "0", "batching.max_batch_tokens"),
        ("KAITEN_BATCHING__MAX_BATCH_ITEMS", "-1", "batching.max_batch_items"),
        ("KAITEN_RUNNERS__DEVICE", "tpu", "runners.device"),
        ("KAITEN_RUNNERS__DEVICE", "cuda:", "runners.device"),
        ("KAITEN_RUNNERS__THREADS", "-1", "runners.threads"),
        ("KAITEN_AUTH__LEEWAY_S", "301", "auth.leeway_s"),
        ("KAITEN_DRIFT__WINDOW_S", "0", "drift.window_s"),
        ("KAITEN_PROFILES__MAX_PENDING_EVENTS", "0", "profiles.max_pending_events"),
        ("KAITEN_LOGGING__LEVEL", "trace", "logging.level"),
    ],
)
def test_value_out_of_range_is_refused(
    variable: str, value: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert fields(refused()) == [field]


def test_every_problem_is_named_at_once(file: Path) -> None:
    file.write_text("runners:\n  device: tpu\nlogging:\n  level: trace\n")
    error = refused()
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
    reason = refused().details[0].reason
    assert "gateway.max_inputs is over batching.max_queue_items" in reason
    assert "lower the first or raise the second" in reason


@pytest.mark.parametrize(
    "secret",
    [
        SECRET[:31],
        "ab" * 32,
        "0" * 64,
        *(f"{word}-{SECRET}" for word in PLACEHOLDERS),
        f"CHANGE-ME-{SECRET}",
    ],
)
@pytest.mark.parametrize("place", ["variable", "yaml"])
def test_weak_secret_is_refused_and_never_told(
    secret: str, place: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "variable":
        monkeypatch.setenv("KAITEN_AUTH__SECRET", secret)
    else:
        file.write_text(f"auth:\n  secret: '{secret}'\n")
    error = refused()
    assert fields(error) == ["auth.secret"]
    remedies = {
        "variable": "make one with `openssl rand -hex 32`",
        "yaml": "KAITEN_AUTH__SECRET",
    }
    assert remedies[place] in error.message
    assert secret not in everything_told(error)


@pytest.mark.parametrize(
    "text",
    [
        f"auth: '{SECRET}'\n",
        f"auth:\n  secret: ['{SECRET}']\n",
        f"auth:\n  secert: '{SECRET}'\n",
        f"secret: '{SECRET}'\n",
        f"auth:\n  secret: {SECRET}: {SECRET}\n",
        f"auth: [{SECRET}\n",
    ],
)
def test_misplaced_secret_is_never_told(text: str, file: Path) -> None:
    file.write_text(text)
    assert SECRET not in everything_told(refused())


@pytest.mark.parametrize("form", [repr, str, lambda settings: settings.model_dump_json()])
def test_settings_do_not_show_the_secret(form: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    settings = load_settings()
    assert secret_of(settings.auth) == SECRET
    assert callable(form)
    assert SECRET not in form(settings)


def test_secret_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    settings = load_settings()
    assert secret_of(settings.auth) == SECRET
    assert SECRET not in repr(settings)


def test_two_secrets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    error = refused()
    assert "auth.secret and auth.secret_file are both set; keep one" in error.message
    assert SECRET not in everything_told(error)


@pytest.mark.parametrize(
    "content", [None, b"", SECRET[:31].encode(), f"your-{SECRET}".encode(), b"\xff" * 40]
)
def test_unusable_secret_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidSettings) as caught:
        secret_of(AuthSettings(secret_file=path))
    assert fields(caught.value) == ["auth.secret_file"]
    assert str(path) in caught.value.message
    assert SECRET[:31] not in everything_told(caught.value)


def test_secret_file_may_not_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"auth\.secret_file"):
        secret_of(AuthSettings(secret_file=tmp_path))


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name a folder of secrets, which has none yet."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("KAITEN_SECRETS", str(folder))
    return folder


IN_FILES = {
    "auth.secret": SECRET,
    "signatures.password": SECRET,
    "state.redis_url": "redis://:word@host:6379/0",
    "state.database_url": "postgresql://user:word@host/name",
    "logging.pseudonym_key": SECRET[::-1],
}


def given_by(name: str) -> str | None:
    section, _, key = name.partition(".")
    found = getattr(getattr(load_settings(), section), key)
    return found.get_secret_value() if found else None


@pytest.mark.parametrize("name", IN_FILES)
def test_every_secret_may_be_a_file(name: str, secrets: Path) -> None:
    assert given_by(name) is None
    file = secrets / f"kaiten_{name.replace('.', '__')}"
    file.write_text(f"{IN_FILES[name]}\n")
    assert given_by(name) == IN_FILES[name]


def test_there_are_no_other_secrets() -> None:
    found = {
        f"{section}.{key}"
        for section, field in type(load_settings()).model_fields.items()
        if isinstance(field.default, SettingsSection)
        for key, part in type(field.default).model_fields.items()
        if SecretStr in get_args(part.annotation)
    }
    assert found == {*IN_FILES}


def test_variable_outranks_the_file_of_a_secret(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_state__redis_url").write_text("redis://file")
    (secrets / "kaiten_state__database_url").write_text("postgresql://file/name")
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", "redis://variable")
    assert given_by("state.redis_url") == "redis://variable"
    assert given_by("state.database_url") == "postgresql://file/name"


def test_file_of_a_secret_leaves_the_rest_of_its_section(file: Path, secrets: Path) -> None:
    file.write_text("auth:\n  issuer: ours\n")
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    auth = load_settings().auth
    assert (auth.issuer, secret_of(auth)) == ("ours", SECRET)


@pytest.mark.parametrize("named", ["", "/no/such/folder"])
def test_no_folder_of_secrets_is_as_if_none_were_named(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_SECRETS", named)
    assert secret_of(load_settings().auth) is None


def test_secret_in_two_files_is_refused(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    error = refused()
    assert "auth.secret and auth.secret_file are both set; keep one" in error.message
    assert SECRET not in everything_told(error)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("kaiten_auth__secret", SECRET[:31], "auth.secret"),
        ("kaiten_auth__secret", f"your-{SECRET}", "auth.secret"),
        ("kaiten_state__redis_url", f"http://:{SECRET}@host", "state.redis_url"),
        ("kaiten_state__database_url", f"mysql://user:{SECRET}@host/a", "state.database_url"),
        ("kaiten_logging__pseudonym_key", SECRET[:31], "logging.pseudonym_key"),
        ("kaiten_auth_secret", SECRET, "kaiten_auth_secret"),
    ],
)
def test_secret_in_a_file_is_never_told(name: str, content: str, field: str, secrets: Path) -> None:
    (secrets / name).write_text(content)
    error = refused()
    assert fields(error) == [field]
    assert str(secrets) in error.message
    assert content not in everything_told(error)
    assert SECRET[:31] not in everything_told(error)


def test_workers_find_the_folder_of_secrets_wherever_they_stand(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.chdir(secrets.parent)
    monkeypatch.setenv("KAITEN_SECRETS", secrets.name)
    hand_down(load_settings(), holders=1)
    monkeypatch.chdir("/")
    assert secret_of(load_settings().auth) == SECRET


@pytest.mark.parametrize("name", ["missing.yaml", ".", ""])
def test_config_that_names_no_file_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_CONFIG", str(tmp_path / name) if name else "")
    error = refused()
    assert fields(error) == ["KAITEN_CONFIG"]
    assert "give an absolute path" in error.message


def test_config_is_the_checkouts_own_by_default(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings_file() == file
    monkeypatch.delenv("KAITEN_CONFIG")
    assert settings_file() == ROOT / "kaiten.yaml"


def test_file_that_is_no_yaml_is_refused(file: Path) -> None:
    file.write_text("serving: [")
    assert fields(refused()) == ["file"]


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"hello\n", b"auth:\n  issuer: \xff\n"])
def test_file_that_is_no_mapping_is_refused(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert fields(refused()) == ["file"]


@pytest.mark.parametrize("variable", ["KAITEN_SERVING", "KAITEN_AUTH"])
def test_section_that_is_no_json_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, SECRET)
    assert SECRET not in everything_told(refused())


@pytest.mark.parametrize(
    ("in_a_bento", "text", "variable", "environment"),
    [
        (False, "", None, "development"),
        (True, "", None, "production"),
        (True, "environment: development", None, "development"),
        (True, "environment: production", "development", "development"),
    ],
)
def test_environment_is_production_inside_a_bento_unless_told(
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
    found = subprocess.run(
        command, cwd=source, env=env, check=True, capture_output=True, text=True
    ).stdout
    assert found.strip() == environment


def test_workers_are_handed_the_home_and_their_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_HOME", "state")
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "3")
    hand_down(load_settings(), holders=2)
    handed_down = load_settings()
    assert handed_down.home == tmp_path / "state"
    assert handed_down.runners.threads == 3


def test_workers_find_the_keys_of_issuers_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"issuer": "a", "audience": "kaiten", "public_key_file": "keys/a.pem"}
    by_url = {
        "issuer": "b",
        "audience": "kaiten",
        "jwks_url": "https://b/jwks",
        "algorithms": ["ES256"],
    }
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([named, by_url]))
    monkeypatch.chdir(tmp_path)
    before = load_settings().auth.issuers
    hand_down(load_settings(), holders=1)
    monkeypatch.chdir("/")
    first, second = load_settings().auth.issuers
    assert first.public_key_file == tmp_path / "keys" / "a.pem"
    assert second == before[1]


@pytest.mark.parametrize("workers", [1, 1_000_000])
def test_cores_are_shared_by_the_workers(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_RUNNERS__THREADS", "0")
    hand_down(load_settings(), workers)
    threads = load_settings().runners.threads
    cores = os.cpu_count() or 1
    assert 1 <= threads <= max(1, cores // workers)


@pytest.mark.parametrize(("devices", "expected"), [(["3", "GPU-1"], "3,GPU-1"), ([], "7")])
def test_workers_are_handed_the_devices_to_share_out(
    devices: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    hand_down(load_settings(), 2, devices)
    assert cuda_visible_devices() == os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert load_settings().runners.device == ("cuda" if devices else "auto")


def test_environment_for_replaces_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_HOME", "before")
    environment = environment_for({"KAITEN_HOME": "after"})
    assert environment == {**os.environ, "KAITEN_HOME": "after"}
    assert os.environ["KAITEN_HOME"] == "before"


@pytest.mark.parametrize("value", ["/somewhere", None])
def test_bentomls_own_variables_are_read(
    value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BENTOML_CONFIG", "PROMETHEUS_MULTIPROC_DIR"):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert bentoml_configuration() == value
    assert metrics_directory() == value


def test_workers_are_handed_one_key_for_pseudonyms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", "")
    hand_down(with_pseudonym_key(load_settings(), SECRET), holders=1)
    key = load_settings().logging.pseudonym_key
    assert key is not None
    assert key.get_secret_value() == SECRET


@pytest.mark.parametrize("key", [SECRET[:31], "0" * 64])
def test_weak_key_for_pseudonyms_is_refused_and_never_told(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", key)
    error = refused()
    assert fields(error) == ["logging.pseudonym_key"]
    assert key not in everything_told(error)


def test_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", "")
    monkeypatch.setenv("KAITEN_AUTH__SECRET", "")
    auth = load_settings().auth
    assert (auth.secret, auth.secret_file) == (None, None)


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_3000_TCP_ADDR", "REDIS_SERVICE_HOST"],
)
def test_what_kubernetes_sets_for_a_service_is_passed_over(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KAITEN_{name}", "tcp://10.0.0.1:3000")
    assert load_settings().serving.models


def test_hand_down_makes_relative_paths_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", "secret")
    hand_down(load_settings(), None)
    assert load_settings().auth.secret_file == tmp_path / "secret"


@pytest.mark.parametrize("target", ["s3://bucket/prefix", "/srv/profiles", "profiles"])
def test_hand_down_makes_the_folder_of_profiles_absolute_and_leaves_an_address(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    hand_down(load_settings(), None)
    expected = str(tmp_path / target) if target == "profiles" else target
    assert load_settings().profiles.target == expected


def test_hand_down_makes_the_files_of_issuers_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    issuer = {"issuer": "them", "audience": "us", "public_key_file": "them.pem"}
    other = {"issuer": "others", "audience": "us", "jwks_url": "https://others.example/jwks"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer, other]))
    hand_down(load_settings(), None)
    monkeypatch.chdir("/")
    found = load_settings().auth.issuers
    assert [each.issuer for each in found] == ["them", "others"]
    assert found[0].public_key_file == tmp_path / "them.pem"
    assert found[1].jwks_url == other["jwks_url"]


ISSUERS: dict[str, tuple[list[dict[str, object]], str]] = {
    "one twice": ([{"jwks_url": "https://a.example/"}] * 2, "two have one name"),
    "no source": ([{}], "give one of jwks_url"),
    "two sources": (
        [{"jwks_url": "https://a.example/", "secret_file": "a"}],
        "give one of jwks_url",
    ),
    "unknown algorithm": ([{"secret_file": "a", "algorithms": ["none"]}], "Input should be"),
    "with a password": ([{"jwks_url": "https://me:word@a.example/"}], "jwks_url"),
    "own name": ([{"issuer": "kaiten", "secret_file": "a"}], "this service's own"),
}


@pytest.mark.parametrize("what", ISSUERS)
def test_issuers_that_do_not_hold_are_refused_by_name(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, told = ISSUERS[what]
    issuers = [{"issuer": "them", "audience": "us", **row} for row in rows]
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps(issuers))
    with pytest.raises(InvalidSettings, match=told) as caught:
        load_settings()
    assert "word" not in caught.value.message


def test_keys_are_fetched_by_https_in_production(monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = {"issuer": "them", "audience": "us", "jwks_url": "http://them.example/jwks"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer]))
    assert load_settings().auth.issuers
    monkeypatch.setenv("KAITEN_ENVIRONMENT", "production")
    with pytest.raises(InvalidSettings, match="is not https"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (
            "batching:\n  max_queue_items: 300\ngateway: {}\nbatching:\n  max_padding_ratio: 0.2\n",
            "batching",
            "line 4: is given twice, first at line 1; keep one of the two",
        ),
        (
            "Batching:\n  max_queue_items: 300\n",
            "Batching",
            "line 1: names no setting; did you mean batching?",
        ),
        (
            "batching:\n  max-queue-items: 300\n",
            "batching.max-queue-items",
            "line 2: names no setting; did you mean batching.max_queue_items?",
        ),
        (
            "# a comment\nmax_queue_items: 300\n",
            "max_queue_items",
            "line 2: names no setting; write it as batching.max_queue_items, indented below",
        ),
        (
            "serving:\n  gateway:\n    max_inputs: 3\n",
            "serving.gateway",
            "line 2: names no setting; it is a section of its own: take its indentation away",
        ),
        (
            "auth:\n  issuers:\n  - isuer: a\n    audience: b\n",
            "auth.issuers.0.isuer",
            "line 3: names no setting; did you mean auth.issuers.0.issuer?",
        ),
        (
            "batching:\n  max_queue_items: 300\n  Max-Queue-Items: 400\n",
            "batching.Max-Queue-Items",
            "line 3: names no setting; did you mean batching.max_queue_items?",
        ),
        ("auth:\n  secret:\n", "auth.secret", "may not stand in a file that is shipped"),
        ("tls:\n  certificate: a.pem\n  private_key:\n", "tls", "line 1: certificate and private"),
        ("batching:\n", "batching", "line 1: is an empty section"),
        ("batching:\n  - max_padding_ratio: 0.2\n", "batching", "line 1: is a section; write key"),
        ("api_versions:\n  v1:\n", "api_versions.v1", "line 2: is an empty section"),
        ("batching:\n  max_queue_items: on\n", "batching.max_queue_items", "line 2: is a word"),
        ("serving:\n  drain_s: no\n", "serving.drain_s", "line 2: is a word"),
        ("rate_limit:\n  concurrency: yes\n", "rate_limit.concurrency", "line 2: is a word"),
        ("auth:\n  issuer: no\n", "auth.issuer", "line 2: is a word"),
        (
            "api_versions:\n  v1:\n    sunset_at: 86400\n",
            "api_versions.v1.sunset_at",
            "line 3: is a number and no date",
        ),
        ("auth:\n  issuer: 2026-01-01\n", "auth.issuer", "line 2: Input should be a valid string"),
        ("serving:\n  request_timeout_s: 0\n", "serving.request_timeout_s", "line 2: Input"),
        (
            "rate_limit:\n  requests: 012\n",
            "rate_limit.requests",
            "line 2: is read as an octal number",
        ),
    ],
)
def test_setting_that_would_be_lost_or_changed_is_refused_by_line_and_key(
    text: str, field: str, reason: str, file: Path
) -> None:
    file.write_text(text)
    error = refused()
    assert fields(error) == [field]
    assert error.details[0].reason.startswith(reason)
    assert str(file) in error.message


def scope_map_of(written: str, file: Path) -> object:
    file.write_text(
        "auth:\n  issuers:\n  - issuer: them\n    audience: us\n"
        f"    jwks_url: https://them.example/jwks\n    scope_map: {written}\n"
    )
    return load_settings().auth.issuers[0].scope_map


@pytest.mark.parametrize(
    "names",
    [
        ["Texts.Predict", "realm/admin", "104372000000000000000"],
        ["predictions-write", "Predictions_Write", "PREDICTIONS_WRITE"],
        ["issuer", "batching", "scope_mapp"],
    ],
)
def test_names_of_an_issuer_may_be_any_text(names: list[str], file: Path) -> None:
    written = ", ".join(f'"{name}": [predict, "feedback:a"]' for name in names)
    expected = dict.fromkeys(names, ("predict", "feedback:a"))
    assert scope_map_of(f"{{{written}}}", file) == expected


@pytest.mark.parametrize(
    ("written", "field", "reason"),
    [
        ("{a: [everything]}", "auth.issuers.0.scope_map.a.0", "line 6: String should match"),
        ("{a: predict}", "auth.issuers.0.scope_map.a", "line 6: Input should be a valid tuple"),
        ("{a: {b: c}}", "auth.issuers.0.scope_map.a", "line 6: Input should be a valid tuple"),
        ("{a: }", "auth.issuers.0.scope_map.a", "line 6: Input should be a valid tuple"),
        ("{a: [on]}", "auth.issuers.0.scope_map.a.0", "line 6: is a word that YAML reads"),
        ("{a: [ops], a: [ops]}", "auth.issuers.0.scope_map.a", "line 6: is given twice"),
    ],
)
def test_what_an_issuers_names_allow_is_checked(
    written: str, field: str, reason: str, file: Path
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        scope_map_of(written, file)
    assert fields(caught.value) == [field]
    assert caught.value.details[0].reason.startswith(reason)


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


def test_issuer_that_is_left_empty_is_refused(file: Path) -> None:
    file.write_text("auth:\n  issuers:\n  - issuer: them\n    audience:\n    secret_file: a\n")
    assert fields(refused()) == ["auth.issuers.0.audience"]


def test_off_is_no_limit_and_a_switch_takes_any_word(file: Path) -> None:
    file.write_text("rate_limit:\n  requests: off\nprofiles:\n  enabled: no\n")
    settings = load_settings()
    assert settings.rate_limit.requests is None
    assert settings.profiles.enabled is False


@pytest.mark.parametrize(
    ("variable", "value", "field", "reason"),
    [
        (
            "KAITEN_BATCHING__MAX_QUEUE_ITEM",
            "300",
            "batching.max_queue_item",
            "did you mean KAITEN_BATCHING__MAX_QUEUE_ITEMS?",
        ),
        ("KAITEN_HOME__FOLDER", "x", "home.folder", "names no setting"),
        ("KAITEN_SERVING__MODELS__FIRST", "a:1.0.0", "serving.models.first", "names no setting"),
        (
            "kaiten_batching__max_queue_items",
            "300",
            "kaiten_batching__max_queue_items",
            "is not in capitals; write KAITEN_BATCHING__MAX_QUEUE_ITEMS",
        ),
        (
            "KAITEN_Batching__Max_Queue_Items",
            "300",
            "KAITEN_Batching__Max_Queue_Items",
            "is not in capitals",
        ),
        ("KAITEN_BATCHING", '{"max_padding_ratio": 0.2}', "KAITEN_BATCHING", "set it key by key"),
        (
            "KAITEN_AUTH__ISSUERS",
            '[{"issuer": "a", "audience": "b", "audience": "c", "secret_file": "d"}]',
            "KAITEN_AUTH__ISSUERS",
            "gives the key audience twice",
        ),
        ("KAITEN_AUTH__ISSUERS", "[" * 100_000, "KAITEN_AUTH__ISSUERS", "is nested too deeply"),
    ],
)
def test_variable_that_names_no_setting_or_hides_one_is_refused(
    variable: str, value: str, field: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_BATCHING__MAX_QUEUE_ITEMS", "400")
    monkeypatch.setenv(variable, value)
    error = refused()
    assert fields(error) == [field]
    assert reason in error.details[0].reason


def test_secret_in_a_variable_and_in_a_file_is_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_SECRETS", str(tmp_path))
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    check_secret_sources()
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET[::-1])
    with pytest.raises(InvalidSettings, match="keep one of the two") as caught:
        check_secret_sources()
    assert fields(caught.value) == ["kaiten_auth__secret"]
    assert SECRET not in everything_told(caught.value)
    assert SECRET[::-1] not in everything_told(caught.value)


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        (
            "services:\n  kaiten_service:\n    workers: 1\n  kaiten_service:\n    workers: 2\n",
            "services.kaiten_service",
            "line 4: is given twice, first at line 2",
        ),
        (
            "services:\n  kaiten_service:\n    traffic: {timeout: 1:30}\n",
            "services.kaiten_service.traffic.timeout",
            "line 3: is read as a number to base 60",
        ),
        ("services:\n\tkaiten_service: {}\n", "BENTOML_CONFIG", "line 2: is indented or separated"),
    ],
)
def test_what_bentoml_would_lose_of_its_own_file_is_refused(
    text: str, field: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bentoml.yaml").write_text(text)
    monkeypatch.setenv("BENTOML_CONFIG", str(tmp_path / "bentoml.yaml"))
    with pytest.raises(InvalidSettings) as caught:
        check_bentoml_configuration()
    assert fields(caught.value) == [field]
    assert caught.value.details[0].reason.startswith(reason)


@pytest.mark.parametrize("name", ["kaiten.yaml", "configuration.yaml"])
def test_files_of_the_checkout_hold_nothing_that_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_CONFIG", str(ROOT / "kaiten.yaml"))
    monkeypatch.setenv("BENTOML_CONFIG", str(ROOT / name))
    check_bentoml_configuration()
    assert load_settings().serving.models
