"""Says where each issuer's keys come from, and whether they can be had now."""

import asyncio

from gateway.tokens.build import fetch_jwks
from gateway.tokens.keys import from_jwks
from kaiten.sections import Auth, Issuer


def sources_of(auth: Auth) -> dict[str, str]:
    """Return a line for each issuer; all are asked at once, and none for longer than a fetch."""
    return asyncio.run(_all(auth))


async def _all(auth: Auth) -> dict[str, str]:
    found = await asyncio.gather(*map(_source, auth.issuers))
    return dict(zip((each.issuer for each in auth.issuers), found, strict=True))


async def _source(issuer: Issuer) -> str:
    if issuer.jwks_url is None:
        file = issuer.public_key_file or issuer.secret_file
        return f"{'public key' if issuer.public_key_file else 'shared secret'} in {file}"
    return f"{issuer.jwks_url} {await _answer_of(issuer.jwks_url)}"


async def _answer_of(url: str) -> str:
    try:
        count = sum(map(len, from_jwks(await fetch_jwks(url)).values()))
    except Exception as error:  # noqa: BLE001  the network's, HTTP's, and what is no set
        fault = str(error) if isinstance(error, ValueError) else ""
        told = fault or type(error).__name__
        return f"gives no keys now ({told}): its tokens would get a 503 until it does"
    return f"answers with {count} usable {'key' if count == 1 else 'keys'}"
