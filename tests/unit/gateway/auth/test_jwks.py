"""Keys that an issuer publishes, on a clock of the test's own."""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from gateway.auth.jwks import JwksKeys
from kaiten.errors import IssuerUnavailable
from kaiten.settings.models import JwksSettings
from tests.unit.gateway.auth.mint import jwk, jwks

SETTINGS = JwksSettings(
    refresh_s=300, min_refresh_interval_s=2, unknown_key_retry_s=10, max_age_s=3600
)


@dataclass
class Issuer:
    """Publishes a given set, counts requests, and owns the time."""

    content: bytes = jwks(jwk("ES256", kid="old"))
    away: bool = False
    now: float = 1000.0
    fetched_at: list[float] = field(default_factory=list)
    slow: asyncio.Event | None = None
    slept: list[float] = field(default_factory=list)

    async def fetch(self, url: str) -> bytes:
        self.fetched_at.append(self.now)
        content = self.content
        if self.slow is not None:
            await self.slow.wait()
        if self.away:
            raise ConnectionError(url)
        return content

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)

    def keys(self, settings: JwksSettings = SETTINGS) -> JwksKeys:
        return JwksKeys("https://issuer/jwks", settings, self.fetch, lambda: self.now, self.sleep)


async def test_known_key_is_fetched_once() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    for _ in range(5):
        assert await keys.find("old") is not None
    assert len(issuer.fetched_at) == 1


async def test_new_key_is_found_at_the_first_token_that_names_it() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    issuer.content = jwks(jwk("ES256", kid="old"), jwk("ES256#2", kid="new"))
    assert await keys.find("new") is not None
    # Not sooner than the interval allows.
    assert [later - 1000 for later in issuer.fetched_at] == [0, 2]


async def test_many_who_ask_share_one_fetch() -> None:
    issuer = Issuer(slow=asyncio.Event())
    keys = issuer.keys()
    asking = [asyncio.create_task(keys.find("old")) for _ in range(50)]
    await asyncio.sleep(0)
    assert issuer.slow is not None
    issuer.slow.set()
    assert all(await asyncio.gather(*asking))
    assert len(issuer.fetched_at) == 1


async def test_caller_who_leaves_ends_nobody_elses_fetch() -> None:
    issuer = Issuer(slow=asyncio.Event())
    keys = issuer.keys()
    leaver, stayer = (asyncio.create_task(keys.find("old")) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    assert issuer.slow is not None
    issuer.slow.set()
    assert await stayer is not None


async def test_key_published_while_a_fetch_was_under_way_is_found_by_the_next() -> None:
    issuer = Issuer(slow=asyncio.Event())
    keys = issuer.keys()
    first = asyncio.create_task(keys.find("old"))
    await until(lambda: len(issuer.fetched_at) == 1)
    issuer.now += 1
    issuer.content = jwks(jwk("ES256", kid="old"), jwk("ES256#2", kid="new"))
    second = asyncio.create_task(keys.find("new"))
    await asyncio.sleep(0)
    assert issuer.slow is not None
    issuer.slow.set()
    assert await first is not None
    assert await second is not None


async def test_unknown_key_is_not_looked_for_again_at_once() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    assert await keys.find("made up") is None
    fetches = len(issuer.fetched_at)
    for _ in range(5):
        assert await keys.find("made up") is None
    assert len(issuer.fetched_at) == fetches
    issuer.now += SETTINGS.unknown_key_retry_s
    assert await keys.find("made up") is None
    assert len(issuer.fetched_at) == fetches + 1


async def test_flood_of_made_up_keys_asks_less_than_once_a_second() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    for number in range(30):
        assert await keys.find(f"made up {number}") is None
    seconds = issuer.now - issuer.fetched_at[0]
    assert len(issuer.fetched_at) - 1 <= seconds / SETTINGS.min_refresh_interval_s


async def test_what_is_remembered_of_a_flood_is_bounded() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    for number in range(1200):
        await keys.find(f"made up {number}")
    assert len(keys._unknown) == 1000


async def test_keys_hold_while_the_issuer_is_away_up_to_an_age() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    issuer.away = True
    issuer.now += SETTINGS.max_age_s - 1
    assert await keys.find("old") is not None
    issuer.now += 1
    with pytest.raises(IssuerUnavailable):
        await keys.find("old")


async def test_nobody_can_tell_of_an_unknown_key_while_the_issuer_is_away() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    issuer.away = True
    issuer.content = jwks(jwk("ES256#2", kid="new"))
    with pytest.raises(IssuerUnavailable):
        await keys.find("new")
    issuer.away = False
    # A fetch that failed has not said that there is none.
    assert await keys.find("new") is not None


async def test_of_too_many_who_ask_at_once_nobody_is_told_that_there_is_no_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.auth.jwks._MAX_WAITING", 5)
    issuer = Issuer(slow=asyncio.Event())
    keys = issuer.keys()
    asking = [asyncio.create_task(keys.find(f"made up {number}")) for number in range(5)]
    await until(lambda: len(issuer.fetched_at) == 1)
    with pytest.raises(IssuerUnavailable):
        await keys.find("old")
    assert issuer.slow is not None
    issuer.slow.set()
    assert await asyncio.gather(*asking) == [None] * 5
    assert await keys.find("old") is not None


async def test_return_of_the_issuer_is_logged_once() -> None:
    issuer = Issuer(away=True)
    keys = issuer.keys()
    with capture_logs() as logs:
        with pytest.raises(IssuerUnavailable):
            await keys.find("old")
        issuer.away = False
        for kid in ("old", "made up", "made up too"):
            await keys.find(kid)
    assert [line["event"] for line in logs] == ["jwks_not_fetched", "jwks_fetched_again"]


async def test_issuer_that_was_never_there_is_distinguished_from_a_bad_token() -> None:
    issuer = Issuer(away=True)
    with pytest.raises(IssuerUnavailable):
        await issuer.keys().find("old")


@pytest.mark.parametrize(
    "content", [b"<html>", b"{}", b"", b'{"keys": []}', jwks(jwk("ES256", kid="new", use="enc"))]
)
async def test_broken_answer_leaves_the_keys_as_they_were(content: bytes) -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    issuer.content = content
    with capture_logs() as logs, pytest.raises(IssuerUnavailable):
        await keys.find("new")
    assert logs[0]["event"] == "jwks_not_fetched"
    assert await keys.find("old") is not None


async def test_token_that_names_no_key_takes_any() -> None:
    issuer = Issuer()
    keys_of_id = await issuer.keys().find(None)
    assert keys_of_id is not None
    assert len(keys_of_id) == 1
    issuer.content = jwks(jwk("ES256", kid="1"), jwk("ES256#2", kid="2"))
    keys_of_id = await issuer.keys().find(None)
    assert keys_of_id is not None
    assert len(keys_of_id) == 2


async def test_ids_of_tokens_tell_nothing_where_no_key_has_one() -> None:
    issuer = Issuer()
    issuer.content = jwks(jwk("ES256", kid=None), jwk("ES256#2", kid=None))
    keys = issuer.keys()
    for kid in (None, "1", "2"):
        keys_of_id = await keys.find(kid)
        assert keys_of_id is not None
        assert len(keys_of_id) == 2
    assert len(issuer.fetched_at) == 1


@pytest.mark.parametrize("kid", [None, "some"])
async def test_new_key_without_an_id_is_fetched_for_a_token_that_no_key_has_verified(
    kid: str | None,
) -> None:
    issuer = Issuer()
    issuer.content = jwks(jwk("ES256", kid=None))
    keys = issuer.keys()
    await keys.find(kid)
    issuer.content = jwks(jwk("ES256", kid=None), jwk("ES256#2", kid=None))
    keys_of_id = await keys.renewed(kid)
    assert keys_of_id is not None
    assert len(keys_of_id) == 2
    # Forged ones bring about one fetch, and no other for a while.
    assert await keys.renewed(kid) is None
    fetches = len(issuer.fetched_at)
    for _ in range(20):
        assert await keys.renewed(kid) is None
    assert len(issuer.fetched_at) == fetches


async def test_token_that_names_its_key_brings_about_no_fetch() -> None:
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    assert await keys.renewed("old") is None
    assert len(issuer.fetched_at) == 1


@pytest.mark.parametrize(
    ("changed", "raised"),
    [
        (jwks(jwk("ES256", kid="old"), jwk("ES256#2", kid="new")), False),
        (jwks(jwk("ES256#2", kid="new")), True),
        (jwks(jwk("ES256#2", kid="old")), True),
    ],
    ids=["one more", "gone", "replaced"],
)
async def test_generation_tells_of_a_key_that_is_gone(changed: bytes, raised: bool) -> None:  # noqa: FBT001
    issuer = Issuer()
    keys = issuer.keys()
    await keys.find("old")
    issuer.content = changed
    await keys.find("new")
    assert (keys.generation == 1) is raised


async def test_background_asks_again_and_sooner_after_a_failure() -> None:
    issuer = Issuer(away=True)
    keys = issuer.keys()
    task = asyncio.create_task(keys.keep_fresh())
    await until(lambda: len(issuer.fetched_at) >= 4)
    issuer.away = False
    await until(lambda: issuer.slept[-1] > 200)
    task.cancel()
    waits = [wait for wait in issuer.slept if wait <= 60]
    assert waits[:3] == sorted(waits[:3])
    assert 0.8 * SETTINGS.refresh_s <= issuer.slept[-1] <= SETTINGS.refresh_s
    assert await keys.find("old") is not None


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError


async def test_cause_and_remedy_of_a_failed_fetch_are_logged() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"

    async def fetch(_: str) -> bytes:
        raise error

    with capture_logs() as logs, pytest.raises(IssuerUnavailable):
        await JwksKeys("https://issuer/jwks", SETTINGS, fetch).find("new")
    assert logs[0]["error"].endswith("failed: unable to get local issuer certificate")
    assert "SSL_CERT_FILE" in logs[0]["remedy"]
