"""The server that a client calls, and the client's options, checked once."""

import asyncio
import ipaddress
import math
import random
import ssl
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

import httpx

from kaiten_client.version import VERSION

USER_AGENT = f"kaiten-client/{VERSION}"


class UnencryptedWarning(UserWarning):
    """A token or API key is sent over plain HTTP to another machine."""


class HttpOptions(TypedDict, total=False):
    """Options of httpx: TLS, the connection pool and a proxy.

    ``verify`` may be an ``ssl.SSLContext``, which can also hold a client certificate. With
    ``trust_env``, the default, the proxy comes from the environment.
    """

    verify: ssl.SSLContext | bool
    limits: httpx.Limits
    proxy: str | httpx.URL | httpx.Proxy | None
    trust_env: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """The clocks, waits and randomness of a client; tests replace them."""

    now: Callable[[], float] = time.monotonic
    epoch: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform


@dataclass(frozen=True, slots=True)
class ServerTarget:
    """A server, and the options of its requests."""

    url: httpx.URL
    api_key: str | None = field(repr=False)
    # The token comes from a function, which may return another one after a 401.
    refreshable: bool
    timeout_s: float
    retries: int
    timing: Timing
    # Whether a response must name its request.
    verify_request_id: bool = True


def make_target(
    url: str,
    token: str | Callable[[], object] | None,
    api_key: str | None,
    timeout_s: float,
    retries: int,
    timing: Timing,
) -> ServerTarget:
    """Return the target; ValueError names an invalid argument."""
    if token is not None and api_key is not None:
        raise ValueError("token, api_key: pass at most one of them")
    if retries < 0:
        raise ValueError("retries: must be at least 0")
    parsed = check_url(url)
    if isinstance(token, str):
        check_secret("token", token)
    if api_key is not None:
        api_key = check_secret("api_key", api_key)
    if token is not None or api_key is not None:
        warn_if_unencrypted(parsed)
    return ServerTarget(parsed, api_key, callable(token), check_timeout(timeout_s), retries, timing)


def check_options(options: Mapping[str, object]) -> None:
    """Raise ValueError for a transport with options that httpx would then ignore."""
    ignored = options.keys() & {"verify", "limits", "proxy"}
    if "transport" in options and ignored:
        names = ", ".join(sorted(ignored))
        raise ValueError(f"transport, {names}: pass these options to the transport instead")


def proxy_mounts(url: httpx.URL, options: Mapping[str, object]) -> dict[str, None]:
    """Return httpx ``mounts`` that bypass the environment's proxy for a server on this machine.

    A proxy that is passed as an option is used in any case.
    """
    if options.get("proxy") is not None or not _is_loopback(url.host):
        return {}
    host = f"[{url.host}]" if ":" in url.host else url.host
    return {f"all://{host}": None}


def check_url(url: str) -> httpx.URL:
    """Return the URL; ValueError unless it is http:// or https:// with a host and a path only."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise ValueError("url: is not a valid URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("url: must start with http:// or https:// and a host")
    # httpx would send the user as Basic authentication instead of the token.
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError(
            "url: must not contain a user, a query or a fragment; pass a token or an api_key"
        )
    return parsed


def check_timeout(timeout_s: float) -> float:
    """Return the timeout; ValueError unless it is positive and finite."""
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError("timeout_s: must be a positive, finite number of seconds")
    return timeout_s


def check_secret(name: str, value: str) -> str:
    """Return a token or key without surrounding white space, such as the final newline of a file.

    Raises:
        ValueError: A header cannot hold it; the message does not quote it.

    """
    stripped = value.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ValueError(f"{name}: is empty, or contains characters that no token has")
    return stripped


def warn_if_unencrypted(url: httpx.URL) -> None:
    """Warn of a secret that would go to another machine over plain HTTP.

    This is not an error: in a cluster, a mesh or a tunnel may encrypt the connection.
    """
    if url.scheme == "http" and not _is_loopback(url.host):
        message = f"A token or API key would be sent to {url.host} unencrypted; use https://."
        warnings.warn(message, UnencryptedWarning, stacklevel=4)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
