"""The version of a request: from its path, from its header, or the default."""

from datetime import date

import httpx
import pytest
from pydantic import HttpUrl

from gateway.api_versions import DOCUMENTS, negotiate
from gateway.api_versions import NEGOTIATED_PATH as NEGOTIATED
from gateway.protocols import kaiten_v2
from gateway.routes import RouteTable
from kaiten.errors import UnknownApiVersion
from kaiten.settings.loader import Settings
from kaiten.settings.models import ApiLifetimeSettings, ApiVersionSettings, GatewaySettings
from tests.unit.gateway.house import (
    BENTO,
    GOOD,
    PREDICTIONS,
    V1,
    V2,
    Content,
    House,
    bearer,
    error_of,
)

BODIES = {"1": GOOD[V1], "2": GOOD[V2]}
OF = {V1: "1", V2: "2", BENTO: "2"}
PREDICT = {"1": V1, "2": V2}


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    error = error_of(answer)
    (detail,) = error["details"]
    assert detail["field"] == "API-Version"
    return answer.status_code, error["code"], detail["reason"]


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({}, "1"),
        ({"API-Version": "1"}, "1"),
        ({"API-Version": "v1"}, "1"),
        ({"api-version": "2"}, "2"),
        ({"API-Version": "v2"}, "2"),
    ],
)
async def test_a_negotiated_request_is_one_for_the_path_of_its_version(
    headers: dict[str, str], version: str
) -> None:
    house = House()
    answer = await house.post(NEGOTIATED, BODIES[version], headers)
    direct = await house.post(PREDICT[version], BODIES[version])
    assert (answer.status_code, answer.headers["API-Version"]) == (200, version)
    assert set(answer.json()) == set(direct.json())
    assert [path for path, _, _ in house.metrics.answered] == [PREDICT[version]] * 2


@pytest.mark.parametrize("path", [NEGOTIATED, *PREDICTIONS, *DOCUMENTS.values()])
@pytest.mark.parametrize(
    "version", ["3", "0", "", "1.0", "V1", "v", "01", "1,2", "latest", b"\xb9"]
)
async def test_an_unknown_version_is_refused_with_the_known(
    path: str, version: str | bytes
) -> None:
    answer = await House().ask("POST", path, b"{}", {"API-Version": version})
    assert refusal(answer) == (400, "unknown_version", "is not supported; use one of 1, 2")


@pytest.mark.parametrize("values", [[], ["1"]])
def test_a_version_without_a_route_is_refused_with_the_others(values: list[str]) -> None:
    table = RouteTable([kaiten_v2.PREDICT], Settings.model_construct(gateway=GatewaySettings()))
    match = table.match("POST", NEGOTIATED)
    assert match is not None
    with pytest.raises(UnknownApiVersion) as caught:
        negotiate(table, match, [(b"api-version", value.encode()) for value in values])
    assert caught.value.details[0].reason == "is not supported; use one of 2"


@pytest.mark.parametrize("path", [*PREDICTIONS, *DOCUMENTS.values()])
async def test_a_header_may_not_contradict_the_path(path: str) -> None:
    path_version = {**OF, **{path: version for version, path in DOCUMENTS.items()}}[path]
    other = "2" if path_version == "1" else "1"
    house = House()
    answer = await house.ask("POST", path, b"{}", {"API-Version": other})
    reason = f"is {other}, and the path is of version {path_version}; leave one out"
    assert refusal(answer) == (400, "version_mismatch", reason)
    assert answer.headers["API-Version"] == path_version


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_header_may_say_what_the_path_says(path: str) -> None:
    answer = await House().post(path, GOOD[path], {"API-Version": f"v{OF[path]}"})
    assert (answer.status_code, answer.headers["API-Version"]) == (200, OF[path])


@pytest.mark.parametrize("second", ["1", "2", ""])
async def test_a_header_that_is_sent_twice_is_refused(second: str) -> None:
    # Two spellings, as headers of one name would be one key here.
    answer = await House().ask(
        "POST", NEGOTIATED, b"{}", {"API-Version": "1", "api-version": second}
    )
    assert refusal(answer) == (400, "version_mismatch", "is sent 2 times; send it once")


async def test_a_refused_version_is_counted_on_a_known_route() -> None:
    house = House()
    await house.post(NEGOTIATED, {}, {"API-Version": "3"})
    await house.post(V1, {}, {"API-Version": "2"})
    assert house.metrics.answered == [(NEGOTIATED, "", 400), (V1, "", 400)]
    assert house.metrics.started == [NEGOTIATED, V1]


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"Authorization": ""}, b"{}", 401),
        ({"Authorization": bearer("ops")}, b"{}", 403),
        ({}, b"{", 400),
        ({}, b"{}", 422),
        ({"Content-Type": "text/plain"}, b"{}", 415),
    ],
)
@pytest.mark.parametrize("path", [NEGOTIATED, *PREDICTIONS])
async def test_a_failure_names_the_version_too(
    path: str, headers: dict[str, str], content: Content, status: int
) -> None:
    answer = await House().post(path, content, headers)
    assert answer.status_code == status
    assert answer.headers.get_list("API-Version") == [OF.get(path, "1")]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/docs.json", "/elsewhere"])
async def test_other_routes_have_no_version(path: str) -> None:
    answer = await House().ask("GET", path, headers={"API-Version": "9"})
    assert answer.status_code in {200, 404}
    assert "API-Version" not in answer.headers


@pytest.mark.parametrize("path", [f"{NEGOTIATED}/", f"{NEGOTIATED}%0A", "/API/predict"])
async def test_a_path_that_is_nearly_the_negotiated_one_is_unknown(path: str) -> None:
    answer = await House().post(path, GOOD[V1])
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


LIFETIMES = ApiVersionSettings(
    v1=ApiLifetimeSettings(
        deprecated_at=date(2026, 12, 1),
        sunset_at=date(2027, 6, 30),
        link=HttpUrl("https://example.org/move?to=2"),
    )
)


@pytest.mark.parametrize("path", [V1, NEGOTIATED])
@pytest.mark.parametrize("content", [b"{", None])
async def test_a_version_that_ends_says_so_in_every_answer(
    path: str, content: bytes | None
) -> None:
    answer = await House(versions=LIFETIMES).post(path, content or GOOD[V1])
    # The example dates of 1 December 2026 and 30 June 2027, by RFC 9745 and RFC 8594.
    assert answer.headers["Deprecation"] == "@1796083200"
    assert answer.headers["Sunset"] == "Wed, 30 Jun 2027 00:00:00 GMT"
    assert answer.headers["Link"] == (
        '<https://example.org/move?to=2>; rel="deprecation", '
        '<https://example.org/move?to=2>; rel="sunset"'
    )


@pytest.mark.parametrize("path", [V2, BENTO])
async def test_a_version_that_stays_says_nothing(path: str) -> None:
    answer = await House(versions=LIFETIMES).post(path, GOOD[path])
    assert answer.status_code == 200
    assert not {"Deprecation", "Sunset", "Link"} & {*answer.headers}


@pytest.mark.parametrize(
    ("lifetime", "headers"),
    [
        (ApiLifetimeSettings(deprecated_at=date(2026, 12, 1)), {"Deprecation": "@1796083200"}),
        # Past its end it answers as before: a version goes with a release.
        (
            ApiLifetimeSettings(sunset_at=date(2020, 1, 1)),
            {"Sunset": "Wed, 01 Jan 2020 00:00:00 GMT"},
        ),
    ],
)
async def test_a_date_alone_is_sent_alone(
    lifetime: ApiLifetimeSettings, headers: dict[str, str]
) -> None:
    answer = await House(versions=ApiVersionSettings(v2=lifetime)).post(V2, GOOD[V2])
    assert answer.status_code == 200
    names = {"Deprecation", "Sunset", "Link"}
    assert {name: answer.headers[name] for name in names if name in answer.headers} == headers
