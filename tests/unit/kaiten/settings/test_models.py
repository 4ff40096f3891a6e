import json
import traceback
from datetime import date
from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings
from kaiten.settings.models import ApiLifetimeSettings, RateLimitSettings
from tests.unit.kaiten.settings.refusals import fields, settings_error

CANARY = "canary"


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
def test_invalid_limit_is_rejected(
    key: str, notation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KAITEN_RATE_LIMIT__{key.upper()}", notation)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert [detail.field for detail in caught.value.details] == [f"rate_limit.{key}"]
    assert "100/minute" in caught.value.message


def test_max_rows_under_window_rows_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_FEEDBACK__MAX_ROWS", "999")
    with pytest.raises(InvalidSettings, match="max_rows is under window_rows"):
        load_settings()


@pytest.mark.parametrize(
    "target",
    [f"s3://key:{CANARY}@bucket/prefix", f"sftp://me:/{CANARY}@host/x", f"a::s3://k:{CANARY}@b"],
)
def test_profiles_target_with_a_password_is_rejected_and_never_shown(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    with pytest.raises(InvalidSettings, match="contains a password") as caught:
        load_settings()
    assert [detail.field for detail in caught.value.details] == ["profiles.target"]
    message = "".join(traceback.format_exception(caught.value))
    assert CANARY not in message


@pytest.mark.parametrize("target", ["s3://bucket/a", "abfs://box@account.example/x", "/srv/a@b:c"])
def test_a_target_without_a_password_is_taken(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_PROFILES__TARGET", target)
    assert load_settings().profiles.target == target


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
        ("a:", "'a:' does not name a version; write name:version, name@staging, or a name alone"),
        (":1.0.0", "':1.0.0' does not name a version"),
        ("a:latest", "'a:latest' does not name a version"),
        ("a@", "'a@' does not name a version"),
        ("a@canary", "'a@canary' does not name a version"),
        ("a:1.0.0@staging", "'a:1.0.0@staging' does not name a version"),
        ("a@staging,a:2.0.0", "each name once"),
        ("A", "'A' does not name a version"),
        ("a:1.0.0,a:2.0.0", "each name once"),
        ("[]", "at least one model"),
    ],
)
def test_unpinned_and_ambiguous_models_are_rejected(
    value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_SERVING__MODELS", value)
    error = settings_error()
    assert fields(error) == ["serving.models"]
    assert reason in error.details[0].reason


def test_a_version_of_the_api_is_given_its_dates_from_either_place(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("api_versions:\n  v1:\n    deprecated_at: 2026-12-01\n    sunset_at:\n")
    monkeypatch.setenv("KAITEN_API_VERSIONS__V1__SUNSET_AT", "2027-06-30")
    versions = load_settings().api_versions
    assert versions.lifetime("1") == ApiLifetimeSettings(
        deprecated_at=date(2026, 12, 1), sunset_at=date(2027, 6, 30)
    )
    assert versions.lifetime("2") == ApiLifetimeSettings()


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
        ({"V3__SUNSET_AT": "2027-01-01"}, "api_versions.v3", "is not a setting"),
    ],
)
def test_contradictory_api_version_dates_are_rejected(
    values: dict[str, str], field: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in values.items():
        monkeypatch.setenv(f"KAITEN_API_VERSIONS__{name}", value)
    error = settings_error()
    assert fields(error) == [field]
    assert reason in error.details[0].reason


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
def test_value_out_of_range_is_rejected(
    variable: str, value: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    assert fields(settings_error()) == [field]


ISSUERS: dict[str, tuple[list[dict[str, object]], str]] = {
    "one twice": ([{"jwks_url": "https://a.example/"}] * 2, "two issuers with the same name"),
    "no source": ([{}], "needs exactly one of jwks_url"),
    "two sources": (
        [{"jwks_url": "https://a.example/", "secret_file": "a"}],
        "needs exactly one of jwks_url",
    ),
    "unknown algorithm": ([{"secret_file": "a", "algorithms": ["none"]}], "Input should be"),
    "with a password": ([{"jwks_url": "https://me:word@a.example/"}], "jwks_url"),
    "own name": ([{"issuer": "kaiten", "secret_file": "a"}], "this service"),
}


@pytest.mark.parametrize("case", ISSUERS)
def test_invalid_issuers_are_rejected(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, message = ISSUERS[case]
    issuers = [{"issuer": "them", "audience": "us", **row} for row in rows]
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps(issuers))
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings()
    assert "word" not in caught.value.message


def test_plans_are_merged_from_the_file_and_variables(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "rate_limit:\n  requests: 9/minute\n  plans:\n    batch: {tokens: off, concurrency: 2}\n"
        "  subjects:\n    kaiten|a: batch\n    https://b.example/|*: free\n"
    )
    issuer = {"issuer": "https://b.example/", "audience": "us", "jwks_url": "https://b.example/k"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer]))
    monkeypatch.setenv("KAITEN_RATE_LIMIT__PLANS__FREE__REQUESTS", "off")
    limits = load_settings().rate_limit
    assert limits.subjects == {"kaiten|a": "batch", "https://b.example/|*": "free"}
    batch, free = limits.plan("batch"), limits.plan("free")
    assert (batch.requests, batch.tokens, batch.concurrency) == ("9/minute", None, 2)
    assert (free.requests, free.tokens) == (None, RateLimitSettings().tokens)


@pytest.mark.parametrize(
    ("subjects", "reason"),
    [
        ({"alice": "batch"}, "'alice', which is not a subject; write it as ISSUER|SUB"),
        ({"|alice": "batch"}, "'|alice', which is not a subject"),
        ({"kaiten|": "batch"}, "'kaiten|', which is not a subject"),
        ({"kaiten|a": "bach"}, "the plan 'bach', which plans does not have; did you mean batch?"),
        ({"kaiten|a": "x"}, "the plan 'x', which plans does not have; add it to plans"),
    ],
)
def test_subjects_without_a_plan_or_an_issuer_are_rejected(
    subjects: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_RATE_LIMIT__PLANS", '{"batch": {"requests": "9/minute"}}')
    monkeypatch.setenv("KAITEN_RATE_LIMIT__SUBJECTS", json.dumps(subjects))
    error = settings_error()
    assert fields(error) == ["rate_limit"]
    assert reason in error.details[0].reason


@pytest.mark.parametrize(
    ("subject", "remedy"),
    [
        ("kaitn|a", "did you mean kaiten?"),
        ("api_key|a", "did you mean api-key?"),
        ("https://b.example|*", "did you mean https://b.example/?"),
        ("them|a", "use one of kaiten, https://b.example/, api-key"),
    ],
)
def test_plan_of_a_subject_whose_issuer_is_not_accepted_is_rejected(
    subject: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = {"issuer": "https://b.example/", "audience": "us", "jwks_url": "https://b.example/k"}
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([issuer]))
    monkeypatch.setenv("KAITEN_RATE_LIMIT__PLANS__BATCH__REQUESTS", "9/minute")
    monkeypatch.setenv("KAITEN_RATE_LIMIT__SUBJECTS", json.dumps({subject: "batch"}))
    message = settings_error().message
    assert f"rate_limit.subjects contains {subject!r}, and no credential is accepted" in message
    assert remedy in message


def test_a_model_has_thresholds_of_its_own_and_the_others_of_all(file: Path) -> None:
    file.write_text(
        "validation:\n  min_macro_f1: 0.5\n  models:\n    topic.v2: {min_accuracy: 0.9}\n"
    )
    validation = load_settings().validation
    assert validation.threshold("topic.v2", "min_accuracy") == (
        0.9,
        "validation.models.topic.v2.min_accuracy",
    )
    assert validation.threshold("topic.v2", "min_macro_f1") == (0.5, "validation.min_macro_f1")
    assert validation.threshold("other", "min_accuracy") == (0.7, "validation.min_accuracy")


def test_thresholds_of_a_name_that_no_model_can_have_are_rejected(file: Path) -> None:
    file.write_text("validation:\n  models:\n    topic:1.0.0: {min_accuracy: 0.9}\n")
    error = settings_error()
    assert fields(error) == ["validation.models.topic:1.0.0"]
    assert error.details[0].reason.startswith("line 3: String should match pattern")
