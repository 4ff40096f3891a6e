"""TLS of the server: BentoML's options, and the checks before a start."""

import ssl
from collections.abc import Mapping
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.models import TlsSettings

# BentoML's default, "TLSv1", leaves TLS 1.2 with CBC and SHA-1 only. TLS 1.3 has its own ciphers.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# If there is a certificate, BentoML serves TLS even if it is not enabled.
_DISABLED: Mapping[str, object] = {"certfile": None, "cert_reqs": int(ssl.CERT_NONE)}


def bentoml_ssl(settings: TlsSettings) -> dict[str, object]:
    """Return BentoML's ``ssl`` options for a service; without a certificate it is disabled."""
    if settings.certificate is None or settings.private_key is None:
        return {"enabled": False}
    options: dict[str, object] = {
        "enabled": True,
        "certfile": str(settings.certificate.absolute()),
        "keyfile": str(settings.private_key.absolute()),
        "version": int(ssl.PROTOCOL_TLS_SERVER),
        "ciphers": _CIPHERS,
    }
    if settings.client_ca is not None:
        options["ca_certs"] = str(settings.client_ca.absolute())
        options["cert_reqs"] = int(ssl.CERT_REQUIRED)
    return options


def check_tls(settings: TlsSettings, bentoml_options: Mapping[str, object] | None) -> None:
    """Check that the server can serve TLS as the settings say.

    ``bentoml_options`` are BentoML's effective ``ssl`` options of the service, None if unset.

    Raises:
        InvalidSettings: A file is not usable, or BentoML's options differ from the settings.

    """
    expected = {**_DISABLED, **bentoml_ssl(settings)}
    if bentoml_options is not None:
        actual = {key: bentoml_options.get(key) for key in expected}
        if actual != expected:
            reason = "differs from tls in Kaiten's settings; remove it, and set tls instead"
            problem = Detail("services.kaiten_service.ssl", reason)
            raise InvalidSettings([problem], "BentoML's settings")
    server_context(settings)


def server_context(settings: TlsSettings) -> ssl.SSLContext | None:
    """Return the TLS context of a server with these settings, None if it speaks plain HTTP.

    Raises:
        InvalidSettings: A file is not usable.

    """
    if settings.certificate is None or settings.private_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(settings.certificate, settings.private_key, _reject_password)
    except (OSError, ValueError) as error:
        raise _unusable("certificate", settings.certificate, error) from None
    if settings.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(settings.client_ca)
        except OSError as error:
            raise _unusable("client_ca", settings.client_ca, error) from None
    return context


def _reject_password() -> str:
    # BentoML would pass a password in its workers' command line, which every user can read.
    raise ValueError("the key is encrypted, and no password can be given; decrypt it")


def _unusable(field: str, file: Path, error: OSError | ValueError) -> InvalidSettings:
    # OpenSSL's own errors have no strerror from the system.
    is_system_error = isinstance(error, OSError) and not isinstance(error, ssl.SSLError)
    cause = error.strerror if isinstance(error, OSError) and is_system_error else str(error)
    remedy = "certificates in PEM" if field == "client_ca" else "a certificate and its key, in PEM"
    reason = f"{file} cannot be used: {cause}; give {remedy}"
    return InvalidSettings([Detail(f"tls.{field}", reason)], "TLS")
