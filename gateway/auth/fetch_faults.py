"""Says why an issuer's keys could not be fetched, and what an operator can do about it."""

import os
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple

# OpenSSL's codes of verification (openssl/x509_vfy.h).
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_AUTHORITY = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}
_OF_A_CONNECTION = (ConnectionError, TimeoutError, socket.gaierror, ssl.SSLCertVerificationError)


class FetchFault(NamedTuple):
    """Why keys could not be fetched, and the remedy, empty if none is known."""

    reason: str
    remedy: str = ""


def fetch_fault(error: BaseException) -> FetchFault:
    """Describe an error of a fetch, without anything that the issuer sent.

    httpx raises the same ConnectError for a refused connection, an unknown host and a certificate
    that is not trusted; the cause says which.
    """
    kind = type(error).__name__
    # httpx wraps the errors of a connection, but not those of reading the authorities before it.
    if isinstance(error, OSError) and not isinstance(error, _OF_A_CONNECTION):
        detail = error.reason if isinstance(error, ssl.SSLError) else os.strerror(error.errno or 0)
        reason = f"{kind}: certificate authorities cannot be read: {detail}"
        return FetchFault(reason, "check the file that SSL_CERT_FILE names")
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"{kind}: certificate verification failed: {cause.verify_message}"
            return FetchFault(reason, _certificate_remedy(cause.verify_code))
        if isinstance(cause, ssl.SSLError):
            remedy = "check the scheme and the port of jwks_url"
            return FetchFault(f"{kind}: TLS failed: {cause.reason or 'unknown'}", remedy)
        if isinstance(cause, socket.gaierror):
            remedy = "check the host of jwks_url, and this machine's name resolution"
            return FetchFault(f"{kind}: {cause.strerror}", remedy)
        if isinstance(cause, OSError) and cause.errno:
            # Its own text may have an address.
            return FetchFault(f"{kind}: {os.strerror(cause.errno)}")
    return FetchFault(str(error) if isinstance(error, ValueError) else kind)


def _certificate_remedy(code: int) -> str:
    if code in _UNKNOWN_AUTHORITY:
        return (
            "set SSL_CERT_FILE to a PEM file with the issuer's certificate authority, and with the "
            "public ones if another issuer needs them, and restart"
        )
    if code in _OTHER_NAME:
        return "write the host in jwks_url as the issuer's certificate names it"
    if code in {_NOT_YET_VALID, _EXPIRED}:
        return "ask the issuer's owner to renew its certificate, and check this machine's clock"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and all errors that it was raised from."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _causes(member)
    cause = error.__cause__ or error.__context__
    if cause is not None:
        yield from _causes(cause)
