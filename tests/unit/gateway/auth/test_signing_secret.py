import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from gateway.auth.signing_secret import (
    SigningSecret,
    configured_secret,
    signing_secret,
)
from kaiten.errors import InvalidSettings
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE, DatedSecret, check_secret

SECRET = "8f14e45fceea167a5a36dedd4bea2543"
OLDER = SECRET[::-1]


def with_home(home: Path) -> Settings:
    return Settings().model_copy(update={"home": home})


def test_development_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    first = signing_secret(with_home(home))
    file = home / DEVELOPMENT_SECRET_FILE
    assert first.development
    check_secret(first.value)
    assert file.read_text() == first.value
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert signing_secret(with_home(home)) == first


def test_homes_do_not_share_a_secret(tmp_path: Path) -> None:
    values = {signing_secret(with_home(tmp_path / name)).value for name in "abc"}
    assert len(values) == 3


def test_callers_at_once_agree_on_one_secret(tmp_path: Path) -> None:
    callers = 8
    barrier = Barrier(callers)

    def ask(home: Path) -> SigningSecret:
        settings = with_home(home)
        barrier.wait(timeout=30)
        return signing_secret(settings)

    with ThreadPoolExecutor(callers) as pool:
        for attempt in range(20):
            home = tmp_path / str(attempt)
            secrets = list(pool.map(ask, [home] * callers))
            assert len({secret.value for secret in secrets}) == 1
            assert [path.name for path in home.iterdir()] == [DEVELOPMENT_SECRET_FILE]


@pytest.mark.parametrize("environment", ["development", "production"])
@pytest.mark.parametrize("in_a_file", [True, False])
def test_configured_secret_wins(in_a_file: bool, environment: str, tmp_path: Path) -> None:  # noqa: FBT001  a case's own
    home = tmp_path / "home"
    signing_secret(with_home(home))
    (tmp_path / "secret").write_text(SECRET)
    configured = (
        AuthSettings(secret_file=tmp_path / "secret")
        if in_a_file
        else AuthSettings(secret=SecretStr(SECRET))
    )
    settings = with_home(home).model_copy(update={"auth": configured, "environment": environment})
    file = tmp_path / "secret" if in_a_file else None
    assert signing_secret(settings) == SigningSecret(SECRET, development=False, file=file)


def test_production_does_not_start_without_a_secret(tmp_path: Path) -> None:
    home = tmp_path / "home"
    signing_secret(with_home(home))
    settings = with_home(home).model_copy(update={"environment": "production"})
    with pytest.raises(InvalidSettings, match="KAITEN_AUTH__SECRET") as caught:
        signing_secret(settings)
    assert [detail.field for detail in caught.value.details] == ["auth.secret"]


def test_asking_for_the_configured_secret_makes_none(tmp_path: Path) -> None:
    settings = with_home(tmp_path / "home")
    assert configured_secret(settings) is None
    with pytest.raises(InvalidSettings, match="KAITEN_AUTH__SECRET"):
        configured_secret(settings.model_copy(update={"environment": "production"}))
    assert not (tmp_path / "home").exists()


def test_production_makes_no_secret(tmp_path: Path) -> None:
    settings = with_home(tmp_path / "home").model_copy(update={"environment": "production"})
    with pytest.raises(InvalidSettings):
        signing_secret(settings)
    assert not (tmp_path / "home").exists()


def test_repr_does_not_show_the_secret(tmp_path: Path) -> None:
    secret = signing_secret(with_home(tmp_path))
    assert secret.value not in repr(secret)


def test_development_secret_is_announced_once_when_it_is_made(tmp_path: Path) -> None:
    with capture_logs() as logs:
        secrets = {signing_secret(with_home(tmp_path)).value for _ in range(2)}
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("development_secret_created", "warning")
    assert line["file"] == str(tmp_path / DEVELOPMENT_SECRET_FILE)
    assert not [secret for secret in secrets if secret in str(line)]


def test_home_that_can_not_be_written_is_reported_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match="name another in KAITEN_HOME"):
        signing_secret(with_home(tmp_path / "file"))


def test_first_secret_signs_and_the_last_keys_the_pseudonyms(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n{OLDER} until 1970-01-01T00:01:00Z\n")
    auth = AuthSettings(secret_file=tmp_path / "secret")
    secret = signing_secret(with_home(tmp_path).model_copy(update={"auth": auth}))
    assert (secret.value, secret.oldest) == (SECRET, OLDER)
    assert secret.dated == (DatedSecret(SECRET), DatedSecret(OLDER, 60))
    assert not [value for value in (SECRET, OLDER) if value in repr(secret)]
