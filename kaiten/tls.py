"""TLS: what is served with, checked before a start."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.models import TlsSettings

# BentoML's own choice, "TLSv1", leaves TLS 1.2 with none but CBC and SHA-1. TLS 1.3 has its own.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# BentoML serves TLS by a certificate, also where it is not enabled.
_WITHOUT: Mapping[str, object] = {"certfile": None, "cert_reqs": int(ssl.CERT_NONE)}


def for_bentoml(settings: TlsSettings) -> dict[str, object]:
    """Return BentoML's ``ssl`` settings for a service; ``enabled`` False without a certificate."""
    if settings.certificate is None or settings.private_key is None:
        return {"enabled": False}
    served: dict[str, object] = {
        "enabled": True,
        "certfile": str(settings.certificate.absolute()),
        "keyfile": str(settings.private_key.absolute()),
        "version": int(ssl.PROTOCOL_TLS_SERVER),
        "ciphers": _CIPHERS,
    }
    if settings.client_ca is not None:
        served["ca_certs"] = str(settings.client_ca.absolute())
        served["cert_reqs"] = int(ssl.CERT_REQUIRED)
    return served


def check(settings: TlsSettings, in_force: Mapping[str, object] | None) -> None:
    """Raise InvalidSettings where TLS could not be served, or BentoML's settings say another thing.

    ``in_force`` is BentoML's ``ssl`` of our service; None where it says nothing of its own.
    """
    asked = {**_WITHOUT, **for_bentoml(settings)}
    if in_force is not None and {key: in_force.get(key) for key in asked} != asked:
        reason = "is not what tls says; leave it out, and set tls in Kaiten's own settings"
        raise InvalidSettings([Detail("services.kaiten_service.ssl", reason)], "BentoML's settings")
    server_context(settings)


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """Return what a server of these settings speaks TLS with; None where it speaks none.

    InvalidSettings names what can not be used.
    """
    if settings.certificate is None or settings.private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.private_key, _no_password)
    except (OSError, ValueError) as error:
        raise _unusable("certificate", settings.certificate, error) from None
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise _unusable("client_ca", settings.client_ca, error) from None
    return context


def _no_password() -> str:
    # BentoML would hand one on in its workers' command line, for everybody on the machine to read.
    raise ValueError("the key is encrypted, and no password can be given; decrypt it")


def _unusable(field: str, file: Path, error: OSError | ValueError) -> InvalidSettings:
    # OpenSSL's own faults have no number that the system knows.
    openssl = isinstance(error, ssl.SSLError)
    told = error.strerror if isinstance(error, OSError) and not openssl else str(error)
    remedy = "certificates in PEM" if field == "client_ca" else "a certificate and its key, in PEM"
    reason = f"can not be used ({file}): {told}; give {remedy}"
    return InvalidSettings([Detail(f"tls.{field}", reason)], "TLS")
