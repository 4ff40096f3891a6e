"""The keys that an issuer publishes, kept fresh in the background."""

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import structlog

from gateway.tokens.keys import UNNAMED, Key, KeySet, from_jwks
from kaiten.errors import IssuerUnavailable
from kaiten.sections import Jwks

logger = structlog.get_logger(__name__)
# Those who wait for one fetch, and the unknown key ids that are remembered: attackers choose both.
_MAX_WAITING = 1000
_MAX_UNKNOWN = 1000
_FIRST_RETRY_S = 1.0

Fetch = Callable[[str], Awaitable[bytes]]
Sleep = Callable[[float], Awaitable[None]]


class JwksKeys:
    """A JWK set, fetched anew every ``refresh_s`` and, for an unknown key id, at once.

    One fetch at a time, at most one in ``min_interval_s``: who asks sooner for a key that is not
    known waits for the next. What a fetch did not have is not asked for again for ``unknown_s``.
    While the issuer is away, the keys hold for ``max_age_s``.
    """

    def __init__(
        self,
        url: str,
        settings: Jwks,
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
        # Raised when a key is gone: what it had verified is to be verified again.
        self.generation = 0

    @property
    def fresh(self) -> bool:
        """Whether keys are known, and not too old to go by."""
        age_limit_s = self._settings.max_age_s
        return self._fetched_at is not None and self._clock() - self._fetched_at < age_limit_s

    async def find(self, kid: str | None) -> tuple[Key, ...] | None:
        """Return the keys of this id, or all for a token that names none; None if there are none.

        IssuerUnavailable where nobody can tell now: a fetch fails, or too many wait for one.
        """
        found = self._known(kid)
        if found is not None or (self.fresh and not self._may_ask(kid)):
            return found
        if self._waiting >= _MAX_WAITING or not await self._ask(kid):
            raise IssuerUnavailable
        found = self._known(kid)
        if found is None and kid is not None:
            self._remember_unknown(kid)
        return found

    async def renewed(self, kid: str | None) -> tuple[Key, ...] | None:
        """Return the keys once more, if the set is another by now; None where ``kid`` names one.

        For a token that none of its keys has verified and that does not tell which it wants.
        IssuerUnavailable as ``find``.
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
        """Fetch the keys again and again, sooner where that fails; it ends by being cancelled."""
        retry_s = _FIRST_RETRY_S
        while True:
            if await self._refresh():
                retry_s = _FIRST_RETRY_S
                # Not all workers at once.
                wait_s = self._settings.refresh_s * random.uniform(0.8, 1)  # noqa: S311
            else:
                wait_s = retry_s = min(2 * retry_s, self._settings.refresh_s)
            await self._sleep(wait_s)

    async def _ask(self, kid: str | None) -> bool:
        """Wait for a fetch that begins from now on, unless one before has the key."""
        self._waiting += 1
        asked_at = self._clock()
        try:
            worked = await self._refresh()
            # One that was under way may have begun before the key was published.
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
        """Tell whether a token's ``kid`` leaves open which key it is: the set may have no ids."""
        return kid is None or self._keys.keys() == {UNNAMED}

    def _may_ask(self, kid: str | None) -> bool:
        return kid is not None and self._unknown.get(kid, 0.0) <= self._clock()

    def _remember_unknown(self, kid: str) -> None:
        self._unknown[kid] = self._clock() + self._settings.unknown_s
        if len(self._unknown) > _MAX_UNKNOWN:
            self._unknown.popitem(last=False)

    async def _refresh(self) -> bool:
        """Fetch the keys, together with all who ask meanwhile; return whether that worked."""
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._fetch_keys())
        # A caller who leaves ends nobody else's fetch.
        return await asyncio.shield(self._fetching)

    async def _fetch_keys(self) -> bool:
        if self._tried_at is not None:
            too_early_s = self._tried_at + self._settings.min_interval_s - self._clock()
            if too_early_s > 0:
                await self._sleep(too_early_s)
        self._tried_at = self._clock()
        try:
            keys = from_jwks(await self._fetch(self._url))
        except Exception as error:  # noqa: BLE001  the network's, HTTP's, and what is no set
            host, reason = urlsplit(self._url).hostname, f"{type(error).__name__}: {error}"
            told = reason if isinstance(error, ValueError) else type(error).__name__
            logger.warning("jwks_not_fetched", host=host, error=told)
            self._away = True
            return False
        if self._away:
            logger.info("jwks_fetched_again", host=urlsplit(self._url).hostname)
        self._away = False
        if any(key not in keys.get(kid, ()) for kid, held in self._keys.items() for key in held):
            self.generation += 1
        self._keys, self._fetched_at = keys, self._clock()
        return True
