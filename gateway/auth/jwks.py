"""The keys that an issuer publishes, kept fresh in the background."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog

from gateway.auth.fetch_faults import fetch_fault
from gateway.auth.verification_keys import UNNAMED, Key, KeySet, from_jwks
from kaiten.errors import IssuerUnavailable
from kaiten.settings.models import JwksSettings

logger = structlog.get_logger(__name__)
# Bounds of what attackers control: requests that wait for a fetch, and cached unknown key ids.
_MAX_WAITING = 1000
_MAX_UNKNOWN = 1000
_FIRST_RETRY_S = 1.0

Fetch = Callable[[str], Awaitable[bytes]]
Sleep = Callable[[float], Awaitable[None]]


class JwksKeys:
    """The keys of an issuer's JWKS URL, refreshed every ``refresh_s`` and for unknown key ids.

    There is one fetch at a time, and at most one in ``min_refresh_interval_s``; requests for an
    unknown key wait for the next one. A key id that a fetch did not contain is not fetched again
    for ``unknown_key_retry_s``. While the issuer is unavailable, keys stay valid for ``max_age_s``.
    """

    def __init__(
        self,
        url: str,
        settings: JwksSettings,
        fetch: Fetch,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._url, self._settings = url, settings
        self._fetch, self._clock, self._sleep = fetch, clock, sleep
        self._keys: KeySet = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching: asyncio.Task[bool] | None = None
        self._waiting = 0
        self._away = False
        self._unknown: OrderedDict[str, float] = OrderedDict()
        # Increased when a key is withdrawn, so that tokens verified by it are verified again.
        self.generation = 0

    @property
    def fresh(self) -> bool:
        """Whether the keys were fetched within ``max_age_s``."""
        age_limit_s = self._settings.max_age_s
        return self._fetched_at is not None and self._clock() - self._fetched_at < age_limit_s

    async def find(self, kid: str | None) -> tuple[Key, ...] | None:
        """Return the keys of a key id, None if there are none; all keys if ``kid`` is None.

        Raises:
            IssuerUnavailable: A fetch is needed and fails, or too many requests wait for it.

        """
        keys = self._known(kid)
        if keys is not None or (self.fresh and not self._may_ask(kid)):
            return keys
        if self._waiting >= _MAX_WAITING or not await self._ask(kid):
            raise IssuerUnavailable
        keys = self._known(kid)
        if keys is None and kid is not None:
            self._remember_unknown(kid)
        return keys

    async def renewed(self, kid: str | None) -> tuple[Key, ...] | None:
        """Return the keys after another fetch, None if they have not changed.

        For a token that no key verifies and that does not say which key signed it. Returns None at
        once if ``kid`` names a key.

        Raises:
            IssuerUnavailable: As ``find``.

        """
        if not self._names_none(kid) or self._unknown.get(UNNAMED, 0.0) > self._clock():
            return None
        before = self._keys
        if self._waiting >= _MAX_WAITING or not await self._ask(kid):
            raise IssuerUnavailable
        if self._keys != before:
            return self._known(kid)
        self._remember_unknown(UNNAMED)
        return None

    async def keep_fresh(self) -> None:
        """Fetch the keys periodically, sooner after a failure, until cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            if await self._refresh():
                retry_s = _FIRST_RETRY_S
                # Jitter, so that workers do not fetch at the same time.
                wait_s = self._settings.refresh_s * random.uniform(0.8, 1)  # noqa: S311
            else:
                wait_s = retry_s = min(2 * retry_s, self._settings.refresh_s)
            await self._sleep(wait_s)

    async def _ask(self, kid: str | None) -> bool:
        """Wait for a running fetch and, if it lacks the key, for one that begins after the call."""
        self._waiting += 1
        asked_at = self._clock()
        try:
            worked = await self._refresh()
            # A fetch that was under way may have begun before the key was published.
            if self._known(kid) is None and (self._tried_at or asked_at) < asked_at:
                worked = await self._refresh()
        finally:
            self._waiting -= 1
        return worked

    def _known(self, kid: str | None) -> tuple[Key, ...] | None:
        if not self.fresh:
            return None
        if kid is None or self._names_none(kid):
            return tuple(key for keys in self._keys.values() for key in keys)
        return self._keys.get(kid)

    def _names_none(self, kid: str | None) -> bool:
        """Return whether ``kid`` names no key: it is None, or no key of the set has an id."""
        return kid is None or self._keys.keys() == {UNNAMED}

    def _may_ask(self, kid: str | None) -> bool:
        return kid is not None and self._unknown.get(kid, 0.0) <= self._clock()

    def _remember_unknown(self, kid: str) -> None:
        self._unknown[kid] = self._clock() + self._settings.unknown_key_retry_s
        if len(self._unknown) > _MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    async def _refresh(self) -> bool:
        """Join the running fetch or start one; return whether it succeeded."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_keys())
        # A cancelled caller must not cancel the fetch of the others.
        return await asyncio.shield(self._fetching)

    async def _fetch_keys(self) -> bool:
        if self._tried_at is not None:
            too_early_s = self._tried_at + self._settings.min_refresh_interval_s - self._clock()
            if too_early_s > 0:
                await self._sleep(too_early_s)
        self._tried_at = self._clock()
        try:
            keys = from_jwks(await self._fetch(self._url))
        except Exception as error:  # noqa: BLE001  network, HTTP and parsing errors
            reason, remedy = fetch_fault(error)
            host, fields = urlsplit(self._url).hostname, {"remedy": remedy} if remedy else {}
            logger.warning("jwks_not_fetched", host=host, error=reason, **fields)
            self._away = True
            return False
        if self._away:
            logger.info("jwks_fetched_again", host=urlsplit(self._url).hostname)
        self._away = False
        if any(key not in keys.get(kid, ()) for kid, held in self._keys.items() for key in held):
            self.generation += 1
        self._keys, self._fetched_at = keys, self._clock()
        return True
