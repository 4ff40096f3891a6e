"""The real server over TLS that asks its callers for a certificate, and its log in files."""

import json
import re
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.certificates import Authority
from tests.servers import BIN, Server, environment, free_port, running

HOST = "kaiten.example"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@dataclass(frozen=True)
class Mutual:
    """A ready server, and what it takes to call it."""

    server: Server
    port: int
    authority: Path
    client: tuple[Path, Path]
    stranger: tuple[Path, Path]
    folder: Path

    def ask(
        self,
        path: str,
        client: tuple[Path, Path] | None = None,
        headers: dict[str, str] | None = None,
        version: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED,
    ) -> httpx.Response:
        """Ask as a remote caller that knows the server's authority and its name."""
        context = ssl.create_default_context(cafile=self.authority)
        context.maximum_version = version
        if client:
            context.load_cert_chain(*client)
        extensions = {"sni_hostname": HOST}
        with httpx.Client(verify=context) as http:
            url = f"https://127.0.0.1:{self.port}{path}"
            return http.get(url, headers=headers, extensions=extensions)


@pytest.fixture(scope="module")
def mutual(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mutual]:
    folder = tmp_path_factory.mktemp("tls")
    servers, clients, strangers = (
        Authority(folder, name) for name in ("servers", "clients", "others")
    )
    certificate, key = servers.issue("server", HOST)
    client, stranger = clients.issue("client"), strangers.issue("stranger")
    env = environment(
        bentoml_home,
        folder / "home",
        KAITEN_TLS__CERTIFICATE=str(certificate),
        KAITEN_TLS__PRIVATE_KEY=str(key),
        KAITEN_TLS__CLIENT_CA=str(clients.file),
        KAITEN_GATEWAY__DOCS="closed",
        KAITEN_GATEWAY__METRICS="token",
        KAITEN_LOGGING__FOLDER=str(folder / "logs"),
    )
    client_options = ["--client-certificate", str(client[0]), "--client-key", str(client[1])]
    command = [str(BIN / "kaiten"), "serve", "--port", str(port := free_port()), *client_options]
    with running(command, env) as process:
        process.wait_for(r"^Ready\.")
        server = Server(f"https://127.0.0.1:{port}", process, env)
        yield Mutual(server, port, servers.file, client, stranger, folder)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_with_a_certificate_is_answered(mutual: Mutual, version: ssl.TLSVersion) -> None:
    answer = mutual.ask("/readyz", mutual.client, version=version)
    assert answer.status_code == 200
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert "Server" not in answer.headers


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_caller_without_a_certificate_of_the_authority_is_not(
    mutual: Mutual, version: ssl.TLSVersion
) -> None:
    for client in (None, mutual.stranger):
        with pytest.raises(httpx.TransportError):
            mutual.ask("/readyz", client, version=version)
    assert mutual.ask("/readyz", mutual.client, version=version).status_code == 200


def test_plain_http_is_not_answered(mutual: Mutual) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{mutual.port}/readyz")


@pytest.mark.parametrize(
    ("cipher", "spoken"),
    [("ECDHE-ECDSA-AES256-SHA", False), ("ECDHE-ECDSA-AES128-GCM-SHA256", True)],
)
def test_only_ciphers_that_authenticate_are_spoken(
    mutual: Mutual, cipher: str, *, spoken: bool
) -> None:
    context = ssl.create_default_context(cafile=mutual.authority)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    context.load_cert_chain(*mutual.client)
    with httpx.Client(verify=context) as http:
        url, extensions = f"https://127.0.0.1:{mutual.port}/readyz", {"sni_hostname": HOST}
        if spoken:
            assert http.get(url, extensions=extensions).status_code == 200
            return
        with pytest.raises(httpx.TransportError):
            http.get(url, extensions=extensions)


def test_the_printed_curl_line_works(mutual: Mutual) -> None:
    line = next(line for line in mutual.server.process.lines if line.startswith("curl "))
    done = subprocess.run(["bash", "-c", line], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["label"] == "order_status"


def test_docs_are_closed_and_metrics_ask_for_a_token(mutual: Mutual) -> None:
    docs = {mutual.ask(path, mutual.client).status_code for path in ("/", "/docs", "/docs.json")}
    assert docs == {404}
    assert mutual.ask("/metrics", mutual.client).status_code == 401
    token = mutual.server.token("prometheus", "ops")
    answer = mutual.ask("/metrics", mutual.client, {"Authorization": f"Bearer {token}"})
    assert "model_requests_total" in answer.text


def test_the_log_names_the_address_with_its_scheme(mutual: Mutual) -> None:
    (line,) = mutual.server.process.wait_for('"event": "listening"')
    assert json.loads(line)["address"] == mutual.server.url


def test_the_worker_has_a_log_of_requests_and_one_of_security_events(mutual: Mutual) -> None:
    token = mutual.server.token("mallory", "feedback")
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "X-Request-ID": "find-me"}
    mutual.ask("/metrics", mutual.client, {**headers, "Authorization": f"Bearer {token}"})
    mutual.server.process.wait_for('"find-me".*"forbidden"|"forbidden".*"find-me"')
    files: dict[str, str] = {}
    # A thread writes each file, soon after the console: each probe gives it time.
    for _ in range(100):
        folder = mutual.folder / "logs"
        files = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
        if sum("find-me" in content for content in files.values()) == 2:
            break
        mutual.ask("/livez", mutual.client)
    assert set(files) == {"requests-1.log", "security-1.log"}
    lines = [json.loads(line) for line in files["security-1.log"].splitlines()]
    (line,) = [entry for entry in lines if entry["request_id"] == "find-me"]
    assert (line["event"], line["fault"], line["route"]) == (
        "forbidden",
        "lacks ops",
        "/metrics",
    )
    assert re.fullmatch("[0-9a-f]{16}", line["subject"])
    assert (line["trace_id"], line["client"]) == (TRACE, "127.0.0.0/24")
    assert "mallory" not in str(files)
    assert token not in str(files)
