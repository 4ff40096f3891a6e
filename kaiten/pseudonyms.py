"""Pseudonyms of subjects, for logs: the same caller is the same word, and nobody's name."""

import hmac

from kaiten.sections import Logging

# Fixed, so that the key says nothing of the secret that it comes from, nor of other keys from it.
_LABEL = b"kaiten: pseudonyms of subjects"
_DIGITS = 16


class Pseudonyms:
    """Names identities by HMAC-SHA-256 under a key; who lacks the key can not try names out."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, identity: str) -> str:
        """Return the identity's pseudonym, 16 hexadecimal digits."""
        # A subject is whatever its token's maker wrote, even what is no Unicode.
        named = identity.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, named, "sha256").hex()[:_DIGITS]


def shared_key(settings: Logging, secret: str | None) -> bytes | None:
    """Return the key that all workers and replicas come to, at each start.

    It is the one that is set, else one from the signing secret; None where there is neither.
    """
    if settings.pseudonym_key is not None:
        return settings.pseudonym_key.get_secret_value().encode()
    return hmac.digest(secret.encode(), _LABEL, "sha256") if secret else None
