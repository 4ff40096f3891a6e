"""Keys fetched from a real issuer, and the parts that the settings ask for."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.auth.factory import build, check_keys, fetch_jwks, hand_down_changes
from gateway.auth.minting import mint
from gateway.auth.signing_secret import signing_secret
from gateway.auth.verification_keys import from_jwks
from kaiten.errors import InvalidSettings
from kaiten.settings.handover import hand_down_settings
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings, IssuerSettings
from kaiten.settings.snapshot import read_key_file
from tests import issuer as issuers
from tests.issuer import issuing
from tests.unit.gateway.auth.mint import private_pem, public_pem
from tests.unit.kaiten.settings.refusals import OTHER, SECRET


@pytest.fixture
def issuer() -> Iterator[issuers.Issuer]:
    with issuing(published_keys=2) as jwks_issuer:
        yield jwks_issuer


async def test_fetch_returns_what_is_published(issuer: issuers.Issuer) -> None:
    first = issuer.kid
    second = issuer.rotate()
    assert [*from_jwks(await fetch_jwks(issuer.url))] == [first, second]
    third = issuer.rotate()
    assert [*from_jwks(await fetch_jwks(issuer.url))] == [second, third]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [((404, b""), "status 404"), ((302, b""), "302"), ((200, b" " * 2**21), "too large")],
)
async def test_fetch_takes_a_plain_answer_of_some_size_only(
    issuer: issuers.Issuer, answer: tuple[int, bytes], fault: str
) -> None:
    issuer.answer = answer
    with pytest.raises(ValueError, match=fault):
        await fetch_jwks(issuer.url)


async def test_answer_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.factory._FETCH_TIMEOUT_S", 0.2)
    gone = threading.Event()

    class Trickle(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            while not gone.wait(0.01):
                self.wfile.write(b" ")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Trickle) as server:
        threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
        try:
            with pytest.raises(TimeoutError):
                await fetch_jwks(f"http://127.0.0.1:{server.server_port}/")
        finally:
            gone.set()
            server.shutdown()


async def test_tokens_of_an_issuer_hold_by_the_keys_that_it_publishes(
    issuer: issuers.Issuer, tmp_path: Path
) -> None:
    auth = AuthSettings(issuers=(IssuerSettings(**issuer.settings()),))
    settings = Settings().model_copy(update={"auth": auth, "home": tmp_path})
    tokens = build(settings, None)
    tasks = tokens.start()
    for _ in range(2):
        principal = await tokens.authenticator.authenticate([f"Bearer {issuer.token('bob')}"], [])
        assert (principal.subject, principal.issuer) == ("bob", issuer.name)
    assert len(issuer.fetched_at) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("field", "change", "reason"),
    [
        ("public_key_file", lambda path: None, "cannot be read"),
        ("public_key_file", lambda path: path.write_bytes(private_pem("ES256")), "private key"),
        ("public_key_file", lambda path: path.write_text("nothing"), "no usable public key"),
        ("secret_file", lambda path: path.write_text("short"), "shorter than 32 bytes"),
        ("secret_file", lambda path: path.write_bytes(b"\xff" * 40), "is not UTF-8"),
    ],
)
def test_key_file_that_can_not_be_used_is_named(
    field: str, change: Change, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "key"
    change(path)
    issuer = IssuerSettings.model_validate({"issuer": "partner", "audience": "kaiten", field: path})
    with pytest.raises(InvalidSettings, match=reason) as caught:
        check_keys(AuthSettings(issuers=(issuer,)))
    assert [detail.field for detail in caught.value.details] == [f"auth.issuers.partner.{field}"]


def test_key_file_that_can_be_used_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(public_pem("RS256"))
    check_keys(
        AuthSettings(
            issuers=(IssuerSettings(issuer="partner", audience="kaiten", public_key_file=path),)
        )
    )


def with_secret_file(file: Path, content: str) -> Settings:
    """Return settings in which the file holds this service's secrets, and those of an issuer."""
    file.write_text(content)
    issuer = IssuerSettings(issuer="billing", audience="kaiten", secret_file=file)
    auth = AuthSettings(secret_file=file, issuers=(issuer,), credentials_poll_s=60)
    return Settings().model_copy(update={"auth": auth, "home": file.parent})


async def test_secrets_of_each_issuer_follow_their_file(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    settings = with_secret_file(file, f"{SECRET}\n{OTHER} until 2000-01-01\n")
    tokens = build(settings, signing_secret(settings))
    assert [keys.file for keys in tokens.secrets] == [file, file]
    tasks = tokens.start()
    audiences = {"kaiten": settings.auth, "billing": AuthSettings(issuer="billing")}
    for secret in (SECRET, OTHER):
        file.write_text(f"{secret}\n")
        for name, auth in audiences.items():
            token = mint("alice", ["predict"], timedelta(hours=1), auth, secret)
            principal = await tokens.authenticator.authenticate([f"Bearer {token}"], [])
            assert principal.issuer == name
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_rotation_is_handed_down_to_later_workers(tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    settings = with_secret_file(file, SECRET)
    secret = signing_secret(settings)
    keys = build(settings, secret).secrets[-1]
    hand_down_settings(settings, holders=1)
    handed_down = dict[Path, bytes]()
    changes = {
        f"{OTHER}\n{SECRET}\n": ["auth_secrets_changed"],
        f"{OTHER}\n": ["auth_secrets_changed", "pseudonyms_change_with_next_start"],
        "broken": ["auth_secrets_not_read"],
    }
    contents = []
    for content, events in changes.items():
        file.write_text(content)
        with capture_logs() as logs:
            for _ in range(3):
                hand_down_changes(keys, handed_down, secret)
        assert [line["event"] for line in logs] == events
        contents.append(read_key_file(file).decode())
    assert contents == [f"{OTHER}\n{SECRET}\n", f"{OTHER}\n", f"{OTHER}\n"]


def test_rotation_that_can_not_be_handed_down_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = with_secret_file(tmp_path / "secrets", SECRET)
    keys = build(settings, None).secrets[0]
    handed_down = dict[Path, bytes]()
    contents: list[bytes] = []

    def replace_key_file(path: Path, content: bytes) -> None:
        contents.append(content)
        if len(contents) == 1:
            raise OSError(24, "Too many open files")

    monkeypatch.setattr("gateway.auth.factory.replace_key_file", replace_key_file)
    with capture_logs() as logs:
        for _ in range(4):
            hand_down_changes(keys, handed_down, None)
    assert [line["event"] for line in logs] == ["auth_secrets_not_handed_down"]
    assert contents == [SECRET.encode()] * 2
