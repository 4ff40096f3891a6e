"""What a start hands to its workers, and warns of, before there is any."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.auth.credential_stores import FILE
from gateway.auth.signing_secret import SigningSecret
from kaiten.pseudonyms import pseudonym_key
from kaiten.settings.loader import load_settings
from kaiten.settings.models import LoggingSettings
from kaiten.settings.secrets import DatedSecret
from server import preflight
from tests.unit.kaiten.settings.refusals import OTHER, SECRET

ROTATED = SigningSecret(SECRET, development=False, older=(DatedSecret(OTHER, 0),))


def test_workers_get_the_pseudonym_key_of_the_oldest_secret() -> None:
    settings, secret = preflight._with_pseudonym_key(load_settings(), ROTATED)
    assert pseudonym_key(settings.logging, SECRET) == pseudonym_key(LoggingSettings(), OTHER)
    assert secret == ROTATED


def test_configured_pseudonym_key_does_not_depend_on_the_secret(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", SECRET[::-1])
    settings = load_settings()
    assert preflight._with_pseudonym_key(settings, ROTATED) == (settings, None)


def test_without_a_secret_the_pseudonyms_change_with_each_start() -> None:
    with capture_logs() as logs:
        keys = {
            pseudonym_key(preflight._with_pseudonym_key(load_settings(), None)[0].logging, None)
            for _ in range(2)
        }
    assert [line["event"] for line in logs] == ["pseudonyms_change_with_each_start"] * 2
    assert len(keys) == 2
    assert None not in keys


@pytest.mark.parametrize("name", [FILE, "development.secret", "quality.sqlite", "profiles"])
@pytest.mark.parametrize("named", [True, False])
def test_state_in_the_working_directory_that_is_not_used_is_reported(
    named: bool,  # noqa: FBT001  a case's own
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if named:
        monkeypatch.setenv("KAITEN_HOME", str(tmp_path / "home"))
    else:
        monkeypatch.delenv("KAITEN_HOME")
    (tmp_path / ".kaiten").mkdir()
    events = []
    for _ in range(2):
        with capture_logs() as logs:
            preflight._warn_of_state_elsewhere(load_settings())
        events.append([line["event"] for line in logs])
        (tmp_path / ".kaiten" / name).touch()
    assert events == [[], [] if named else ["state_elsewhere"]]
