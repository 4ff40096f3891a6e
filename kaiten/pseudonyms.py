"""What stands for callers in logs: pseudonyms of subjects, and networks of addresses."""

import hashlib
import hmac
import ipaddress
from functools import lru_cache

from kaiten.settings.models import LoggingSettings

# Fixed, so that the key says nothing of the secret that it comes from, nor of other keys from it.
_LABEL = b"kaiten: pseudonyms of subjects"
_DIGITS = 16
_DIGEST_CHARS = 32
# The networks that an address is cut to where it may not be kept whole, by the address's version.
_NETWORK_BITS = {4: 24, 6: 48}


class Pseudonyms:
    """Names identities by HMAC-SHA-256 under a key; who lacks the key can not try names out."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, identity: str) -> str:
        """Return the identity's pseudonym, 16 hexadecimal digits."""
        return hmac.digest(self._key, _encoded(identity), "sha256").hex()[:_DIGITS]


def digest_of(identity: str) -> str:
    """Return 32 hexadecimal digits that stand for an identity where it only has to be told apart.

    There is no key: unlike a pseudonym, it is not for logs.
    """
    return hashlib.sha256(_encoded(identity)).hexdigest()[:_DIGEST_CHARS]


def _encoded(identity: str) -> bytes:
    # A subject is whatever its token's issuer wrote, even if that is not Unicode.
    return identity.encode("utf-8", "surrogatepass")


def shared_key(settings: LoggingSettings, secret: str | None) -> bytes | None:
    """Return the key that all workers and replicas come to, at each start.

    It is the one that is set, else one from the signing secret; None where there is neither.
    """
    if settings.pseudonym_key is not None:
        return settings.pseudonym_key.get_secret_value().encode()
    return hmac.digest(secret.encode(), _LABEL, "sha256") if secret else None


@lru_cache(maxsize=1024)
def address_of(client: str) -> str | None:
    """Return a caller's address in one form; None for a socket's path or what a proxy made up."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)


@lru_cache(maxsize=1024)
def network_of(client: str) -> str | None:
    """Return the network of a caller's address, /24 or /48; None as ``address_of``."""
    plain = address_of(client)
    if plain is None:
        return None
    address = ipaddress.ip_address(plain)
    return str(ipaddress.ip_network((plain, _NETWORK_BITS[address.version]), strict=False))
