"""Pseudonyms of subjects for logs, and digests of subjects for keys in memory and in stores."""

import hashlib
import hmac

from kaiten.settings.models import LoggingSettings
from kaiten.settings.secrets import HEX, pseudonym_key_bytes

# A fixed label separates this key from other keys that are derived from the signing secret.
_KEY_LABEL = b"kaiten: pseudonyms of subjects"
_PSEUDONYM_CHARS = 16
_DIGEST_CHARS = 32


class Pseudonyms:
    """Pseudonyms by HMAC-SHA-256: without the key, a guessed subject cannot be confirmed."""

    def __init__(self, key: bytes) -> None:
        self.key = key

    def of(self, subject: str) -> str:
        """Return the subject's pseudonym, 16 hexadecimal digits."""
        return hmac.digest(self.key, _encode(subject), "sha256").hex()[:_PSEUDONYM_CHARS]


def subject_digest(subject: str) -> str:
    """Return 32 hexadecimal digits that identify a subject.

    There is no key, so unlike a pseudonym it must not appear in logs.
    """
    return hashlib.sha256(_encode(subject)).hexdigest()[:_DIGEST_CHARS]


def pseudonym_key(settings: LoggingSettings, secret: str | None) -> bytes | None:
    """Return the key of the pseudonyms: the configured one, else one from the signing secret.

    The ``secret`` is the oldest one, so that a rotation leaves the pseudonyms as they are. All
    workers and replicas derive the same key. None if there is neither.
    """
    if settings.pseudonym_key is not None:
        return pseudonym_key_bytes(settings.pseudonym_key.get_secret_value())
    return hmac.digest(secret.encode(), _KEY_LABEL, "sha256") if secret else None


def key_setting(key: bytes) -> str:
    """Return the value of logging.pseudonym_key that stands for a key."""
    return f"{HEX}{key.hex()}"


def _encode(subject: str) -> bytes:
    # An issuer chooses its subjects freely, and may send text that is not valid Unicode.
    return subject.encode("utf-8", "surrogatepass")
