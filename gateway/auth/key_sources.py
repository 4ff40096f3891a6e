"""Describes where each issuer's keys come from, and whether they can be fetched."""

import asyncio

from gateway.auth.factory import fetch_jwks
from gateway.auth.fetch_faults import fetch_fault
from gateway.auth.verification_keys import from_jwks
from kaiten.settings.models import AuthSettings, IssuerSettings


def describe_key_sources(auth: AuthSettings) -> dict[str, str]:
    """Return a line about the keys of each issuer, by its name; fetches them concurrently."""
    return asyncio.run(_all(auth))


async def _all(auth: AuthSettings) -> dict[str, str]:
    lines = await asyncio.gather(*map(_source, auth.issuers))
    return dict(zip((issuer.issuer for issuer in auth.issuers), lines, strict=True))


async def _source(issuer: IssuerSettings) -> str:
    if issuer.jwks_url is None:
        file = issuer.public_key_file or issuer.secret_file
        return f"{'public key' if issuer.public_key_file else 'shared secret'} in {file}"
    return f"{issuer.jwks_url} {await _fetch_result(issuer.jwks_url)}"


async def _fetch_result(url: str) -> str:
    try:
        count = sum(map(len, from_jwks(await fetch_jwks(url)).values()))
    except Exception as error:  # noqa: BLE001  network, HTTP and parsing errors
        reason, remedy = fetch_fault(error)
        advice = f"; {remedy}" if remedy else ""
        return f"gives no keys now ({reason}): its tokens would get a 503 until it does{advice}"
    return f"answers with {count} usable {'key' if count == 1 else 'keys'}"
