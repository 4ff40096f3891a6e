import httpx
import pytest

from kaiten.addresses import is_loopback, proxy_bypass

PROXY = "http://192.0.2.1:3128"
HERE = [
    "127.0.0.1", "127.8.8.8", "localhost", "a.localhost", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0",
]  # fmt: skip
ELSEWHERE = ["kaiten.example", "10.0.0.1", "localhost.example", "[2001:db8::1]", "127.example"]


def by_proxy(url: str) -> bool:
    """Return whether httpx would ask for a URL through a proxy."""
    with httpx.Client(mounts=proxy_bypass(url)) as client:
        pool = client._transport_for_url(httpx.URL(url))._pool  # type: ignore[attr-defined]
    return "Proxy" in type(pool).__name__


@pytest.fixture(autouse=True)
def _proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, PROXY)
        monkeypatch.setenv(name.lower(), PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_asked_without_a_proxy(scheme: str, host: str) -> None:
    assert is_loopback(host.strip("[]"))
    assert not by_proxy(f"{scheme}://{host}:3000/livez")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("host", ELSEWHERE)
def test_others_are_asked_as_the_environment_says(scheme: str, host: str) -> None:
    assert not is_loopback(host.strip("[]"))
    assert by_proxy(f"{scheme}://{host}:3000/livez")
