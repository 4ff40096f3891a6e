"""Whom a client calls and how: its arguments, checked once."""

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
    """A token or API key goes over plain HTTP to another machine."""


class HttpOptions(TypedDict, total=False):
    """What httpx is told: TLS, the pool of connections, a proxy.

    Certificates, a client's own included, are an ``ssl.SSLContext`` in ``verify``. By ``trust_env``
    (on) a proxy is taken from the environment.
    """

    verify: ssl.SSLContext | bool
    limits: httpx.Limits
    proxy: str | httpx.URL | httpx.Proxy | None
    trust_env: bool


@dataclass(frozen=True, slots=True)
class Timing:
    """The clocks, the ways to wait and the chance that a client uses; tests give others."""

    now: Callable[[], float] = time.monotonic
    epoch: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep
    uniform: Callable[[float, float], float] = random.uniform


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and how it is asked."""

    url: httpx.URL
    api_key: str | None = field(repr=False)
    # The token is given by its source, which may have another one after a 401.
    refreshable: bool
    timeout_s: float
    retries: int
    timing: Timing
    # Whether an answer must name the request that it is for.
    verify_request_id: bool = True


def aim(
    url: str,
    token: str | Callable[[], object] | None,
    api_key: str | None,
    timeout_s: float,
    retries: int,
    timing: Timing,
) -> Target:
    """Return the target; ValueError for what can not work, naming the argument."""
    if token is not None and api_key is not None:
        raise ValueError("token, api_key: give one of them, or neither")
    if retries < 0:
        raise ValueError("retries: is below 0")
    parsed = check_url(url)
    if isinstance(token, str):
        check_secret("token", token)
    if api_key is not None:
        api_key = check_secret("api_key", api_key)
    if token is not None or api_key is not None:
        warn_if_unencrypted(parsed)
    return Target(parsed, api_key, callable(token), check_timeout(timeout_s), retries, timing)


def check_options(options: Mapping[str, object]) -> None:
    """Raise ValueError for a transport beside what httpx would then pass over in silence."""
    passed_over = options.keys() & {"verify", "limits", "proxy"}
    if "transport" in options and passed_over:
        names = ", ".join(sorted(passed_over))
        raise ValueError(f"transport, {names}: a transport has its own; give them to it")


def direct(url: httpx.URL, options: Mapping[str, object]) -> dict[str, None]:
    """Return the mounts that keep a server on this machine from being asked through a proxy.

    A proxy of the environment is none of its callers' choice; one that is given is.
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
        raise ValueError("url: is no URL") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("url: does not begin with http:// or https:// and a host")
    # httpx would send them as Basic authentication, in the place of the token.
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ValueError("url: holds a user, a query or a fragment; give a token or an api_key")
    return parsed


def check_timeout(timeout_s: float) -> float:
    """Return it; ValueError unless it is a time span that ends."""
    if not (timeout_s > 0 and math.isfinite(timeout_s)):
        raise ValueError("timeout_s: is no positive, finite number of seconds")
    return timeout_s


def check_secret(name: str, value: str) -> str:
    """Return a token or key without white space around it, as files end in a line feed.

    ValueError if no header can hold it; never with the value.
    """
    stripped = value.strip()
    if not stripped or not stripped.isascii() or not stripped.isprintable() or " " in stripped:
        raise ValueError(f"{name}: is empty, or holds characters that no token has")
    return stripped


def warn_if_unencrypted(url: httpx.URL) -> None:
    """Warn of a secret that would go to another machine over plain HTTP.

    No more than a warning: inside a cluster, a mesh or a tunnel may encrypt beneath it, which can
    not be seen from here.
    """
    if url.scheme == "http" and not _is_loopback(url.host):
        message = f"A token or API key would go to {url.host} unencrypted; use https://."
        warnings.warn(message, UnencryptedWarning, stacklevel=4)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
