"""TLS: what is served with, checked before a start, and how to ask a server that speaks it."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings
from kaiten.sections import Tls

# BentoML's own choice, "TLSv1", leaves TLS 1.2 with none but CBC and SHA-1. TLS 1.3 has its own.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def for_bentoml(settings: Tls) -> dict[str, object]:
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


def check(settings: Tls, in_force: Mapping[str, object]) -> None:
    """Raise InvalidSettings where TLS could not be served, or BentoML's settings say another thing.

    ``in_force`` is BentoML's ``ssl`` of our service.
    """
    asked = for_bentoml(settings)
    if {key: in_force.get(key) for key in asked} != asked:
        reason = "is not what tls says; leave it out, and set tls in Kaiten's own settings"
        raise InvalidSettings([Detail("services.kaiten_service.ssl", reason)], "BentoML's settings")
    if settings.certificate is None or settings.private_key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.private_key, _no_password)
    except (OSError, ValueError) as error:
        raise _unusable("certificate and tls.private_key", settings.certificate, error) from None
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise _unusable("client_ca", settings.client_ca, error) from None


def client_context(certificate: Path, client: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """Return how to ask the server that has this very certificate, under whatever name.

    ``client`` is the certificate and key to show, where the server asks for one.
    """
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    # The certificate itself is the anchor, and not the authority that made it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if client is not None:
        context.load_cert_chain(*client)
    return context


def _no_password() -> str:
    # BentoML would hand one on in its workers' command line, for everybody on the machine to read.
    raise ValueError("the key is encrypted, and no password can be given; decrypt it, mode 0600")


def _unusable(field: str, file: Path, error: OSError | ValueError) -> InvalidSettings:
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = f"can not be used ({file}): {told}; give PEM files that belong together"
    return InvalidSettings([Detail(f"tls.{field}", reason)], "TLS")
