"""Authenticates callers, and caches verified tokens."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

from gateway.auth.credentials import Credentials
from gateway.auth.verifier import TokenRejected, Verified, Verifier
from kaiten.context import Principal
from kaiten.errors import NotReady, Unauthenticated

# A caller sends one token many times, and verifying it costs as much as all middleware together.
_MAX_REMEMBERED = 4096
_API_KEY = b"x-api-key"
_CREDENTIALS = frozenset({b"authorization", _API_KEY})


def sends_credential(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Return whether a request's raw headers include a credential, of whatever kind or worth."""
    return any(name in _CREDENTIALS for name, _ in headers)


class Authenticator:
    """Authenticates a caller by a bearer token or an API key.

    Signatures of known tokens are not verified again, but expiry and revocation are checked at each
    request.

    Raises:
        TokenRejected: From every method that authenticates, if the credential is invalid.
        IssuerUnavailable: From those that take a token, if its issuer's keys cannot be fetched.
        NotReady: From every method that authenticates, until the revocation list has been read.

    """

    def __init__(
        self,
        verifier: Verifier,
        credentials: Callable[[], Credentials],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifier, self._credentials, self._clock = verifier, credentials, clock
        self._verified: OrderedDict[str, Verified] = OrderedDict()

    async def authenticate(self, authorizations: list[str], api_keys: list[str]) -> Principal:
        """Return the caller, given the values of Authorization and X-API-Key.

        Raises:
            Unauthenticated: There is no credential.

        """
        if len(authorizations) + len(api_keys) > 1:
            # A proxy before this server may have checked the other one.
            raise TokenRejected("several_credentials")
        if api_keys:
            return self.authenticate_api_key(api_keys[0])
        scheme, _, token = "".join(authorizations).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        return await self.authenticate_token(token)

    async def authenticate_token(self, token: str) -> Principal:
        """Return the owner of a bearer token."""
        # Asked for first, so that a worker that is not ready does not fetch keys.
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
        """Return the principal of a request's raw headers if its credential needs no verification.

        That is an API key or a cached token. Returns None for an invalid one too: the
        authentication of the request reports why.
        """
        sent = [(name, value) for name, value in headers if name in _CREDENTIALS]
        if len(sent) != 1:
            return None
        name, value = sent[0]
        try:
            if name == _API_KEY:
                return self.authenticate_api_key(value.decode("latin-1"))
            scheme, _, token = value.decode("latin-1").partition(" ")
            verified = self._remembered(token) if scheme.lower() == "bearer" else None
            if verified is None or self._clock() >= verified.expires_at:
                return None
            self._credentials().check(verified)
        except (TokenRejected, NotReady):
            return None
        return verified.principal

    def authenticate_api_key(self, api_key: str) -> Principal:
        """Return the owner of an API key."""
        return self._credentials().principal_of(api_key, self._clock())

    def _remembered(self, token: str) -> Verified | None:
        """Return a cached token, unless its issuer has withdrawn a key or its keys are too old."""
        verified = self._verified.get(token)
        if verified is None:
            return None
        keys = verified.keys
        if verified.generation != keys.generation or not keys.fresh:
            del self._verified[token]
            return None
        self._verified.move_to_end(token)
        return verified
