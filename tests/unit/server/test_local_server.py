from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.models import TlsSettings
from server.local_server import LocalEndpoint, certificate_names, local_endpoint
from tests.certificates import Authority

CERTIFICATE = Path("/etc/server.crt")
TO = f"curl -s --cacert {CERTIFICATE}"


def test_without_tls_the_line_is_as_short_as_can_be() -> None:
    endpoint = local_endpoint(TlsSettings(), 3000, None, None)
    assert endpoint.certificate is None
    assert endpoint.curl("/x", ()) == "curl -s http://127.0.0.1:3000/x"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_the_line_passes_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:3128")
    line = "curl -s --noproxy '*' http://127.0.0.1:3000/x"
    assert local_endpoint(TlsSettings(), 3000, None, None).curl("/x", ()) == line


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("127.0.0.1", "a"), f"{TO} https://127.0.0.1:3000/x"),
        (
            ("api.example",),
            f"{TO} --connect-to api.example:3000:127.0.0.1:3000 https://api.example:3000/x",
        ),
        (
            ("*.example",),
            f"{TO} --connect-to any.example:3000:127.0.0.1:3000 https://any.example:3000/x",
        ),
    ],
)
def test_with_tls_the_line_verifies_the_server_by_its_name(
    names: tuple[str, ...], line: str
) -> None:
    assert LocalEndpoint(3000, CERTIFICATE).curl("/x", names) == line


def test_a_callers_certificate_is_in_the_line() -> None:
    line = LocalEndpoint(3000, CERTIFICATE, (Path("my.crt"), Path("my key"))).curl(
        "/x", ("127.0.0.1",)
    )
    assert "--cert my.crt --key 'my key' https://127.0.0.1:3000/x" in line


@pytest.fixture
def mutual_tls(tmp_path: Path) -> TlsSettings:
    certificate, key = Authority(tmp_path, "servers").issue("server", "kaiten.example")
    clients = Authority(tmp_path, "clients")
    return TlsSettings(certificate=certificate, private_key=key, client_ca=clients.file)


@pytest.mark.parametrize("client", [(None, None), (Path("a.crt"), None), (None, Path("a.key"))])
def test_a_certificate_that_the_server_asks_for_must_be_given(
    mutual_tls: TlsSettings, client: tuple[Path | None, Path | None]
) -> None:
    with pytest.raises(InvalidSettings, match="pass --client-certificate and --client-key"):
        local_endpoint(mutual_tls, 3000, *client)


def test_a_certificate_that_the_server_takes_is_shown(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server", "kaiten.example")
    settings = TlsSettings(certificate=certificate, private_key=key, client_ca=authority.file)
    client = authority.issue("client")
    assert local_endpoint(settings, 3000, *client).client == client


def test_a_certificate_that_the_server_would_refuse_is_refused_before_a_start(
    mutual_tls: TlsSettings, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "others").issue("stranger")
    with pytest.raises(InvalidSettings, match=r"would be refused.*unable to get local issuer"):
        local_endpoint(mutual_tls, 3000, *stranger)


def test_a_certificate_that_is_not_there_is_refused(mutual_tls: TlsSettings) -> None:
    with pytest.raises(InvalidSettings, match=r"would be refused.*No such file"):
        local_endpoint(mutual_tls, 3000, Path("nowhere.crt"), Path("nowhere.key"))


def test_names_are_those_of_the_certificate() -> None:
    certificate = {"subjectAltName": (("DNS", "a.example"), ("IP Address", "127.0.0.1"))}
    assert certificate_names({**certificate}) == ("a.example", "127.0.0.1")
    assert certificate_names({}) == ()
