"""How this machine's own callers reach the server that `kaiten serve` starts."""

import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from urllib.request import getproxies

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.models import TlsSettings
from kaiten.tls import server_context

HOST = "127.0.0.1"
# Each end speaks twice at most.
_FLIGHTS = 2


@dataclass(frozen=True, slots=True)
class Reach:
    """Its port, its certificate, and the certificate and key that it asks its callers for."""

    port: int
    certificate: Path | None = None
    client: tuple[Path, Path] | None = None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self.certificate else 'http'}://{HOST}:{self.port}"

    @property
    def context(self) -> ssl.SSLContext:
        """How to speak TLS with it, and see that it has this very certificate, for any name."""
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False
        # The certificate itself is the anchor, and not the authority that made it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if self.client is not None:
            context.load_cert_chain(*self.client)
        return context

    def curl(self, path: str, names: tuple[str, ...]) -> str:
        """Return the start of a curl line; ``names`` are those in the server's certificate."""
        # curl would ask the proxy for this machine as well.
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


def reach(settings: TlsSettings, port: int, certificate: Path | None, key: Path | None) -> Reach:
    """Return how to reach the server; InvalidSettings where it would not let this caller in."""
    server = server_context(settings)
    client = (certificate, key) if certificate and key else None
    if server is None or settings.client_ca is None:
        return Reach(port, settings.certificate)
    if client is None:
        reason = (
            "asks every caller for a certificate, and so the one who asks whether the server is "
            "ready; give --client-certificate and --client-key"
        )
        raise InvalidSettings([Detail("tls.client_ca", reason)], "TLS")
    found = Reach(port, settings.certificate, client)
    try:
        _rehearse(server, found.context)
    except OSError as error:
        reason = f"would not be let in: {error}; give a certificate that tls.client_ca's has signed"
        raise InvalidSettings([Detail("--client-certificate", reason)], "TLS") from None
    return found


def _rehearse(server: ssl.SSLContext, caller: ssl.SSLContext) -> None:
    """Raise SSLError if the two would not come together; done in memory, before anything starts.

    A caller whom the real server refuses is only cut off, and could not tell that from a start.
    """
    to_server, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        caller.wrap_bio(to_caller, to_server),
        server.wrap_bio(to_server, to_caller, server_side=True),
    )
    for end in ends * _FLIGHTS:
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()


def names_in(certificate: dict[str, object]) -> tuple[str, ...]:
    """Return the names that a certificate, as ssl's getpeercert gives it, is for."""
    names = certificate.get("subjectAltName", ())
    return tuple(str(name) for _, name in names) if isinstance(names, tuple) else ()
