import json
from pathlib import Path

import pytest

from kaiten.settings.effective import DEFAULT, EffectiveSetting, effective_settings
from kaiten.settings.environment import default_home
from kaiten.settings.loader import load_settings
from kaiten.settings.reference import setting_sections
from tests.unit.kaiten.settings.refusals import OTHER, SECRET


def effective() -> dict[str, EffectiveSetting]:
    return {item.setting.path: item for item in effective_settings(load_settings())}


def test_every_setting_has_a_value_and_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAITEN_HOME")
    settings = [setting for section in setting_sections() for setting in section.settings]
    values = effective()
    assert [*values] == [setting.path for setting in settings]
    assert {value.source for value in values.values()} == {DEFAULT}
    # It depends on where the code is.
    home = {"home": str(default_home())}
    for setting in settings:
        assert values[setting.path].value == home.get(setting.path, setting.default), setting.path


def test_source_is_the_one_that_takes_precedence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(
        "# A comment.\nbatching:\n  max_batch_items: 7\n  max_batch_tokens: 77\n"
        "  max_padding_ratio:\nserving: {models: [a:1.0.0]}\nrate_limit:\n  requests: off\n"
        "auth:\n  jwks: {refresh_s: 60}\n"
    )
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_SECRETS", str(secrets))
    monkeypatch.setenv("KAITEN_BATCHING__MAX_BATCH_ITEMS", "8")
    monkeypatch.setenv("KAITEN_BATCHING__MAX_BATCH_TOKENS", "")
    values = effective()

    def shown(path: str) -> tuple[object, str]:
        return values[path].value, values[path].source

    assert shown("batching.max_batch_items") == (8, "KAITEN_BATCHING__MAX_BATCH_ITEMS")
    assert shown("batching.max_batch_tokens") == (77, f"{file}:4")
    assert shown("batching.max_padding_ratio") == (0.1, DEFAULT)
    assert shown("serving.models") == (["a:1.0.0"], f"{file}:6")
    assert shown("rate_limit.requests") == ("off", f"{file}:8")
    assert shown("auth.jwks.refresh_s") == (60.0, f"{file}:10")
    assert shown("auth.secret") == ("(not shown)", str(secrets / "kaiten_auth__secret"))
    assert shown("state.redis_url") == (None, DEFAULT)


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    canary = "canary4711"
    variables = {
        "KAITEN_AUTH__SECRET": SECRET,
        "KAITEN_SIGNATURES__PASSWORD": canary,
        "KAITEN_STATE__REDIS_URL": f"redis://:{canary}@localhost:6379/0",
        "KAITEN_STATE__DATABASE_URL": f"postgresql+psycopg://user:{canary}@localhost/name",
        "KAITEN_LOGGING__PSEUDONYM_KEY": OTHER,
        "KAITEN_PROFILES__TARGET": f"abfs://box/folder?sig={canary}",
        "KAITEN_AUTH__ISSUERS": json.dumps(
            [{"issuer": "a", "audience": "b", "jwks_url": f"https://a.example/jwks?key={canary}"}]
        ),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    values = effective()
    text = f"{values} {[value.value for value in values.values()]}"
    assert not [secret for secret in (SECRET, OTHER, canary) if secret in text]
    assert values["profiles.target"].value == "abfs://box/folder?(not shown)"
    assert values["auth.secret"].source == "KAITEN_AUTH__SECRET"


def test_a_plan_and_a_models_thresholds_show_what_they_set_themselves(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("validation:\n  models:\n    topic: {min_accuracy: 0.9}\n")
    monkeypatch.setenv("KAITEN_RATE_LIMIT__PLANS__BATCH__TOKENS", "off")
    values = effective()
    plans, models = values["rate_limit.plans"], values["validation.models"]
    assert (plans.value, models.value) == (
        {"batch": {"tokens": "off"}},
        {"topic": {"min_accuracy": 0.9}},
    )
    assert plans.source == "KAITEN_RATE_LIMIT__PLANS__BATCH__TOKENS"
    assert models.source == f"{file}:2"
