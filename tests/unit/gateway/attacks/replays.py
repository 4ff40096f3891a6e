"""Attacks by tokens, keys and limits that were valid once."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from gateway.auth.credentials import ISSUER as KEYS_ISSUER
from gateway.auth.credentials import ApiKey, Credentials, new_api_key
from gateway.auth.verification_keys import Key
from gateway.auth.verifier import KeySource
from tests.unit.gateway.attacks.attack import Attack, Change, off
from tests.unit.gateway.attacks.stand import LOGIN, OWN, STAYS, Issuers, Sent, Stand
from tests.unit.gateway.attacks.tokens import (
    DAY,
    HOUR,
    UNAUTHENTICATED,
    issuer_token,
    own_token,
    request_with,
)
from tests.unit.gateway.attacks.wire import bare
from tests.unit.gateway.auth.mint import jwk, jwks
from tests.unit.gateway.house import CANARY, V2
from tests.unit.gateway.rate_limit.house import subject_rules

LIMITED = (429, "rate_limited")
NOT_NOTIFIED, NO_LIMITS = off(is_notified=False), off(limits=None)
LATER = datetime.now(UTC) + timedelta(days=1)
Step = Callable[[Stand], Awaitable[None]]


ID, TEXT, RECORD = new_api_key(CANARY, ("predict",), LATER)
OTHER_ID, _, OTHER_RECORD = new_api_key("bob", ("predict",), LATER)


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key_list(record: ApiKey = RECORD, key_id: str = ID) -> Change:
    """Return the change to a list of API keys with this one."""
    return off(credentials=Credentials(api_keys={OTHER_ID: OTHER_RECORD, key_id: record}))


def revocation_list(**entries: dict[str, int]) -> Change:
    return off(credentials=Credentials(**entries))


def by_key(text: str, without: Change, stand_change: Change) -> Attack:
    return Attack(
        lambda: bare(("X-API-Key", text)), UNAUTHENTICATED, (without,), stand_change=stand_change
    )


def after(step: Step) -> Callable[[Stand, Sent], Awaitable[None]]:
    """Return a preparation: the request is answered, and then this happens."""

    async def before(stand: Stand, request: Sent) -> None:
        assert (await stand.answer(request)).status_code == 200
        await step(stand)

    return before


async def revoke_token(stand: Stand) -> None:
    stand.revoke(revoked_tokens={f"{OWN}|one": 2**40})


async def revoke_login_token(stand: Stand) -> None:
    stand.revoke(revoked_tokens={f"{LOGIN}|one": 2**40})


async def revoke_subject(stand: Stand) -> None:
    stand.revoke(revoked_subjects={f"{OWN}|{CANARY}": int(time.time()) + 1})


async def revoke_key_owner(stand: Stand) -> None:
    stand.revoke(revoked_subjects={f"{KEYS_ISSUER}|{CANARY}": int(time.time()) + 1})


async def take_key_away(stand: Stand) -> None:
    stand.revoke(
        api_keys={key_id: key for key_id, key in stand.credentials.api_keys.items() if key_id != ID}
    )


async def wait(stand: Stand) -> None:
    stand.elapsed_s = HOUR + DAY


async def rotate(stand: Stand) -> None:
    stand.published = jwks(jwk("ES256#next", kid="2"), STAYS)
    # A token by the new key makes it known at once.
    answer = await stand.answer(request_with(issuer_token("ES256#next", kid="2", sub="bob")))
    assert answer.status_code == 200


class NeverRotated:
    """Keys that are withdrawn silently."""

    generation = 0
    fresh = True

    def __init__(self, keys: KeySource) -> None:
        self._keys = keys

    async def find(self, kid: str | None) -> Sequence[Key] | None:
        return await self._keys.find(kid)

    async def renewed(self, kid: str | None) -> Sequence[Key] | None:
        return await self._keys.renewed(kid)


def without_rotation(issuers: Issuers) -> Issuers:
    login = issuers[LOGIN]
    return {**issuers, LOGIN: replace(login, keys=NeverRotated(login.keys))}


def replay(token: Callable[[], str], step: Step, without: Change) -> Attack:
    return Attack(lambda: request_with(token()), UNAUTHENTICATED, (without,), before=after(step))


def with_padding(token: str) -> str:
    """Return the same token, written otherwise: a known token is not recognized by its text."""
    head, payload, end = token.split(".")
    return f"{head}.{payload}.{end}{'=' * (-len(end) % 4)}"


def evasion(request: Callable[[], Sent], limit: Change) -> Attack:
    """Return the attack on a limit that was reached by requests of another form."""

    async def reach(stand: Stand, request: Sent) -> None:
        for _ in range(3):
            answer = await stand.answer(request_with(own_token()))
        # Three are allowed, and cost two tokens each.
        assert answer.status_code == 200

    return Attack(request, LIMITED, (NO_LIMITS,), stand_change=limit, before=reach)


THREE = off(limits=subject_rules(requests="3/minute"))
REPLAYS: Mapping[str, Attack] = {
    "revoked by id": Attack(
        lambda: request_with(own_token()),
        UNAUTHENTICATED,
        (revocation_list(),),
        stand_change=revocation_list(revoked_tokens={f"{OWN}|one": 2**40}),
    ),
    "issued before its subject was revoked": Attack(
        lambda: request_with(own_token(iat=int(time.time()) - DAY)),
        UNAUTHENTICATED,
        (revocation_list(),),
        stand_change=revocation_list(revoked_subjects={f"{OWN}|{CANARY}": int(time.time()) - HOUR}),
    ),
    "of a revoked subject, and does not say when it was issued": Attack(
        lambda: request_with(own_token(iat=None)),
        UNAUTHENTICATED,
        (revocation_list(),),
        stand_change=revocation_list(revoked_subjects={f"{OWN}|{CANARY}": 1}),
    ),
    "replayed after it was revoked": replay(own_token, revoke_token, NOT_NOTIFIED),
    "replayed with padding after it was revoked": replay(
        lambda: with_padding(issuer_token("ES256")), revoke_login_token, NOT_NOTIFIED
    ),
    "replayed after its subject was revoked": replay(own_token, revoke_subject, NOT_NOTIFIED),
    "replayed after its key was rotated out": replay(
        lambda: issuer_token("ES256"), rotate, off(trust=without_rotation)
    ),
    "replayed after its end": replay(own_token, wait, off(clock=lambda _: time.time())),
    "an expired API key": by_key(
        TEXT, key_list(), key_list(RECORD.model_copy(update={"expires_at": int(time.time()) - 1}))
    ),
    "an API key that was taken away": by_key(TEXT, key_list(), key_list(key_id="0" * 16)),
    "an API key with another's id": by_key(
        TEXT.replace(ID, OTHER_ID),
        key_list(
            OTHER_RECORD.model_copy(update={"digest": digest_of(TEXT.replace(ID, OTHER_ID))}),
            OTHER_ID,
        ),
        key_list(),
    ),
    "an API key replayed after it was taken away": Attack(
        lambda: bare(("X-API-Key", TEXT)),
        UNAUTHENTICATED,
        (NOT_NOTIFIED,),
        stand_change=key_list(),
        before=after(take_key_away),
    ),
    "an API key replayed after its owner was revoked": Attack(
        lambda: bare(("X-API-Key", TEXT)),
        UNAUTHENTICATED,
        (NOT_NOTIFIED,),
        stand_change=key_list(),
        before=after(revoke_key_owner),
    ),
    "an API key replayed after its end": Attack(
        lambda: bare(("X-API-Key", TEXT)),
        UNAUTHENTICATED,
        (off(clock=lambda _: time.time()),),
        stand_change=key_list(),
        before=after(wait),
    ),
    "a limit, by a new token": evasion(lambda: request_with(own_token(jti="two")), THREE),
    "a limit, by another route": evasion(
        lambda: request_with(own_token(), path=V2, body={"inputs": [CANARY]}), THREE
    ),
    "a limit, from another address": evasion(
        lambda: request_with(own_token(), client="192.0.2.1"), THREE
    ),
    "a limit of tokens": evasion(
        lambda: request_with(own_token(jti="two")), off(limits=subject_rules(tokens="6/minute"))
    ),
}
