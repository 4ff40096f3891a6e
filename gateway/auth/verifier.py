"""Verifies bearer tokens: JWTs (RFC 7519), by current best practice (RFC 8725)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jwt
from jwt.types import Options

from gateway.auth.verification_keys import Key
from kaiten.context import Principal

MAX_TOKEN_CHARS = 8192
AUDIENCE_CLAIM = "aud"
# Keys tried for a token that names none: each costs up to a third of a millisecond.
_MAX_TRIED = 16
_SIGNATURE = jwt.InvalidSignatureError.__name__
# Faults of a token that another key may still verify.
_OF_ANOTHER_KEY = {_SIGNATURE, "algorithm"}
_MAX_SUBJECT_CHARS = 256
# Besides the audience.
_REQUIRED_CLAIMS = ("exp", "iss", "sub")
_INSTANTS = ("exp", "nbf", "iat")
# JSON parsers that use doubles read larger integers differently.
_LATEST = 2**53
# A key id is only looked up and never logged, but a legitimate one needs no other characters, and
# no path traversal.
_KEY_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9._~:@+/=-]{1,256}")
_TYPES = {"jwt", "at+jwt", "application/at+jwt"}
# They let a token carry, or point to, the key that is to verify it.
_KEY_REFERENCES = {"jku", "x5u", "jwk", "x5c"}

Header = Mapping[str, Any]
HeaderCheck = Callable[[Header], bool]
Claims = Mapping[str, Any]
ClaimCheck = Callable[[Claims], bool]


class TokenRejected(Exception):
    """An invalid token. ``fault`` is for the operator's log, never for the caller.

    ``principal`` is the token's verified owner, None if the token was not verified.
    """

    def __init__(self, fault: str, principal: Principal | None = None) -> None:
        super().__init__(fault)
        self.fault, self.principal = fault, principal


class KeySource(Protocol):
    """The keys of one issuer."""

    @property
    def generation(self) -> int:
        """Increased when a key is withdrawn, so that tokens verified by it are verified again."""

    @property
    def fresh(self) -> bool:
        """Whether the keys are available and not too old to use."""

    async def find(self, kid: str | None) -> Sequence[Key] | None:
        """Return the keys of a key id, None if there are none.

        Raises:
            IssuerUnavailable: The keys cannot be fetched.

        """

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:
        """Return newer keys for a token that the current ones do not verify, None without any.

        Raises:
            IssuerUnavailable: The keys cannot be fetched.

        """


class StaticKey:
    """The single configured key of an issuer; a token's key id is ignored."""

    generation = 0
    fresh = True

    def __init__(self, key: Key) -> None:
        self._key = key

    @property
    def algorithms(self) -> frozenset[str]:
        """The algorithms that the key verifies."""
        return self._key.algorithms

    async def find(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  the Protocol's
        return (self._key,)

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:  # noqa: ARG002  as above
        return None


@dataclass(frozen=True, slots=True)
class TrustedIssuer:
    """An issuer whose tokens are accepted, for one audience, with its keys and algorithms.

    ``audience_claim`` names the claim that holds the audience. ``scope_claims`` are the paths of
    the claims that hold scopes; if empty, ``scope`` is read, or else ``scp``. A ``scope_map`` maps
    the issuer's scopes to those of this service and drops all others. ``scope_lists`` permits a
    list in ``scope``, which some issuers write.
    """

    name: str
    audience: str
    keys: KeySource
    algorithms: frozenset[str]
    audience_claim: str = AUDIENCE_CLAIM
    scope_claims: Sequence[Sequence[str]] = ()
    scope_map: Mapping[str, Sequence[str]] | None = None
    scope_lists: bool = False

    def scopes(self, claims: Claims) -> frozenset[str]:
        """Return the scopes that the claims grant."""
        if self.scope_claims:
            values = [_at(claims, path) for path in self.scope_claims]
        else:
            values = [self._default_scope(claims)]
        names = frozenset(name for value in values for name in _names(value))
        if self.scope_map is None:
            return names
        return frozenset(scope for name in names for scope in self.scope_map.get(name, ()))

    def _default_scope(self, claims: Claims) -> object:
        """Return the claim ``scope`` (RFC 8693), or else ``scp``, which some issuers use."""
        scope = claims.get("scope")
        if scope is None:
            return claims.get("scp")
        return None if isinstance(scope, list) and not self.scope_lists else scope


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified token; instants are epoch seconds.

    It stays valid until ``expires_at``, and while ``keys`` are of this ``generation``.
    """

    principal: Principal
    expires_at: int
    issued_at: int
    token_id: str | None
    keys: KeySource
    generation: int


def _is_signed_otherwise(header: Header) -> bool:
    return isinstance(header.get("alg"), str) and header["alg"].lower() != "none"


def _has_a_plain_key_id(header: Header) -> bool:
    kid = header.get("kid")
    return kid is None or (isinstance(kid, str) and _KEY_ID.fullmatch(kid) is not None)


def _is_of_a_known_type(header: Header) -> bool:
    kind = header.get("typ", "JWT")
    return isinstance(kind, str) and kind.lower() in _TYPES


# Checks of a header before anything in it is used, by the fault's name.
_HEADER_CHECKS: Mapping[str, HeaderCheck] = {
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
    # PyJWT accepts a string of digits, and takes true for 1.
    return type(value) in {int, float} and 0 <= value < _LATEST  # type: ignore[operator]


# Checks of the claims in addition to PyJWT's, by the fault's name.
_CLAIM_CHECKS: Mapping[str, ClaimCheck] = {
    "subject": _has_a_subject,
    "instant": _has_numbers_for_instants,
}


@dataclass(frozen=True, slots=True)
class Verifier:
    """Verifies tokens of ``issuers``, a mapping by name; ``leeway_s`` allows for clock skew."""

    header_checks: ClassVar[Mapping[str, HeaderCheck]] = _HEADER_CHECKS
    claim_checks: ClassVar[Mapping[str, ClaimCheck]] = _CLAIM_CHECKS

    issuers: Mapping[str, TrustedIssuer]
    leeway_s: int

    async def verify(self, token: str) -> Verified:
        """Return the verified content of a token.

        Raises:
            TokenRejected: The token is malformed, forged, expired or for another audience.
            IssuerUnavailable: The issuer's keys cannot be fetched.

        """
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
            # Without ``exp`` it has expired; without ``iat`` every revocation applies to it.
            expires_at=int(claims.get("exp", 0)) + self.leeway_s,
            issued_at=int(claims.get("iat", 0)),
            token_id=claims.get("jti"),
            keys=issuer.keys,
            generation=issuer.keys.generation,
        )

    def _read(self, token: str) -> tuple[Header, TrustedIssuer]:
        """Return the checked header and the trusted issuer that the token claims to be from."""
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenRejected("size")
        try:
            parts = jwt.decode_complete(token, options={"verify_signature": False})
        # Some versions of PyJWT let the RecursionError of deeply nested JSON through.
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
        """Return the fault of an unknown issuer, with one of its own for a trailing slash."""
        bare = name.rstrip("/") if isinstance(name, str) else None
        bare_issuers = {issuer.rstrip("/") for issuer in self.issuers}
        return "issuer_differs_by_a_slash" if bare in bare_issuers else "unknown_issuer"

    def _claims_by_any(
        self, token: str, alg: str, keys: Sequence[Key], issuer: TrustedIssuer
    ) -> dict[str, Any]:
        """Return the claims, verified by one of the keys for the algorithm."""
        # The key's type decides on algorithms, never the token's header.
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
        try:
            claims = jwt.decode(
                token,
                key.material,
                algorithms=[alg],
                issuer=issuer.name,
                audience=issuer.audience,
                leeway=self.leeway_s,
                options=self._options(issuer),
            )
        except (jwt.PyJWTError, RecursionError, ValueError, TypeError, OverflowError) as error:
            raise TokenRejected(type(error).__name__) from None
        claim = issuer.audience_claim
        if claim != AUDIENCE_CLAIM and issuer.audience not in _names(claims[claim]):
            raise TokenRejected("InvalidAudienceError")
        for fault, holds in self.claim_checks.items():
            if not holds(claims):
                raise TokenRejected(fault)
        return claims

    def _options(self, issuer: TrustedIssuer) -> Options:
        """Return PyJWT's options for the issuer's tokens."""
        if issuer.audience_claim == AUDIENCE_CLAIM:
            return {"require": [AUDIENCE_CLAIM, *_REQUIRED_CLAIMS]}
        # PyJWT verifies the audience in ``aud`` only.
        return {"require": [issuer.audience_claim, *_REQUIRED_CLAIMS], "verify_aud": False}


def _at(claims: Claims, path: Sequence[str]) -> object:
    """Return the claim at a path of names, None if there is none."""
    value: object = claims
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _names(value: object) -> frozenset[str]:
    """Return the names in a claim, which is a list of strings or a space-separated string."""
    if isinstance(value, str):
        return frozenset(value.split())
    if isinstance(value, list):
        return frozenset(name for name in value if isinstance(name, str))
    return frozenset()
