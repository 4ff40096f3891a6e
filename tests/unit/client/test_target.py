import re
import ssl
import warnings
from typing import Any

import httpx
import pytest

from kaiten_client import Client, UnencryptedWarning

HTTPS = "https://kaiten.example"


@pytest.mark.parametrize(
    ("url", "options", "named"),
    [
        ("kaiten.example", {}, "url"),
        ("ftp://kaiten.example", {}, "url"),
        ("https://", {}, "url"),
        ("https://kaiten.example:port", {}, "url"),
        ("https://user:canary@kaiten.example", {}, "url"),
        ("https://kaiten.example?key=canary", {}, "url"),
        (HTTPS, {"token": "canary", "api_key": "canary"}, "token, api_key"),
        (HTTPS, {"token": ""}, "token"),
        (HTTPS, {"token": "canary\r\nX-Evil: 1"}, "token"),
        (HTTPS, {"token": "Bearer canary"}, "token"),
        (HTTPS, {"api_key": "canäry"}, "api_key"),
        (HTTPS, {"timeout_s": 0}, "timeout_s"),
        (HTTPS, {"timeout_s": float("inf")}, "timeout_s"),
        (HTTPS, {"timeout_s": float("nan")}, "timeout_s"),
        (HTTPS, {"retries": -1}, "retries"),
        (
            HTTPS,
            {"transport": httpx.MockTransport(lambda _: httpx.Response(200)), "verify": True},
            "transport, verify",
        ),
    ],
)
def test_invalid_argument_is_named(url: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: ") as raised:
        Client(url, **options)
    assert not re.search("can.ry", str(raised.value))


@pytest.mark.parametrize("options", [{"token": "a"}, {"token": lambda: "a"}, {"api_key": "a"}])
def test_a_secret_in_the_clear_to_another_machine_is_warned_of(options: dict[str, Any]) -> None:
    with pytest.warns(UnencryptedWarning, match=r"kaiten\.example") as caught:
        Client("http://kaiten.example", **options).close()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://kaiten.example", {}),
        (HTTPS, {"token": "a"}),
        ("http://localhost:3000", {"token": "a"}),
        ("http://127.0.0.1:3000", {"token": "a"}),
        ("http://[::1]:3000", {"token": "a"}),
    ],
)
def test_nothing_else_is_warned_of(url: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Client(url, **options).close()


def test_httpx_takes_certificates_limits_and_a_proxy() -> None:
    Client(
        HTTPS,
        verify=ssl.create_default_context(),
        limits=httpx.Limits(max_connections=2),
        proxy="http://proxy.example:3128",
        trust_env=False,
    ).close()
