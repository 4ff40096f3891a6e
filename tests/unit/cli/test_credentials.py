"""kaiten token, api-key and revoke, on a credential store of the test's own."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from typer.testing import CliRunner, Result

from cli import app
from gateway.auth.credential_stores import FILE, FileCredentials
from gateway.auth.credentials import Credentials
from kaiten.errors import SetupError
from kaiten.pseudonyms import Pseudonyms, pseudonym_key
from kaiten.settings.models import LoggingSettings

SECRET = "0123456789abcdef" * 4
FOREIGN_ISSUER = {
    "issuer": "https://login.example.org/",
    "audience": "kaiten",
    "jwks_url": "https://a/b",
}
SOMEBODY = ("--subject", "nightly-job", "--scope", "predict")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def foreign_issuer(monkeypatch: pytest.MonkeyPatch) -> str:
    """Take tokens of another issuer only, and make none."""
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([FOREIGN_ISSUER]))
    return FOREIGN_ISSUER["issuer"]


def run_with_logs(*arguments: str) -> tuple[Result, list[EventDict]]:
    with capture_logs() as logs:
        return CliRunner().invoke(app, arguments), logs


def run(*arguments: str) -> Result:
    return run_with_logs(*arguments)[0]


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def failure_message(*arguments: str) -> str:
    """Return the message of a command that fails: a usage error, or a sentence."""
    result = run(*arguments)
    if isinstance(result.exception, SetupError):
        return result.exception.message
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def stored_credentials(home: Path) -> Credentials:
    return FileCredentials(home / FILE).read() or Credentials()


def list_keys() -> dict[str, Any]:
    api_keys: dict[str, Any] = json.loads(ok("api-key", "list", "--json"))
    return api_keys


def test_key_is_alone_on_standard_output_and_holds(tmp_path: Path) -> None:
    options = ("--scope", "predict:support-intent", "--scope", "ops", "--ttl", "7d")
    text = ok("api-key", "create", "--subject", "nightly-job", *options)
    principal = stored_credentials(tmp_path).principal_of(text, time.time())
    assert principal.subject == "nightly-job"
    assert principal.scopes == {"predict:support-intent", "ops"}
    (key,) = stored_credentials(tmp_path).api_keys.values()
    assert key.expires_at - key.created_at in {604_799, 604_800, 604_801}


def test_only_its_hash_is_kept_for_its_owner_to_read(tmp_path: Path) -> None:
    text = ok("api-key", "create", *SOMEBODY)
    file = tmp_path / FILE
    assert text.rpartition("_")[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert text not in ok("api-key", "list") + json.dumps(list_keys())


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (("--subject", "a", "--scope", "root"), "--scope"),
        (("--subject", "a", "--scope", "predict", "--ttl", "soon"), "--ttl"),
        (("--subject", "a", "--scope", "predict", "--ttl", "9999999d"), "--ttl"),
        (("--subject", " ", "--scope", "predict"), "--subject"),
        (("--scope", "predict"), "--subject"),
        (("--subject", "a"), "--scope"),
    ],
)
def test_nothing_is_written_for_a_bad_option_which_is_named(
    options: tuple[str, ...], field: str, tmp_path: Path
) -> None:
    assert field in failure_message("api-key", "create", *options)
    assert not (tmp_path / FILE).exists()


def test_list_of_none_says_so(tmp_path: Path) -> None:
    assert ok("api-key", "list") == "No API keys."
    assert list_keys() == {}
    assert not (tmp_path / FILE).exists()


def test_list_shows_who_may_do_what_until_when() -> None:
    ok("api-key", "create", "--subject", "[b]job", "--scope", "predict", "--scope", "ops")
    ((key_id, row),) = list_keys().items()
    assert row.keys() == {"subject", "scopes", "created_at", "expires_at"}
    assert (row["subject"], row["scopes"]) == ("[b]job", ["predict", "ops"])
    table = ok("api-key", "list")
    assert all(part in table for part in (key_id, "[b]job", "predict ops", " UTC"))


def test_revoked_key_is_gone_and_the_others_are_not() -> None:
    ok("api-key", "create", *SOMEBODY)
    (first,) = list_keys()
    ok("api-key", "create", *SOMEBODY)
    assert first in ok("api-key", "revoke", first)
    assert first not in list_keys()
    assert len(list_keys()) == 1


def test_key_that_was_found_somewhere_is_revoked_by_itself() -> None:
    text = ok("api-key", "create", *SOMEBODY)
    assert text not in ok("api-key", "revoke", text)
    assert list_keys() == {}


def test_unknown_key_is_reported_with_the_remedy_and_not_quoted() -> None:
    message = failure_message("api-key", "revoke", "canary")
    assert "kaiten api-key list" in message
    assert "canary" not in message


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("revoke",), "--subject"),
        (("token", "revoke"), "jti"),
        (("api-key", "revoke"), "key"),
    ],
)
def test_revoke_requires_what_to_revoke(
    command: tuple[str, ...], missing: str, tmp_path: Path
) -> None:
    assert missing in failure_message(*command)
    assert not (tmp_path / FILE).exists()


def test_token_is_revoked_by_its_issuer_and_id(tmp_path: Path) -> None:
    ok("token", "revoke", "one")
    assert [*stored_credentials(tmp_path).revoked_tokens] == ["kaiten|one"]


def test_token_in_place_of_its_id_is_refused_and_not_shown(tmp_path: Path) -> None:
    token = ok("token", "create", "--subject", "alice", "--scope", "predict")
    for value in (token, " "):
        result, logs = run_with_logs("token", "revoke", value)
        assert result.exit_code == 2
        assert "JTI" in result.stderr
        assert token not in result.stderr
        assert logs == []
    assert not (tmp_path / FILE).exists()


def test_subject_loses_its_tokens_and_its_keys(tmp_path: Path) -> None:
    ok("revoke", "--subject", "alice")
    assert stored_credentials(tmp_path).revoked_subjects.keys() == {"kaiten|alice", "api-key|alice"}


def test_subject_loses_tokens_of_an_issuer_whose_clock_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_AUTH__LEEWAY_S", "300")
    earliest = int(time.time()) + 300
    assert "tokens of the next 300 s, because the issuer's clock may be ahead" in ok(
        "revoke", "--subject", "alice"
    )
    latest = int(time.time()) + 300
    ends = stored_credentials(tmp_path).revoked_subjects
    assert all(earliest <= end <= latest for end in ends.values())
    # A key that is made at once must hold all the same: its instant never changes.
    key = ok("api-key", "create", "--subject", "alice", "--scope", "predict")
    assert stored_credentials(tmp_path).principal_of(key, time.time()).subject == "alice"


def test_key_that_has_expired_is_kept_and_not_listed(tmp_path: Path) -> None:
    ok("api-key", "create", *SOMEBODY)
    ((key_id, key),) = stored_credentials(tmp_path).api_keys.items()
    ended = key.model_copy(update={"expires_at": int(time.time()) - 1})
    FileCredentials(tmp_path / FILE).change(
        lambda credentials: credentials.with_api_key(key_id, ended)
    )
    ok("token", "revoke", "one")
    assert [*stored_credentials(tmp_path).api_keys] == [key_id]
    assert list_keys() == {}


def test_subject_of_another_issuer_is_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([FOREIGN_ISSUER]))
    ok("revoke", "--subject", "alice", "--issuer", FOREIGN_ISSUER["issuer"])
    assert [*stored_credentials(tmp_path).revoked_subjects] == [f"{FOREIGN_ISSUER['issuer']}|alice"]


@pytest.mark.parametrize("command", [("token", "revoke", "x"), ("revoke", "--subject", "x")])
def test_issuer_must_be_named_if_no_tokens_are_signed_here(
    command: tuple[str, ...], foreign_issuer: str, tmp_path: Path
) -> None:
    message = failure_message(*command)
    assert "--issuer" in message
    assert foreign_issuer in message
    assert not (tmp_path / FILE).exists()
    ok(*command, "--issuer", foreign_issuer)
    assert (tmp_path / FILE).exists()


def test_keys_alone_are_revoked_where_none_are_made_here(
    foreign_issuer: str, tmp_path: Path
) -> None:
    ok("revoke", "--subject", "alice", "--issuer", "api-key")
    assert [*stored_credentials(tmp_path).revoked_subjects] == ["api-key|alice"]
    # A key has an id of its own, and no jti.
    assert foreign_issuer in failure_message("token", "revoke", "x", "--issuer", "api-key")


def test_issuer_that_is_none_here_revokes_nothing(tmp_path: Path) -> None:
    message = failure_message("revoke", "--subject", "alice", "--issuer", "kaiten.example")
    assert "'kaiten.example' is not an issuer here; name one of kaiten, api-key" in message
    assert not (tmp_path / FILE).exists()


def test_no_token_is_made_where_only_others_make_them(foreign_issuer: str) -> None:
    assert foreign_issuer
    message = failure_message("token", "create", "--subject", "alice", "--scope", "predict")
    assert (
        "auth.secret: is not set: the tokens come from auth.issuers, and none are made" in message
    )


def test_store_that_is_no_store_is_reported(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("canary")
    message = failure_message("api-key", "list")
    assert str(tmp_path / FILE) in message
    assert "canary" not in message


def test_what_is_done_is_told_to_the_security_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    result, created = run_with_logs("api-key", "create", *SOMEBODY)
    ((key_id, _),) = list_keys().items()
    _, by_subject = run_with_logs("revoke", "--subject", "nightly-job")
    _, by_id = run_with_logs("api-key", "revoke", key_id)
    _, by_jti = run_with_logs("token", "revoke", "one")
    logs = [*created, *by_subject, *by_id, *by_jti]
    assert [line["event"] for line in logs] == ["api_key_created", *["revoked"] * 4]
    assert [line.get("what") for line in logs[1:]] == ["subject", "subject", "api_key", "token"]
    assert created[0]["key_id"] == by_id[0]["key_id"] == key_id
    assert all(line["operator"] for line in logs)
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    # As the workers name the same caller.
    named = Pseudonyms(key).of("api-key|nightly-job")
    assert created[0]["subject"] == by_id[0]["subject"] == by_subject[1]["subject"] == named
    assert "nightly-job" not in str(logs)
    assert result.stdout.strip() not in str(logs)


def test_pseudonym_is_left_out_where_its_key_is_the_workers_own(foreign_issuer: str) -> None:
    _, (line,) = run_with_logs("revoke", "--subject", "alice", "--issuer", foreign_issuer)
    assert line["subject"] is None


def pseudonyms(*options: str) -> dict[str, str]:
    """Return the printed pseudonyms, by identity."""
    lines = (line.split("  ") for line in ok("pseudonym", *options).splitlines())
    return {identity: value for value, identity in lines}


def test_pseudonym_is_that_of_the_logs_for_each_issuer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_AUTH__ISSUERS", json.dumps([FOREIGN_ISSUER]))
    key = pseudonym_key(LoggingSettings(), SECRET)
    assert key is not None
    names = Pseudonyms(key)
    identities = ["kaiten|alice", f"{FOREIGN_ISSUER['issuer']}|alice", "api-key|alice"]
    expected = {identity: names.of(identity) for identity in identities}
    assert pseudonyms("--subject", "alice") == expected
    assert json.loads(ok("pseudonym", "--subject", "alice", "--json")) == expected
    assert pseudonyms("--subject", "alice", "--issuer", "api-key") == {
        "api-key|alice": expected["api-key|alice"]
    }
    # As the audit log names the same owner.
    _, (line,) = run_with_logs("api-key", "create", "--subject", "alice", "--scope", "predict")
    assert line["subject"] == expected["api-key|alice"]


def test_pseudonym_needs_no_secret_if_the_logs_have_a_key_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KAITEN_ENVIRONMENT", "production")
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", SECRET)
    names = Pseudonyms(SECRET.encode())
    assert pseudonyms("--subject", "alice", "--issuer", "kaiten") == {
        "kaiten|alice": names.of("kaiten|alice")
    }


def test_pseudonym_is_not_made_with_a_secret_that_no_server_has(tmp_path: Path) -> None:
    message = failure_message("pseudonym", "--subject", "alice")
    assert "There is no signing secret here" in message
    assert not [*tmp_path.iterdir()]
    ok("token", "create", "--subject", "alice", "--scope", "predict")
    assert pseudonyms("--subject", "alice").keys() == {"kaiten|alice", "api-key|alice"}


@pytest.mark.usefixtures("foreign_issuer")
def test_pseudonym_that_each_start_changes_is_not_found_but_the_remedy_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    message = failure_message("pseudonym", "--subject", "alice")
    assert "Pseudonyms change with each start" in message
    assert (
        "If the servers have a signing secret, run this command with their environment" in message
    )
    assert "KAITEN_LOGGING__PSEUDONYM_KEY" in message
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", SECRET)
    assert pseudonyms("--subject", "alice").keys() == {
        f"{FOREIGN_ISSUER['issuer']}|alice",
        "api-key|alice",
    }


def test_pseudonym_is_of_a_subject_and_an_issuer_that_there_are() -> None:
    assert "--subject" in failure_message("pseudonym", "--subject", " ")
    message = failure_message("pseudonym", "--subject", "alice", "--issuer", "elsewhere")
    assert "'elsewhere' is not an issuer here; name one of kaiten, api-key" in message
