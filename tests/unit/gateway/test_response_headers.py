import hashlib
import re
from base64 import b64encode
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse

from kaiten.settings.models import TlsSettings
from tests.unit.gateway.house import (
    BENTO,
    GOOD,
    PREDICTIONS,
    V1,
    Classifier,
    House,
    Raising,
    bearer,
    paths_of,
)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
BROWSER = {"Origin": "https://elsewhere.example"}
PATHS = {path for path in paths_of(House().services.routes) if "{" not in path}


@pytest.mark.parametrize(
    ("house", "headers", "status"),
    [
        (House(), {}, 200),
        (House(), {"Authorization": "Bearer x"}, 401),
        (House(), {"Authorization": bearer("ops")}, 403),
        (House(), {"Content-Type": "text/plain"}, 415),
        (House(Raising(RuntimeError())), {}, 500),
        (House(Classifier(ready=False)), {}, 503),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_every_answer_has_the_headers(
    path: str, house: House, headers: dict[str, str], status: int
) -> None:
    answer = await house.post(path, GOOD[path], headers)
    assert answer.status_code == status
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs.json", "/elsewhere"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_other_routes_have_the_headers_too(path: str, method: str) -> None:
    answer = await House().ask(method, path)
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS


async def test_what_the_page_is_made_of_may_be_kept() -> None:
    house = House(inner=PlainTextResponse("body {}", media_type="text/css"))
    answer = await house.ask("GET", "/static_content/swagger-ui.css")
    assert answer.status_code == 200
    assert "Cache-Control" not in answer.headers
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_the_page_runs_the_scripts_that_are_in_it_and_no_other(path: str) -> None:
    answer = await House().ask("GET", path)
    policy = dict(
        directive.split(" ", 1)
        for directive in answer.headers["Content-Security-Policy"].split("; ")
    )
    (script,) = re.findall(r"<script>(.+?)</script>", answer.text, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert not re.search(r"<[^>]+ (style|on\w+)=", answer.text)


@pytest.mark.parametrize(("tls", "hsts"), [(None, None), ("cert.pem", "max-age=31536000")])
async def test_browsers_are_held_to_tls_only_where_it_is_on(
    tls: str | None, hsts: str | None
) -> None:
    file = Path(tls) if tls else None
    house = House(tls=TlsSettings(certificate=file, private_key=file))
    for path in ("/health", "/docs", "/elsewhere"):
        answer = await house.ask("GET", path)
        assert answer.headers.get("Strict-Transport-Security") == hsts


async def test_the_server_is_not_named() -> None:
    inner = PlainTextResponse("fine", headers={"Server": "BentoML", "X-Kept": "yes"})
    answer = await House(inner=inner).post(BENTO, GOOD[BENTO])
    assert "Server" not in answer.headers
    assert answer.headers["X-Kept"] == "yes"


async def test_an_answer_that_is_sent_twice_has_each_header_once() -> None:
    house = House(inner=PlainTextResponse("fine"))
    for _ in range(2):
        answer = await house.ask("GET", "/schema.json")
    assert all(answer.headers.get_list(name) == [value] for name, value in HEADERS.items())


@pytest.mark.parametrize("path", sorted({*PATHS, "/elsewhere"}))
async def test_no_other_origin_is_let_in(path: str) -> None:
    answers = [
        await House().ask("GET", path, headers=BROWSER),
        await House().post(path, GOOD.get(path, {}), BROWSER),
        await House().ask(
            "OPTIONS", path, headers={**BROWSER, "Access-Control-Request-Method": "POST"}
        ),
    ]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answers[-1].status_code == (405 if path in PATHS else 404)


async def test_a_good_request_from_a_page_elsewhere_is_answered_and_not_shown_to_it() -> None:
    answer = await House().post(V1, GOOD[V1], BROWSER)
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
