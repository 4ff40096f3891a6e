"""Verifies a bearer token (RFC 7519, RFC 8725): whose it is, by which key, and what it says."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jwt
from jwt.types import Options

from gateway.tokens.keys import Key
from kaiten.context import Principal

MAX_TOKEN_CHARS = 8192
AUDIENCE_CLAIM = "aud"
# Of keys that a token leaves open: each costs up to a third of a millisecond.
_MAX_TRIED = 16
_SIGNATURE = jwt.InvalidSignatureError.__name__
# What is wrong with a token that another key may yet verify.
_OF_ANOTHER_KEY = {_SIGNATURE, "algorithm"}
_MAX_SUBJECT_CHARS = 256
_REQUIRED_CLAIMS = ("exp", "iss", "aud", "sub")
_INSTANTS = ("exp", "nbf", "iat")
# Beyond it, not every reader of JSON sees the same number.
_LATEST = 2**53
# A key's id is only looked up, and logged nowhere, but an honest one needs no more than these, and
# climbs up no path.
_KEY_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9._~:@+/=-]{1,256}")
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
# They would let the token bring, or point to, the key that it is to be verified with.
_KEY_REFERENCES = {"jku", "x5u", "jwk", "x5c"}

Header = Mapping[str, Any]
HeaderCheck = Callable[[Header], bool]
Claims = Mapping[str, Any]
ClaimCheck = Callable[[Claims], bool]


class TokenRejected(Exception):
    """A token that does not hold; what it carries is for the operator's log, never for the caller.

    ``principal`` is whose it was, where that is certain.
    """

    def __init__(self, fault: str, principal: Principal | None = None) -> None:
        super().__init__(fault)
        self.fault, self.principal = fault, principal


class Keys(Protocol):
    """The keys of one issuer."""

    @property
    def generation(self) -> int:
        """Raised when a key is gone, so that what it had verified is verified again."""

    @property
    def fresh(self) -> bool:
        """Whether the keys are known, and not too old to go by."""

    async def find(self, kid: str | None) -> Sequence[Key] | None:
        """Return the keys of this id; None if there are none.

        IssuerUnavailable where no keys can be had.
        """

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:
        """Return the keys for a token that the last ones did not verify, None if it has no others.

        IssuerUnavailable where no keys can be had.
        """


class OneKey:
    """The one key of an issuer who has no more, whatever id a token gives it."""

    generation = 0
    fresh = True

    def __init__(self, key: Key) -> None:
        self._key = key

    @property
    def algorithms(self) -> frozenset[str]:
        """What it verifies."""
        return self._key.algorithms

    async def find(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  the Protocol's
        return (self._key,)

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  as above
        return None


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """Who may make tokens, for which audience, with which keys and algorithms.

    ``audience_claim`` holds the audience. ``scope_claims`` are the paths of the claims that hold
    scopes, ``scope`` or else ``scp`` if there are none; with a ``scope_map``, only what it lists
    counts. ``scope`` may be a list with ``scope_lists``: some issuers write one, and we do not.
    """

    name: str
    audience: str
    keys: Keys
    algorithms: frozenset[str]
    audience_claim: str = AUDIENCE_CLAIM
    scope_claims: Sequence[Sequence[str]] = ()
    scope_map: Mapping[str, Sequence[str]] | None = None
    scope_lists: bool = False

    def scopes(self, claims: Claims) -> frozenset[str]:
        """Return the scopes that the claims hold."""
        if self.scope_claims:
            values = [_at(claims, path) for path in self.scope_claims]
        else:
            values = [self._usual(claims)]
        names = frozenset(name for value in values for name in _names(value))
        if self.scope_map is None:
            return names
        return frozenset(scope for name in names for scope in self.scope_map.get(name, ()))

    def _usual(self, claims: Claims) -> object:
        """Return the claim of RFC 8693, or else the one that some have instead."""
        scope = claims.get("scope")
        if scope is None:
            return claims.get("scp")
        return None if isinstance(scope, list) and not self.scope_lists else scope


@dataclass(frozen=True, slots=True)
class Verified:
    """What a token says, and until when that holds: the epoch second, and its key's generation."""

    principal: Principal
    expires_at: int
    issued_at: int
    token_id: str | None
    keys: Keys
    generation: int


def _is_signed_otherwise(header: Header) -> bool:
    return isinstance(header.get("alg"), str) and header["alg"].lower() != "none"


def _has_a_plain_key_id(header: Header) -> bool:
    kid = header.get("kid")
    return kid is None or (isinstance(kid, str) and _KEY_ID.fullmatch(kid) is not None)


def _is_of_a_known_type(header: Header) -> bool:
    kind = header.get("typ", "JWT")
    return isinstance(kind, str) and kind.lower() in _TYPES


# What is asked of a header before anything in it is used, by the fault's name.
HEADER_CHECKS: Mapping[str, HeaderCheck] = {
    "unsigned": _is_signed_otherwise,
    "critical_header": lambda header: "crit" not in header and "b64" not in header,
    "key_reference": lambda header: not _KEY_REFERENCES & header.keys(),
    "key_id": _has_a_plain_key_id,
    "type": _is_of_a_known_type,
}


def _has_a_subject(claims: Claims) -> bool:
    subject = claims.get("sub")
    return isinstance(subject, str) and 0 < len(subject) <= _MAX_SUBJECT_CHARS


def _has_numbers_for_instants(claims: Claims) -> bool:
    return all(_is_an_instant(claims[name]) for name in _INSTANTS if name in claims)


def _is_an_instant(value: object) -> bool:
    # PyJWT takes a string of digits as well, and true for one second after the epoch.
    return type(value) in {int, float} and 0 <= value < _LATEST  # type: ignore[operator]


# What is asked of the claims beside what PyJWT asks, by the fault's name.
CLAIM_CHECKS: Mapping[str, ClaimCheck] = {
    "subject": _has_a_subject,
    "instant": _has_numbers_for_instants,
}


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies tokens of the ``issuers``, by name; ``leeway_s`` is forgiven between clocks.

    The checks that follow have their defaults: tests switch one off to show what it keeps out.
    ``options`` are PyJWT's.
    """

    issuers: Mapping[str, TrustedIssuer]
    leeway_s: int
    header_checks: Mapping[str, HeaderCheck] = field(default_factory=lambda: HEADER_CHECKS)
    claim_checks: Mapping[str, ClaimCheck] = field(default_factory=lambda: CLAIM_CHECKS)
    options: Options = field(default_factory=Options)
    required_claims: Sequence[str] = _REQUIRED_CLAIMS
    max_token_chars: int = MAX_TOKEN_CHARS

    async def verify(self, token: str) -> Verified:
        """Return what a token says; TokenRejected, or IssuerUnavailable where keys are missing."""
        header, issuer = self._read(token)
        kid = header.get("kid")
        keys = await issuer.keys.find(kid)
        if not keys:
            raise TokenRejected("unknown_key")
        try:
            claims = self._claims_by_any(token, header["alg"], keys, issuer)
        except TokenRejected as error:
            renewed = await issuer.keys.renewed(kid) if error.fault in _OF_ANOTHER_KEY else None
            if not renewed:
                raise
            claims = self._claims_by_any(token, header["alg"], renewed, issuer)
        return Verified(
            principal=Principal(claims.get("sub", ""), issuer.scopes(claims), issuer.name),
            # Without an end it has ended, and without a beginning it is as old as can be.
            expires_at=int(claims.get("exp", 0)) + self.leeway_s,
            issued_at=int(claims.get("iat", 0)),
            token_id=claims.get("jti"),
            keys=issuer.keys,
            generation=issuer.keys.generation,
        )

    def _read(self, token: str) -> tuple[Header, TrustedIssuer]:
        """Return the header, once it is harmless, and who says to have made the token."""
        if len(token) > self.max_token_chars:
            raise TokenRejected("size")
        try:
            parts = jwt.decode_complete(token, options={"verify_signature": False})
        # Some versions let through what deep nesting does to json.
        except (jwt.PyJWTError, RecursionError, ValueError) as error:
            raise TokenRejected(type(error).__name__) from None
        header: Header = parts["header"]
        for fault, holds in self.header_checks.items():
            if not holds(header):
                raise TokenRejected(fault)
        name = parts["payload"].get("iss")
        issuer = self.issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise TokenRejected(self._fault_of_issuer(name))
        return header, issuer

    def _fault_of_issuer(self, name: object) -> str:
        """Return what is wrong with an issuer's name, so that an operator sees a mere slash."""
        bare = name.rstrip("/") if isinstance(name, str) else None
        known = {issuer.rstrip("/") for issuer in self.issuers}
        return "issuer_differs_by_a_slash" if bare in known else "unknown_issuer"

    def _claims_by_any(
        self, token: str, alg: str, keys: Sequence[Key], issuer: TrustedIssuer
    ) -> dict[str, Any]:
        """Return the claims, verified by one of the keys that take the algorithm."""
        # The key's type decides, and never what the token says of itself.
        usable = [key for key in keys if alg in key.algorithms & issuer.algorithms]
        fault = TokenRejected("algorithm")
        for key in usable[:_MAX_TRIED]:
            try:
                return self._claims(token, alg, key, issuer)
            except TokenRejected as error:
                fault = error
                if error.fault != _SIGNATURE:
                    break
        raise fault

    def _claims(self, token: str, alg: str, key: Key, issuer: TrustedIssuer) -> dict[str, Any]:
        claim = issuer.audience_claim
        # PyJWT knows the audience by its usual name only.
        elsewhere: Options = {} if claim == AUDIENCE_CLAIM else {"verify_aud": False}
        names = [claim if name == AUDIENCE_CLAIM else name for name in self.required_claims]
        try:
            claims = jwt.decode(
                token,
                key.material,
                algorithms=[alg],
                issuer=issuer.name,
                audience=issuer.audience,
                leeway=self.leeway_s,
                options={**self.options, **elsewhere, "require": names},
            )
        except (jwt.PyJWTError, RecursionError, ValueError, TypeError, OverflowError) as error:
            raise TokenRejected(type(error).__name__) from None
        if elsewhere and issuer.audience not in _names(claims[claim]):
            raise TokenRejected("InvalidAudienceError")
        for fault, holds in self.claim_checks.items():
            if not holds(claims):
                raise TokenRejected(fault)
        return claims


def _at(claims: Claims, path: Sequence[str]) -> object:
    """Return what lies at a path of names, None if there is nothing."""
    value: object = claims
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _names(value: object) -> frozenset[str]:
    """Return the names in a claim: a list of strings, or one string, separated by spaces."""
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list):
        return frozenset(name for name in value if isinstance(name, str))
    return frozenset()
