"""What an attack is, and how a check is switched off."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from jwt.types import Options

from gateway.auth.authenticator import Authenticator
from gateway.auth.verification_keys import Key
from gateway.auth.verifier import StaticKey
from kaiten.context import Principal
from tests.unit.gateway.attacks.stand import Defences, Issuers, Sent, Stand

CheckT = TypeVar("CheckT")
Change = Callable[[Defences], Defences]
Before = Callable[[Stand, Sent], Awaitable[None]]


@dataclass(frozen=True)
class Attack:
    """A request, its answer, and the fewest checks without which it gets in.

    Of several checks, each alone keeps it out. ``stand_change`` changes the stand for it, and
    ``before`` prepares it.
    """

    sent: Callable[[], Sent]
    refused: tuple[int, str]
    without: tuple[Change, ...]
    stand_change: Change | None = None
    before: Before | None = None


def off(**changes: object) -> Change:
    """Return the change of these defences to those values."""
    return lambda defences: replace(defences, **changes)  # type: ignore[arg-type]


def setting(**changes: object) -> Change:
    """Return the change of these settings of the gateway."""
    return lambda defences: replace(defences, gateway=defences.gateway.model_copy(update=changes))


def out(middleware: type) -> Change:
    """Return the change that leaves this middleware out."""
    return lambda defences: replace(
        defences, replaced={**defences.replaced, middleware: lambda app, **_: app}
    )


def without_check(middleware: type, check: str) -> Change:
    """Return the change that lets a method of the middleware, which checks requests, do nothing."""

    def change(defences: Defences) -> Defences:
        stronger = cast("type", defences.replaced.get(middleware, middleware))
        weaker = type(middleware.__name__, (stronger,), {check: _pass})
        return replace(defences, replaced={**defences.replaced, middleware: weaker})

    return change


def _pass(*_: object) -> None:
    """Check nothing."""


def library(name: str, instead: object) -> Change:
    """Return the change of a module's constant or function, such as a guard of PyJWT's own."""
    return lambda defences: replace(defences, libraries={**defences.libraries, name: instead})


def no_header_check(name: str) -> Change:
    """Return the change that asks this of a token's header no more."""
    return lambda defences: replace(defences, header_checks=_without(defences.header_checks, name))


def no_claim_check(name: str) -> Change:
    """Return the change that asks this of the claims no more."""
    return lambda defences: replace(defences, claim_checks=_without(defences.claim_checks, name))


def no_option(name: str) -> Change:
    """Return the change that switches off what PyJWT verifies by this option, and nothing else."""
    options = ("signature", "exp", "nbf", "iat", "aud", "iss", "sub", "jti")
    stay = {f"verify_{option}": True for option in options}

    def change(defences: Defences) -> Defences:
        return replace(defences, options=cast("Options", {**stay, **defences.options, name: False}))

    return change


def not_required(claim: str) -> Change:
    """Return the change that lets a token leave this claim out."""
    return lambda defences: replace(defences, optional_claims=defences.optional_claims | {claim})


def trusted(
    name: str,
    like: str | None = None,
    key: Key | None = None,
    **changes: Any,  # noqa: ANN401
) -> Change:
    """Return the change of one issuer: made like another, with another key, or changed."""

    def trust(issuers: Issuers) -> Issuers:
        issuer = replace(issuers[like or name], name=name, **changes)
        return {**issuers, name: replace(issuer, keys=StaticKey(key)) if key else issuer}

    return off(trust=trust)


class TakesTheFirst(Authenticator):
    """Takes one of several credentials, as others do."""

    async def authenticate(self, authorizations: list[str], api_keys: list[str]) -> Principal:
        return await super().authenticate(authorizations[:1], [] if authorizations else api_keys)


class TakesAnyScheme(Authenticator):
    """Takes a token however it is announced, or if it is not."""

    async def authenticate(self, authorizations: list[str], api_keys: list[str]) -> Principal:
        return await self.authenticate_token(authorizations[0].rpartition(" ")[2])


class AsksForNoScope(Authenticator):
    """Gives everybody every scope."""

    async def authenticate(self, authorizations: list[str], api_keys: list[str]) -> Principal:
        principal = await super().authenticate(authorizations, api_keys)
        return replace(principal, scopes=frozenset({"predict", "ops"}))


def _without(checks: Mapping[str, CheckT], name: str) -> dict[str, CheckT]:
    return {check_name: check for check_name, check in checks.items() if check_name != name}
