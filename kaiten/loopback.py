"""Addresses of this machine, which no proxy has to do with."""

import ipaddress
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether a host, by name or address, is this machine itself."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    # Linux takes an unspecified address to connect to for the loopback one.
    return (mapped or address).is_loopback or address.is_unspecified


def direct(url: str) -> dict[str, None]:
    """Return httpx's ``mounts`` by which a URL of this machine is asked without a proxy.

    httpx asks 127.0.0.1 too by the proxy that HTTP_PROXY names, unless NO_PROXY excludes it. Other
    hosts are asked as the environment says.
    """
    host = urlsplit(url).hostname or ""
    if not is_loopback(host):
        return {}
    return {f"all://[{host}]" if ":" in host else f"all://{host}": None}
