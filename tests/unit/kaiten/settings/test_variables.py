import pytest

from kaiten.settings.loader import load_settings
from tests.unit.kaiten.settings.refusals import SECRET, everything_shown, fields, settings_error


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("KAITEN_SERVNG__MODELS", "did you mean KAITEN_SERVING__MODELS?"),
        ("KAITEN_BATCHNG__MAX_BATCH_ITEMS", "did you mean KAITEN_BATCHING__MAX_BATCH_ITEMS?"),
        ("KAITEN_LOGGING_LEVEL", "did you mean KAITEN_LOGGING__LEVEL?"),
        ("KAITEN_CONFG", "did you mean KAITEN_CONFIG?"),
        ("KAITEN_ZZZZ", "remove it"),
    ],
)
def test_unknown_variable_is_rejected_with_a_suggestion(
    variable: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "1")
    error = settings_error()
    assert fields(error) == [variable]
    assert error.details[0].reason == f"is not a setting; {remedy}"


def test_unknown_key_in_a_variable_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_SERVING__MODEL", "a:1.0.0")
    assert fields(settings_error()) == ["serving.model"]


@pytest.mark.parametrize("variable", ["KAITEN_SERVING", "KAITEN_AUTH"])
def test_section_variable_without_json_is_rejected(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    assert SECRET not in everything_shown(settings_error())


@pytest.mark.parametrize(
    "name",
    ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT", "PORT_3000_TCP_ADDR", "REDIS_SERVICE_HOST"],
)
def test_variables_of_kubernetes_services_are_ignored(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"KAITEN_{name}", "tcp://10.0.0.1:3000")
    assert load_settings().serving.models


@pytest.mark.parametrize(
    ("variable", "value", "field", "reason"),
    [
        (
            "KAITEN_BATCHING__MAX_QUEUE_ITEM",
            "300",
            "batching.max_queue_item",
            "did you mean KAITEN_BATCHING__MAX_QUEUE_ITEMS?",
        ),
        (
            "KAITEN_GATEWAY__MAX_PADDING_RATIO",
            "0.2",
            "gateway.max_padding_ratio",
            "did you mean KAITEN_BATCHING__MAX_PADDING_RATIO?",
        ),
        ("KAITEN_HOME__FOLDER", "x", "home.folder", "is not a setting"),
        ("KAITEN_SERVING__MODELS__FIRST", "a:1.0.0", "serving.models.first", "is not a setting"),
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
        (
            "KAITEN_BATCHING",
            '{"max_padding_ratio": 0.2}',
            "KAITEN_BATCHING",
            "set each of its keys",
        ),
        (
            "KAITEN_AUTH__ISSUERS",
            '[{"issuer": "a", "audience": "b", "audience": "c", "secret_file": "d"}]',
            "KAITEN_AUTH__ISSUERS",
            "contains the key audience twice",
        ),
        ("KAITEN_AUTH__ISSUERS", f"[{'1' * 5000}]", "KAITEN_AUTH__ISSUERS", "too many digits"),
        ("KAITEN_AUTH__ISSUERS", "[" * 100_000, "KAITEN_AUTH__ISSUERS", "is nested too deeply"),
    ],
)
def test_variable_without_effect_is_rejected(
    variable: str, value: str, field: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_BATCHING__MAX_QUEUE_ITEMS", "400")
    monkeypatch.setenv(variable, value)
    error = settings_error()
    assert fields(error) == [field]
    assert reason in error.details[0].reason


def test_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", "")
    monkeypatch.setenv("KAITEN_AUTH__SECRET", "")
    auth = load_settings().auth
    assert (auth.secret, auth.secret_file) == (None, None)


@pytest.mark.parametrize(
    ("variable", "value", "form"),
    [
        ("KAITEN_AUTH__ISSUERS", f"[{{{SECRET}", '[{"KEY": "VALUE"}]'),
        ("KAITEN_AUTH__ISSUERS", f"x{SECRET}", '[{"KEY": "VALUE"}]'),
        ("KAITEN_VERSIONING__RELEASE_PROCESS", "commit,tests", '["VALUE"]'),
        ("KAITEN_SERVING__MODELS", "[a:1.0.0]", '["VALUE"]'),
        ("KAITEN_RATE_LIMIT__SUBJECTS", "{kaiten|a: batch}", '{"NAME": "VALUE"}'),
    ],
)
def test_broken_json_names_its_variable_and_form_and_not_its_value(
    variable: str, value: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    error = settings_error()
    assert fields(error) == [variable]
    assert error.details[0].reason.startswith("is not valid JSON: Expecting ")
    assert error.details[0].reason.endswith(f"; write it as {form}, with the quotes")
    assert SECRET not in everything_shown(error)


@pytest.mark.parametrize(
    ("variable", "value", "field", "reason"),
    [
        (
            "KAITEN_AUTH__ISSUERS",
            '[{"issuer": "a", "audience": "b", "secret_file": "c", "scope_clams": "d"}]',
            "auth.issuers.0.scope_clams",
            "is not a setting; did you mean auth.issuers.0.scope_claims?",
        ),
        (
            "KAITEN_RATE_LIMIT__PLANS",
            '{"batch": {"requets": "5/minute"}}',
            "rate_limit.plans.batch.requets",
            "is not a setting; did you mean rate_limit.plans.batch.requests?",
        ),
        (
            "KAITEN_RATE_LIMIT__PLANS__BATCH__TOKENS",
            "many",
            "rate_limit.plans.batch.tokens",
            "'many' is not a limit",
        ),
        (
            "KAITEN_BATCHING__MAX_QUEUE_ITEMS",
            "many",
            "batching.max_queue_items",
            "Input should be a valid integer",
        ),
    ],
)
def test_invalid_value_names_its_variable(
    variable: str, value: str, field: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    error = settings_error()
    assert fields(error) == [field]
    assert error.details[0].reason.startswith(f"in {variable}: {reason}")
