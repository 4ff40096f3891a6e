"""Why an issuer's keys cannot be fetched, by the errors of real connections."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from gateway.auth.factory import fetch_jwks
from gateway.auth.fetch_faults import FetchFault, fetch_fault
from tests.certificates import Authority
from tests.servers import free_port


class Handler(BaseHTTPRequestHandler):
    """Answers every request with 501."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def https_server(certificate: Path, key: Path) -> Iterator[str]:
    """Run a server with a certificate, and yield its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}/"
        server.shutdown()


async def fault_of(url: str) -> FetchFault:
    with pytest.raises(httpx.ConnectError) as caught:
        await fetch_jwks(url)
    return fetch_fault(caught.value)


async def test_a_private_authority_is_the_cause_and_can_be_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    authority = Authority(tmp_path, "company")
    with https_server(*authority.issue("login", "127.0.0.1")) as url:
        fault = await fault_of(url)
        assert fault.reason.startswith("ConnectError: certificate verification failed: ")
        assert fault.remedy.startswith("set SSL_CERT_FILE to a PEM file with the issuer's")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        with pytest.raises(ValueError, match="status 501"):
            await fetch_jwks(url)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file or directory"), ("no certificate", "NO_CERTIFICATE_OR_CRL_FOUND")],
)
async def test_a_file_without_authorities_is_the_cause(
    content: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "authorities.pem"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(OSError) as caught:  # noqa: PT011  any error of the file
        await fetch_jwks("https://127.0.0.1:1/")
    fault = fetch_fault(caught.value)
    assert fault.reason.endswith(f": certificate authorities cannot be read: {reason}")
    assert fault.remedy == "check the file that SSL_CERT_FILE names"


async def test_a_certificate_for_another_name_is_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, "company")
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with https_server(*authority.issue("login", "login.example")) as url:
        fault = await fault_of(url)
    assert "mismatch" in fault.reason
    assert fault.remedy == "write the host in jwks_url as the issuer's certificate names it"


async def test_a_port_without_tls_is_the_cause() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
        fault = await fault_of(f"https://127.0.0.1:{server.server_port}/")
        server.shutdown()
    assert fault.reason.startswith("ConnectError: TLS failed: ")
    assert fault.remedy == "check the scheme and the port of jwks_url"


async def test_a_refused_connection_is_the_cause() -> None:
    fault = await fault_of(f"http://127.0.0.1:{free_port()}/")
    assert fault == FetchFault("ConnectError: Connection refused")


def raised(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def expired() -> Exception:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = 10, "certificate has expired"
    return error


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (
            raised(httpx.ConnectError("x"), socket.gaierror(-2, "Name or service not known")),
            "ConnectError: Name or service not known",
            "check the host of jwks_url, and this machine's name resolution",
        ),
        (
            raised(httpx.ConnectError("x"), ExceptionGroup("y", [OSError(), expired()])),
            "ConnectError: certificate verification failed: certificate has expired",
            "ask the issuer's owner to renew its certificate, and check this machine's clock",
        ),
        (httpx.ReadTimeout("x"), "ReadTimeout", ""),
        (TimeoutError(), "TimeoutError", ""),
        (ValueError("status 404"), "status 404", ""),
        # The text of other errors may quote the issuer.
        (httpx.RemoteProtocolError("illegal status line"), "RemoteProtocolError", ""),
    ],
)
def test_the_first_cause_that_is_known_is_reported(
    error: Exception, reason: str, remedy: str
) -> None:
    assert fetch_fault(error) == FetchFault(reason, remedy)
