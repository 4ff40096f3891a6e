from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings
from kaiten.settings.settings_yaml import check_bentoml_configuration
from tests.unit.kaiten.settings.refusals import SECRET, everything_shown, fields, settings_error


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("servng:\n  models: [a:1.0.0]\n", "servng"),
        ("serving:\n  modelz: [a:1.0.0]\n", "serving.modelz"),
        ("max_batch_items: 8\n", "max_batch_items"),
    ],
)
def test_unknown_key_in_the_file_is_rejected(text: str, field: str, file: Path) -> None:
    file.write_text(text)
    error = settings_error()
    assert fields(error) == [field]
    assert str(file) in error.message


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
def test_misplaced_secret_is_never_shown(text: str, file: Path) -> None:
    file.write_text(text)
    assert SECRET not in everything_shown(settings_error())


def test_malformed_yaml_is_rejected(file: Path) -> None:
    file.write_text("serving: [")
    assert fields(settings_error()) == ["file"]


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"hello\n", b"auth:\n  issuer: \xff\n"])
def test_file_that_is_not_a_mapping_is_rejected(content: bytes, file: Path) -> None:
    file.write_bytes(content)
    assert fields(settings_error()) == ["file"]


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
            "line 1: is not a setting; did you mean batching?",
        ),
        (
            "batching:\n  max-queue-items: 300\n",
            "batching.max-queue-items",
            "line 2: is not a setting; did you mean batching.max_queue_items?",
        ),
        (
            "# a comment\nmax_queue_items: 300\n",
            "max_queue_items",
            "line 2: is not a setting; write it as batching.max_queue_items, indented below",
        ),
        (
            "serving:\n  gateway:\n    max_inputs: 3\n",
            "serving.gateway",
            "line 2: is not a setting; it is a top-level section: remove its indentation",
        ),
        (
            "auth:\n  issuers:\n  - isuer: a\n    audience: b\n",
            "auth.issuers.0.isuer",
            "line 3: is not a setting; did you mean auth.issuers.0.issuer?",
        ),
        (
            "batching:\n  max_queue_items: 300\n  Max-Queue-Items: 400\n",
            "batching.Max-Queue-Items",
            "line 3: is not a setting; did you mean batching.max_queue_items?",
        ),
        (
            "gateway:\n  max_padding_ratio: 0.2\n",
            "gateway.max_padding_ratio",
            "line 2: is not a setting; write it as batching.max_padding_ratio, indented below",
        ),
        (
            "batch:\n  max_items: 3\n",
            "batch",
            "line 1: is not a setting; did you mean batching?",
        ),
        (
            "auth:\n  secert: a\n",
            "auth.secert",
            "line 2: is not a setting; did you mean auth.secret, a secret? Set KAITEN_AUTH__SECRET",
        ),
        (
            "rate_limit:\n  plans:\n    batch: {requets: 5/minute}\n",
            "rate_limit.plans.batch.requets",
            "line 3: is not a setting; did you mean rate_limit.plans.batch.requests?",
        ),
        ("rate_limit:\n  plans:\n    batch:\n", "rate_limit.plans.batch", "line 3: is an empty"),
        (
            "validation:\n  models:\n    topic:\n      min_acuracy: 0.9\n",
            "validation.models.topic.min_acuracy",
            "line 4: is not a setting; did you mean validation.models.topic.min_accuracy?",
        ),
        (
            "auth:\n  issuers:\n  - issuer: a\n    secret: b\n",
            "auth.issuers.0.secret",
            "line 4: is not a setting; did you mean auth.issuers.0.secret_file?",
        ),
        ("auth:\n  secret:\n", "auth.secret", "is a secret, and this file goes into every bento"),
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
            "line 3: is a number, not a date",
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
def test_ignored_or_reinterpreted_setting_is_rejected_by_line_and_key(
    text: str, field: str, reason: str, file: Path
) -> None:
    file.write_text(text)
    error = settings_error()
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
def test_scope_map_is_checked(written: str, field: str, reason: str, file: Path) -> None:
    with pytest.raises(InvalidSettings) as caught:
        scope_map_of(written, file)
    assert fields(caught.value) == [field]
    assert caught.value.details[0].reason.startswith(reason)


def test_off_disables_a_limit_and_booleans_accept_any_word(file: Path) -> None:
    file.write_text("rate_limit:\n  requests: off\nprofiles:\n  enabled: no\n")
    settings = load_settings()
    assert settings.rate_limit.requests is None
    assert settings.profiles.enabled is False


def test_empty_issuer_is_rejected(file: Path) -> None:
    file.write_text("auth:\n  issuers:\n  - issuer: them\n    audience:\n    secret_file: a\n")
    assert fields(settings_error()) == ["auth.issuers.0.audience"]


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
def test_bentoml_configuration_that_would_be_misread_is_rejected(
    text: str, field: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bentoml.yaml").write_text(text)
    monkeypatch.setenv("BENTOML_CONFIG", str(tmp_path / "bentoml.yaml"))
    with pytest.raises(InvalidSettings) as caught:
        check_bentoml_configuration()
    assert fields(caught.value) == [field]
    assert caught.value.details[0].reason.startswith(reason)


@pytest.mark.parametrize("name", ["kaiten.yaml", "configuration.yaml"])
def test_files_of_the_checkout_are_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_CONFIG", str(ROOT / "kaiten.yaml"))
    monkeypatch.setenv("BENTOML_CONFIG", str(ROOT / name))
    check_bentoml_configuration()
    assert load_settings().serving.models
