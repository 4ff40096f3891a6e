"""Loopback addresses, which HTTP clients of this project reach without a proxy."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    # Linux connects to loopback for an unspecified address (0.0.0.0, ::).
    return (mapped or address).is_loopback or address.is_unspecified


def proxy_bypass(url: str) -> dict[str, None]:
    """Return httpx ``mounts`` that bypass the proxy for a loopback URL, none for other URLs.

    Without them httpx sends requests for 127.0.0.1 to the proxy of HTTP_PROXY, unless NO_PROXY
    excludes it.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        return {}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None}
