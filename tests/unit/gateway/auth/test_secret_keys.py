"""Secrets of an issuer while their file changes and their ends pass, on a clock of the test's."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from structlog.testing import capture_logs

from gateway.auth import secret_keys
from gateway.auth.authenticator import Authenticator
from gateway.auth.credentials import Credentials
from gateway.auth.factory import build, check_keys
from gateway.auth.minting import mint
from gateway.auth.secret_keys import SecretKeys
from gateway.auth.verification_keys import from_secret
from gateway.auth.verifier import TokenRejected, TrustedIssuer, Verifier
from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings
from kaiten.settings.models import AuthSettings, IssuerSettings
from kaiten.settings.secrets import parse_secrets
from tests.unit.kaiten.settings.refusals import OTHER, SECRET

FIRST, SECOND, THIRD = SECRET, OTHER, SECRET[::-1]
AUTH = AuthSettings()
HS256 = frozenset({"HS256"})


class Stand:
    """A worker that follows a file, and an operator and a clock that change it."""

    def __init__(self, folder: Path, content: str = FIRST) -> None:
        # Whole seconds: a file states an end to the microsecond.
        self.now = float(int(time.time()))
        self.file = folder / "secrets"
        self.write(content)
        self.keys = SecretKeys(
            AUTH.issuer, parse_secrets(content), from_secret, self.file, lambda: self.now
        )
        issuer = TrustedIssuer(AUTH.issuer, AUTH.audience, self.keys, HS256)
        verifier = Verifier({issuer.name: issuer}, AUTH.leeway_s)
        self.authenticator = Authenticator(verifier, Credentials, lambda: self.now)

    def write(self, *lines: str) -> None:
        self.file.write_text("\n".join(lines))

    def until(self, seconds: float) -> str:
        return f"until {datetime.fromtimestamp(self.now + seconds, UTC).isoformat()}"

    def settle(self) -> None:
        """Let two polls find the same content."""
        self.keys.poll()
        self.keys.poll()

    async def accepts(self, token: str) -> bool:
        try:
            await self.authenticator.authenticate_token(token)
        except TokenRejected as error:
            if error.fault != jwt.InvalidSignatureError.__name__:
                raise
            return False
        return True


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def token(secret: str, subject: str = "alice") -> str:
    return mint(subject, ["predict"], timedelta(hours=1), AUTH, secret)


async def test_first_token_of_a_new_secret_is_accepted_before_the_next_poll(stand: Stand) -> None:
    assert await stand.accepts(token(FIRST))
    stand.write(SECOND, FIRST)
    assert await stand.accepts(token(SECOND))
    assert await stand.accepts(token(FIRST))


async def test_older_secret_is_refused_from_its_end_on_for_known_tokens_too(stand: Stand) -> None:
    cached_token = token(FIRST)
    assert await stand.accepts(cached_token)
    stand.write(SECOND, f"{FIRST} {stand.until(60)}")
    stand.settle()
    stand.now += 59
    assert await stand.accepts(cached_token)
    assert await stand.accepts(token(FIRST))
    stand.now += 1
    with capture_logs() as logs:
        assert not await stand.accepts(cached_token)
    assert [(line["event"], line["valid"]) for line in logs] == [("auth_secret_ended", 1)]
    assert not await stand.accepts(token(FIRST))
    assert await stand.accepts(token(SECOND))


async def test_secret_that_leaves_the_file_is_refused_after_two_polls(stand: Stand) -> None:
    cached_token = token(FIRST)
    assert await stand.accepts(cached_token)
    stand.write(SECOND)
    assert await stand.accepts(token(SECOND))
    stand.keys.poll()
    # The file may be half-written.
    assert await stand.accepts(cached_token)
    with capture_logs() as logs:
        stand.keys.poll()
    assert [(line["event"], line["secrets"]) for line in logs] == [("auth_secrets_changed", 1)]
    assert not await stand.accepts(cached_token)
    assert not await stand.accepts(token(FIRST))
    assert await stand.accepts(token(SECOND))


async def test_file_that_is_written_in_parts_refuses_no_token(stand: Stand) -> None:
    cached_token = token(FIRST)
    ended = f"{FIRST} until 2000-01-01"
    for lines in ([""], [SECOND], [SECOND, FIRST[:10]], [SECOND, ended], [SECOND, FIRST]):
        stand.write(*lines)
        stand.keys.poll()
        assert await stand.accepts(cached_token)
        assert await stand.accepts(token(FIRST))
    stand.settle()
    assert await stand.accepts(cached_token)
    assert await stand.accepts(token(SECOND))


async def test_change_that_is_taken_back_leaves_no_secret_behind(stand: Stand) -> None:
    stand.settle()
    stand.write(SECOND, FIRST)
    assert await stand.accepts(token(SECOND))
    stand.write(FIRST)
    stand.settle()
    assert not await stand.accepts(token(SECOND))
    assert await stand.accepts(token(FIRST))


async def test_new_secret_does_not_verify_known_tokens_again(stand: Stand) -> None:
    before = stand.keys.generation
    stand.write(SECOND, FIRST)
    stand.settle()
    assert stand.keys.generation == before
    stand.write(SECOND)
    stand.settle()
    assert stand.keys.generation == before + 1


@pytest.mark.parametrize("content", [None, b"", b"short", b"\xff" * 40, f"{FIRST} {SECOND}\na"])
async def test_unusable_file_changes_nothing_and_is_reported_once(
    content: bytes | str | None, stand: Stand
) -> None:
    stand.write(SECOND, FIRST)
    stand.settle()
    if content is None:
        stand.file.unlink()
    else:
        stand.file.write_bytes(content.encode() if isinstance(content, str) else content)
    with capture_logs() as logs:
        stand.settle()
        for secret, accepted in {FIRST: True, SECOND: True, THIRD: False}.items():
            assert await stand.accepts(token(secret)) is accepted
    (line,) = logs
    assert (line["event"], line["log_level"]) == ("auth_secrets_not_read", "error")
    assert line["file"] == str(stand.file)
    assert FIRST[:10] not in str(line)
    stand.write(SECOND, FIRST)
    with capture_logs() as logs:
        stand.settle()
    assert [line["event"] for line in logs] == ["auth_secrets_read_again"]


async def test_many_unknown_tokens_share_their_reads(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents: list[bytes | OSError] = []

    def content_of(file: Path) -> bytes | OSError:
        contents.append(file.read_bytes())
        return contents[-1]

    monkeypatch.setattr(secret_keys, "_content_of", content_of)
    tokens = [token(THIRD, f"subject {number}") for number in range(50)]
    assert not any(await asyncio.gather(*map(stand.accepts, tokens)))
    # One under way, and one that began after all of them came.
    assert 1 <= len(contents) <= 2


async def test_file_that_hangs_delays_an_unknown_token_for_a_while(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secret_keys, "_READ_TIMEOUT_S", 0.01)
    answers = asyncio.Event()

    async def read(file: Path) -> None:
        await answers.wait()

    monkeypatch.setattr(stand.keys, "_read", read)
    assert not await stand.accepts(token(THIRD))
    assert await stand.accepts(token(FIRST))
    answers.set()
    assert stand.keys._reading is not None
    await stand.keys._reading


async def test_secret_that_its_issuer_may_not_use_leaves_the_others_in_force(
    tmp_path: Path,
) -> None:
    file, long = tmp_path / "secrets", f"{FIRST}{SECOND}{THIRD}"
    file.write_text(long)
    issuer = IssuerSettings(issuer="them", audience="us", secret_file=file, algorithms=("HS512",))
    auth = AuthSettings(issuers=(issuer,))
    (keys,) = build(load_settings().model_copy(update={"auth": auth}), None).secrets
    file.write_text(f"{FIRST}\n{long}")
    with capture_logs() as logs:
        keys.poll()
        keys.poll()
    (line,) = logs
    assert line["event"] == "auth_secrets_not_read"
    assert "verifies none of the allowed algorithms (HS512)" in line["reason"]
    assert await keys.find(None) == (from_secret(long),)
    with pytest.raises(InvalidSettings, match=r"auth\.issuers\.them\.secret_file.*\(HS512\)"):
        check_keys(auth)


async def test_secrets_of_a_variable_end_too() -> None:
    now = time.time()
    content = f"{SECOND}\n{FIRST} until 2000-01-01"
    keys = SecretKeys(AUTH.issuer, parse_secrets(content), from_secret, None, lambda: now)
    assert await keys.find(None) == (from_secret(SECOND),)
    assert await keys.renewed(None) is None
    keys.poll()
    assert keys.algorithms == HS256
