"""API keys and revocations: one document that all workers and replicas read."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.auth.verifier import TokenRejected, Verified
from kaiten.context import Principal
from kaiten.errors import StateUnavailable

# A fixed prefix lets secret scanners recognize a leaked key.
PREFIX = "kaiten_"
_API_KEY = re.compile(rf"{PREFIX}([0-9a-f]{{16}})_([A-Za-z0-9_-]{{43}})")
# The issuer of principals that use an API key and no token.
ISSUER = "api-key"
# The longest lifetime of a token or an API key that is created here: a revoked token is remembered
# for as long, and one that lived longer would be accepted again.
MAX_LIFETIME = timedelta(days=400)
# A deleted API key's tombstone outlasts the key, in case the clocks of hosts differ by up to a day.
_MARGIN_S = 86_400
# An entry is refused from its end, and deleted only this long after it: what a clock that is ahead
# for a moment deletes is lost for good.
KEPT_AFTER_END_S = 90 * 86_400
_NONE: Mapping[str, int] = MappingProxyType({})


class ApiKey(BaseModel):
    """An API key's subject, scopes and SHA-256: a key of 256 random bits needs no slow hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    subject: str
    scopes: tuple[str, ...]
    created_at: int
    expires_at: int

    @property
    def principal(self) -> Principal:
        """The caller that uses the key."""
        return Principal(self.subject, frozenset(self.scopes), ISSUER)


class Credentials(BaseModel):
    """Issued API keys and revocations; instants are epoch seconds.

    ``revoked_tokens`` maps ``issuer|jti``, or ``api-key|id`` for a deleted API key, to the instant
    at which the entry may be dropped. ``revoked_subjects`` maps ``issuer|subject`` to an instant:
    credentials issued by then are revoked.

    ``merged`` joins two versions without losing a revocation, in either order: revocations are only
    added, and a deleted API key leaves a tombstone in ``revoked_tokens``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_keys: dict[str, ApiKey] = Field(default_factory=dict)
    revoked_tokens: dict[str, int] = Field(default_factory=dict)
    revoked_subjects: dict[str, int] = Field(default_factory=dict)

    @classmethod
    def parsed(cls, content: bytes | str, where: str) -> "Credentials":
        """Parse a stored document.

        Raises:
            StateUnavailable: The content is corrupt; the error names ``where`` it is stored.

        """
        try:
            return cls.model_validate_json(content)
        except ValidationError:
            raise StateUnavailable(where, "what it holds is not as it was written") from None

    def check(self, verified: Verified) -> None:
        """Check that a token has not been revoked.

        Raises:
            TokenRejected: The token, or every token of its subject, was revoked.

        """
        principal = verified.principal
        if verified.token_id and f"{principal.issuer}|{verified.token_id}" in self.revoked_tokens:
            raise TokenRejected("revoked_token", principal)
        revoked_at = self.revoked_subjects.get(principal.identity)
        if revoked_at is not None and verified.issued_at <= revoked_at:
            raise TokenRejected("revoked_subject", principal)

    def principal_of(self, api_key: str, now: float) -> Principal:
        """Return the owner of an API key.

        Raises:
            TokenRejected: The key is unknown, expired or revoked.

        """
        match = _API_KEY.fullmatch(api_key)
        key = self.api_keys.get(match[1]) if match else None
        if match and _tombstone_of(match[1]) in self.revoked_tokens:
            raise TokenRejected("revoked_api_key", key.principal if key else None)
        if key is None or not hmac.compare_digest(key.digest, _digest(api_key)):
            raise TokenRejected("unknown_api_key")
        if now >= key.expires_at:
            raise TokenRejected("expired_api_key", key.principal)
        revoked_at = self.revoked_subjects.get(key.principal.identity)
        if revoked_at is not None and key.created_at <= revoked_at:
            raise TokenRejected("revoked_subject", key.principal)
        return key.principal

    def without_expired(self, now: float) -> "Credentials":
        """Return the document without the API keys and tombstones that have ended by ``now``."""
        revoked = {k: v for k, v in self.revoked_tokens.items() if v > now}
        keys = {
            key_id: key
            for key_id, key in self.api_keys.items()
            if key.expires_at > now and _tombstone_of(key_id) not in revoked
        }
        return self.model_copy(update={"api_keys": keys, "revoked_tokens": revoked})

    def merged(self, other: "Credentials", now: float) -> "Credentials":
        """Return the union of two versions, without what ended KEPT_AFTER_END_S ago or earlier.

        The merge is commutative, associative and idempotent.
        """
        union = Credentials(
            api_keys=other.api_keys | self.api_keys,
            revoked_tokens=_latest(self.revoked_tokens, other.revoked_tokens),
            revoked_subjects=_latest(self.revoked_subjects, other.revoked_subjects),
        )
        return union.without_expired(now - KEPT_AFTER_END_S)

    def without_api_key(self, key_id: str) -> "Credentials":
        """Return the document without an API key, with a tombstone that outlives older versions."""
        until = self.api_keys[key_id].expires_at + _MARGIN_S
        keys = {name: key for name, key in self.api_keys.items() if name != key_id}
        revoked = _latest(self.revoked_tokens, {_tombstone_of(key_id): until})
        return self.model_copy(update={"api_keys": keys, "revoked_tokens": revoked})

    def with_revoked(
        self, *, tokens: Mapping[str, int] = _NONE, subjects: Mapping[str, int] = _NONE
    ) -> "Credentials":
        """Return the document with more revocations; each ends at its later instant.

        A revoked subject loses all its API keys, even one whose clock was ahead.
        """
        created = [(key.principal.identity, key.created_at) for key in self.api_keys.values()]
        subjects = {
            identity: max([until, *(at for owner, at in created if owner == identity)])
            for identity, until in subjects.items()
        }
        return self.model_copy(
            update={
                "revoked_tokens": _latest(self.revoked_tokens, tokens),
                "revoked_subjects": _latest(self.revoked_subjects, subjects),
            }
        )

    def with_api_key(self, key_id: str, key: ApiKey) -> "Credentials":
        """Return it with a new API key, which a revocation of its subject before it leaves valid.

        That revocation may reach a few seconds into the future.
        """
        revoked_at = self.revoked_subjects.get(key.principal.identity, -1)
        key = key.model_copy(update={"created_at": max(key.created_at, revoked_at + 1)})
        return self.model_copy(update={"api_keys": {**self.api_keys, key_id: key}})

    def entries_missing_from(self, other: "Credentials") -> int:
        """Return how many entries another version lacks, or holds with an earlier instant."""
        keys = self.api_keys.keys() - other.api_keys.keys()
        pairs = (
            (self.revoked_tokens, other.revoked_tokens),
            (self.revoked_subjects, other.revoked_subjects),
        )
        revoked = (
            others.get(name, -1) < end for entries, others in pairs for name, end in entries.items()
        )
        return len(keys) + sum(revoked)


Change = Callable[[Credentials], Credentials]


class CredentialStore(Protocol):
    """Stores the document.

    Raises:
        StateUnavailable: From both methods, if the store cannot be used.

    """

    def read(self) -> Credentials | None:
        """Return the document, None if there is none."""

    def change(self, change: Change) -> None:
        """Apply ``change`` to the document; concurrent changes are all applied."""


def new_api_key(
    subject: str,
    scopes: tuple[str, ...],
    expires_at: datetime,
    clock: Callable[[], float] = time.time,
) -> tuple[str, str, ApiKey]:
    """Return a new key's id, the key itself, which is shown once, and its stored record."""
    key_id = secrets.token_hex(8)
    text = f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    record = ApiKey(
        digest=_digest(text),
        subject=subject,
        scopes=scopes,
        created_at=int(clock()),
        expires_at=int(expires_at.astimezone(UTC).timestamp()),
    )
    return key_id, text, record


def key_id_of(api_key: str) -> str | None:
    """Return the id within an API key, None if the text is not one."""
    match = _API_KEY.fullmatch(api_key)
    return match[1] if match else None


def _tombstone_of(key_id: str) -> str:
    return f"{ISSUER}|{key_id}"


def _latest(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Return the entries of both mappings, each with its later instant."""
    ends = {name: max(end, second.get(name, end)) for name, end in first.items()}
    return {**second, **ends}


def _digest(api_key: str) -> str:
    return hashlib.sha256(api_key.encode()).hexdigest()
