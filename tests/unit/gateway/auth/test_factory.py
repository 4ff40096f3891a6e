"""Keys fetched from a real issuer, and the parts that the settings ask for."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gateway.auth.factory import build, check_keys, fetch_jwks
from gateway.auth.verification_keys import from_jwks
from kaiten.errors import InvalidSettings
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings, IssuerSettings
from tests import issuer as issuers
from tests.issuer import issuing
from tests.unit.gateway.auth.mint import private_pem, public_pem


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
        ("secret_file", lambda path: path.write_bytes(b"\xff" * 40), "decode"),
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
