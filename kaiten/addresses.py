"""IP addresses: in one form, by their network, and loopback, which needs no proxy."""

import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

# The prefix length, by IP version, of the network that replaces an address in logs.
_NETWORK_BITS = {4: 24, 6: 48}


@lru_cache(maxsize=1024)
def canonical_address(client: str) -> str | None:
    """Return an IP address in one form, or None for any other text, such as a socket's path."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


@lru_cache(maxsize=1024)
def network_of(client: str) -> str | None:
    """Return the network of an IP address, /24 or /48, or None for any other text."""
    canonical = canonical_address(client)
    if canonical is None:
        return None
    address = ipaddress.ip_address(canonical)
    return str(ipaddress.ip_network((canonical, _NETWORK_BITS[address.version]), strict=False))


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
