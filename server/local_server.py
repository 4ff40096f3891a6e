"""Starts the server on this machine, waits until it is ready, and says how to call it."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import Self
from urllib.request import getproxies

import httpx

from kaiten.addresses import proxy_bypass
from kaiten.errors import Detail, InvalidSettings, SetupError
from kaiten.installation import require_unix
from kaiten.settings.environment import (
    ROOT,
    configuration_file,
    environment_for,
    secrets_folder,
    settings_file,
)
from kaiten.settings.handover import remove_settings_variables
from kaiten.settings.models import TlsSettings
from kaiten.settings.settings_yaml import check_bentoml_configuration
from kaiten.tls import server_context
from monitors.logging import writer

HOST = "127.0.0.1"
_POLL_S = 0.2
# The last lines come with the server's end, but a worker that is left may hold the log open.
_LAST_LINES_S = 2
# In a TLS handshake each end sends at most twice.
_FLIGHTS = 2


@dataclass(frozen=True, slots=True)
class LocalEndpoint:
    """The server's port and certificate, and the client's certificate and key, if it asks for them.

    ``certificate`` is None without TLS.
    """

    port: int
    certificate: Path | None = None
    client: tuple[Path, Path] | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self.certificate else 'http'}://{HOST}:{self.port}"

    @property
    def context(self) -> ssl.SSLContext:
        """A TLS context that accepts this very certificate, under any host name."""
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False
        # The certificate itself is the trust anchor, and not the authority that issued it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.client is not None:
            context.load_cert_chain(*self.client)
        return context

    def curl(self, path: str, names: tuple[str, ...]) -> str:
        """Return the start of a curl command; ``names`` are those in the server's certificate."""
        # curl would use the proxy for this machine as well.
        direct = ["--noproxy", "*"] if getproxies().keys() - {"no"} else []
        if self.certificate is None:
            return join(["curl", "-s", *direct, f"{self.url}{path}"])
        options = [*direct, "--cacert", str(self.certificate)]
        if self.client is not None:
            options += ["--cert", str(self.client[0]), "--key", str(self.client[1])]
        host = HOST if HOST in names or not names else names[0].replace("*", "any", 1)
        if host != HOST:
            options += ["--connect-to", f"{host}:{self.port}:{HOST}:{self.port}"]
        return join(["curl", "-s", *options, f"https://{host}:{self.port}{path}"])


def local_endpoint(
    settings: TlsSettings, port: int, certificate: Path | None, key: Path | None
) -> LocalEndpoint:
    """Return how to reach the server with this client certificate and key.

    Raises:
        InvalidSettings: The server would refuse this client.

    """
    server = server_context(settings)
    client = (certificate, key) if certificate and key else None
    if server is None or settings.client_ca is None:
        return LocalEndpoint(port, settings.certificate)
    if client is None:
        reason = (
            "makes the server ask every client for a certificate, also the one that checks whether "
            "the server is ready; pass --client-certificate and --client-key"
        )
        raise InvalidSettings([Detail("tls.client_ca", reason)], "TLS")
    endpoint = LocalEndpoint(port, settings.certificate, client)
    try:
        _rehearse_handshake(server, endpoint.context)
    except OSError as error:
        reason = f"would be refused: {error}; use a certificate that tls.client_ca has signed"
        raise InvalidSettings([Detail("--client-certificate", reason)], "TLS") from None
    return endpoint


def _rehearse_handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Raise SSLError if the two would not agree; done in memory, before anything starts.

    The real server closes the connection of a client that it refuses, which looks like a server
    that has not started yet.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for end in ends * _FLIGHTS:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


def certificate_names(certificate: dict[str, object]) -> tuple[str, ...]:
    """Return the names that a certificate, as ssl's getpeercert returns it, is valid for."""
    names = certificate.get("subjectAltName", ())
    return tuple(str(name) for _, name in names) if isinstance(names, tuple) else ()


class LocalServer:
    """The server as a child process; leaving the ``with`` block terminates it.

    ``handle_line`` is called with each line that the server writes, on a thread. Without it, the
    server writes to this process's own streams.
    """

    def __init__(
        self,
        endpoint: LocalEndpoint,
        model: str | None,
        handle_line: Callable[[str], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._model = model
        self._handle_line = handle_line
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        """Start the process.

        Raises:
            SetupError: The port is in use, the BentoML configuration cannot be used, or this is
                Windows.

        """
        require_unix("serve")
        check_bentoml_configuration()
        port = self.endpoint.port
        _check_port(port)
        command = [sys.executable, "-m", "bentoml", "serve", str(ROOT), "--host", HOST]
        piped = self._handle_line is not None
        self._process = subprocess.Popen(  # noqa: S603  our own command
            [*command, "--port", str(port)],
            env=environment_for(_server_variables(self._model)),
            stdout=subprocess.PIPE if piped else None,
            stderr=subprocess.STDOUT if piped else None,
            encoding="utf-8",
            errors="backslashreplace",
        )
        if piped:
            self._reader.start()
        # The server has the secrets now; this process lives as long, and needs none.
        remove_settings_variables()
        # A console that is not read must not keep a signal from the server.
        writer.detach_console()
        # Ctrl-C reaches the server as well; this process waits while it drains.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: self._process.terminate())
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()

    def wait_until_ready(self) -> tuple[str, ...] | None:
        """Return the names in the server's certificate once it is ready, None if it has ended.

        A large model may take long.
        """
        endpoint = self.endpoint
        verify = endpoint.context if endpoint.certificate else True
        mounts = proxy_bypass(endpoint.url)
        client = httpx.Client(base_url=endpoint.url, verify=verify, timeout=1, mounts=mounts)
        with client:
            while self._process.poll() is None:
                with suppress(httpx.TransportError):
                    response = client.get("/readyz")
                    if response.is_success:
                        return _server_names(response)
                time.sleep(_POLL_S)
        return None

    def wait(self) -> int:
        """Wait for the server's end and return its exit code.

        Raises:
            SetupError: A signal has ended it.

        """
        code = self._process.wait()
        if self._reader.is_alive():
            self._reader.join(_LAST_LINES_S)
        if code < 0:
            raise SetupError(
                f"Signal {-code} has ended the server. A worker may still hold port "
                f"{self.endpoint.port}; see `ss -ltnp`."
            )
        return code

    def _read(self) -> None:
        if self._process.stdout is not None and self._handle_line is not None:
            with self._process.stdout as lines:
                for line in lines:
                    self._handle_line(line.rstrip("\n"))


def _server_variables(model: str | None) -> dict[str, str]:
    """Return the variables of the server's process.

    BentoML imports the service in its own working directory, where relative paths name nothing.
    """
    variables = {"BENTOML_CONFIG": configuration_file()}
    paths = {"KAITEN_CONFIG": settings_file(), "KAITEN_SECRETS": secrets_folder()}
    variables |= {name: str(path.absolute()) for name, path in paths.items() if path is not None}
    if model is not None:
        variables["KAITEN_SERVING__MODELS"] = model
    return variables


def _check_port(port: int) -> None:
    """Raise SetupError if the port is in use: another server's readiness would pass for ours."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise SetupError(
                f"Port {port} cannot be used: {error.strerror}. Stop the process that uses it, or "
                "choose another port: make serve PORT=3001, or kaiten serve --port 3001."
            ) from None


def _server_names(response: httpx.Response) -> tuple[str, ...]:
    tls = response.extensions["network_stream"].get_extra_info("ssl_object")
    return certificate_names(tls.getpeercert()) if tls else ()
