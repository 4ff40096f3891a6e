"""Tells who calls, and remembers which tokens held."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from gateway.tokens.credentials import Credentials
from gateway.tokens.verifier import TokenRejected, Verified, Verifier
from kaiten.context import Principal
from kaiten.errors import NotReady, Unauthenticated

# A caller sends one token many times, and verifying it costs as much as the rest of the edge.
_MAX_REMEMBERED = 4096
_API_KEY = b"x-api-key"
_CREDENTIALS = frozenset({b"authorization", _API_KEY})


class Authenticator:
    """By a bearer token or an API key; TokenRejected where it does not hold.

    What was issued and revoked is asked for at each request. IssuerUnavailable, or NotReady where
    that could not be read yet.
    """

    def __init__(
        self,
        verifier: Verifier,
        credentials: Callable[[], Credentials],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifier, self._credentials, self._clock = verifier, credentials, clock
        self._verified: OrderedDict[str, Verified] = OrderedDict()

    async def principal_of(self, authorizations: list[str], api_keys: list[str]) -> Principal:
        """Return who calls, by the values of the two headers; Unauthenticated without any."""
        if len(authorizations) + len(api_keys) > 1:
            # Of two, somebody before us may have looked at the other one.
            raise TokenRejected("several_credentials")
        if api_keys:
            return self.by_api_key(api_keys[0])
        scheme, _, token = "".join(authorizations).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated(token_sent=False)
        return await self.by_token(token)

    async def by_token(self, token: str) -> Principal:
        """Return whose bearer token it is."""
        # Before a key is looked for: nothing of a request waits for what a list says.
        credentials = self._credentials()
        verified = self._remembered(token)
        if verified is None:
            verified = await self._verifier.verify(token)
            self._verified[token] = verified
            if len(self._verified) > _MAX_REMEMBERED:
                self._verified.popitem(last=False)
        if self._clock() >= verified.expires_at:
            del self._verified[token]
            raise TokenRejected("ExpiredSignatureError", verified.principal)
        credentials.check(verified)
        return verified.principal

    def remembered(self, headers: Iterable[tuple[bytes, bytes]]) -> Principal | None:
        """Return the principal of a request's raw headers if nothing has to be verified for it.

        None as well for what does not hold: the request's own authentication says why.
        """
        sent = [(name, value) for name, value in headers if name in _CREDENTIALS]
        if len(sent) != 1:
            return None
        name, value = sent[0]
        try:
            if name == _API_KEY:
                return self.by_api_key(value.decode("latin-1"))
            scheme, _, token = value.decode("latin-1").partition(" ")
            verified = self._remembered(token) if scheme.lower() == "bearer" else None
            if verified is None or self._clock() >= verified.expires_at:
                return None
            self._credentials().check(verified)
        except (TokenRejected, NotReady):
            return None
        return verified.principal

    def by_api_key(self, api_key: str) -> Principal:
        """Return whose API key it is."""
        return self._credentials().principal_of(api_key, self._clock())

    def _remembered(self, token: str) -> Verified | None:
        """Return what a token said, unless its issuer's keys are gone or too old since."""
        verified = self._verified.get(token)
        if verified is None:
            return None
        keys = verified.keys
        if verified.generation != keys.generation or not keys.fresh:
            del self._verified[token]
            return None
        self._verified.move_to_end(token)
        return verified
