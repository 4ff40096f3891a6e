import traceback
from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings
from kaiten.settings.models import RateLimitSettings

CANARY = "canary"


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an empty kaiten.yaml, so that the checkout's plays no part."""
    path = tmp_path / "kaiten.yaml"
    path.touch()
    monkeypatch.setenv("KAITEN_CONFIG", str(path))
    return path


@pytest.mark.parametrize("notation", ["100/minute", "5 per 2 hours", "1/second"])
def test_a_limit_is_read_in_the_library_s_notation(
    notation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_RATE_LIMIT__REQUESTS", notation)
    assert load_settings().rate_limit.requests == notation


def test_a_limit_is_switched_off_in_a_variable_and_in_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("rate_limit: {requests: off, tokens: off}")
    monkeypatch.setenv("KAITEN_RATE_LIMIT__CONCURRENCY", "off")
    assert load_settings().rate_limit == RateLimitSettings(
        requests=None, tokens=None, concurrency=None
    )


@pytest.mark.parametrize("key", ["requests", "tokens"])
@pytest.mark.parametrize(
    "notation",
    ["100", "100/fortnight", "0/minute", "-1/minute", "9/minute;9/hour", "many", f"{10**15}/day"],
)
def test_what_is_no_limit_is_refused_by_name(
    key: str, notation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KAITEN_RATE_LIMIT__{key.upper()}", notation)
    with pytest.raises(InvalidSettings) as refused:
        load_settings()
    assert [detail.field for detail in refused.value.details] == [f"rate_limit.{key}"]
    assert "100/minute" in refused.value.message


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://:p%2Fw@h:6379/0", "rediss://u:p@h:1/2", "unix:///run/redis.sock?db=1"],
)
def test_an_address_of_a_redis_is_taken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", url)
    address = load_settings().state.redis_url
    assert address is not None
    assert address.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        *("canary", "mysql://me:$canary@h/n", "postgresql://me:$canary@h", "postgresql:///n"),
        *("postgresql://me:ca/nary@h/n", "postgresql://h:canary/n", "sqlite:///canary.sqlite"),
        # Of each of these, some parser takes a part of the password for the host or the name.
        *("postgresql://me:$ca@nary@h/n", "postgresql://me:1/nary@h/n", "postgresql://h/n@nary"),
        *("postgresql://me:1/nary@h:5433/n", "postgresql://me:1/n?nary@h/n"),
    ],
)
def test_what_is_no_address_of_a_postgresql_is_refused_and_never_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_STATE__DATABASE_URL", url)
    with pytest.raises(InvalidSettings) as refused:
        load_settings()
    assert [detail.field for detail in refused.value.details] == ["state.database_url"]
    assert "nary" not in "".join(traceback.format_exception(refused.value))


def test_fewer_answers_kept_than_a_window_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_FEEDBACK__MAX_ROWS", "999")
    with pytest.raises(InvalidSettings, match="max_rows is under window_rows"):
        load_settings()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_an_address_of_a_postgresql_is_taken(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{scheme}://me:p$%2Fw@h:5433/quality"
    monkeypatch.setenv("KAITEN_STATE__DATABASE_URL", url)
    address = load_settings().state.database_url
    assert address is not None
    assert address.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["canary:6379", "http://canary", "redis://", "redis://:ca/nary@h", "redis://h:canary", "unix:"],
)
def test_what_is_no_address_of_a_redis_is_refused_and_never_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", url)
    with pytest.raises(InvalidSettings) as refused:
        load_settings()
    assert [detail.field for detail in refused.value.details] == ["state.redis_url"]
    told = "".join(traceback.format_exception(refused.value))
    assert "canary" not in told
    assert "nary" not in told


@pytest.mark.parametrize(
    "target",
    [f"s3://key:{CANARY}@bucket/prefix", f"sftp://me:/{CANARY}@host/x", f"a::s3://k:{CANARY}@b"],
)
def test_a_target_with_a_password_is_refused_and_never_told(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    with pytest.raises(InvalidSettings, match="holds a password") as refused:
        load_settings()
    assert [detail.field for detail in refused.value.details] == ["profiles.target"]
    told = "".join(traceback.format_exception(refused.value))
    assert CANARY not in told


@pytest.mark.parametrize("target", ["s3://bucket/a", "abfs://box@account.example/x", "/srv/a@b:c"])
def test_a_target_without_a_password_is_taken(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    assert load_settings().profiles.target == target
