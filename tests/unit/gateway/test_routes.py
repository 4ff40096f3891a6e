import json
import os
import subprocess
import sys
from typing import Any

import pytest

from gateway.app import route_table
from gateway.routes import RouteKind, RouteSpec, RouteTable
from gateway.schemas import Body
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import Settings
from kaiten.settings.models import Exposure, GatewaySettings
from tests.unit.gateway.house import LIMITS, House, bearer, error_of

OPEN_TO_ALL = {"/livez", "/readyz", "/healthz", "/health"}
STATIC_FILE = "/static_content/swagger-ui.css"
DOCS = {"/", "/docs", "/docs.json"}
# Asks every route that BentoML and we have joined into one app, by itself, as the server does.
SCRIPT = """
import asyncio, json
import httpx
import service

service.Kaiten.inject_config()
from _bentoml_impl.server.app import ServiceAppFactory
from kaiten.settings.models import ServingSettings
from server.worker import WorkerProcess, build_worker

# No model is in the store.
serving = ServingSettings.model_construct(models=())
settings = service.settings.model_copy(update={"serving": serving})
service.app.attach(build_worker(settings, WorkerProcess(0, "not available", exit)))

app = ServiceAppFactory(service.Kaiten, is_main=True)()


def paths(routes, prefix=""):
    for route in routes:
        path = prefix + route.path
        yield path or "/"
        yield from paths(getattr(route, "routes", None) or [], path.rstrip("/"))


async def main():
    files = {"/static_content/swagger-ui.css", "/assets/index.html", "/docs", "/metrics"}
    targets = sorted({*paths(app.routes), *files})
    statuses = {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://kaiten") as client:
        for path in targets:
            statuses[path] = (await client.get(path)).status_code
    print(json.dumps(statuses))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def statuses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Return what the real app answers without a token, where docs and metrics ask for one."""
    home = str(tmp_path_factory.mktemp("home"))
    environment = os.environ | {
        "BENTOML_HOME": home,
        "KAITEN_HOME": home,
        "KAITEN_GATEWAY__DOCS": "token",
        "KAITEN_GATEWAY__METRICS": "token",
    }
    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    path_statuses: dict[str, int] = json.loads(process.stdout)
    return path_statuses


def table(*specs: RouteSpec, **exposures: Exposure) -> RouteTable:
    settings = Settings.model_construct(gateway=GatewaySettings(**exposures))
    return RouteTable(specs, settings) if specs else route_table(settings)


def spec(path: str, **more: Any) -> RouteSpec:  # noqa: ANN401
    options = {"method": "GET", "scope": None, "kind": RouteKind.ADMIN, "handler": None, **more}
    return RouteSpec(path=path, **options)


def test_no_route_is_open_unless_it_says_so() -> None:
    with pytest.raises(TypeError, match="scope"):
        RouteSpec(method="GET", path="/a", kind=RouteKind.ADMIN, handler=None)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("path", "options", "reason"),
    [
        ("/v9/{modelName}", {}, "lower-case"),
        ("/v9/{id2}", {}, "lower-case"),
        ("/v9/{path:path}", {}, "lower-case"),
        ("/v9/{name", {}, "lower-case"),
        ("/v9/{body}", {}, "argument of the handler"),
        ("/v9/{exchange}", {}, "argument of the handler"),
        ("/v9/a", {"kind": RouteKind.PROBE, "scope": "ops"}, "a probe"),
        ("/v9/a", {"kind": RouteKind.PROBE, "request": Body}, "a probe"),
        ("/v9/a", {"negotiated_path": "/a"}, "api_version"),
        ("/v9/{name}", {"negotiated_path": "/a", "api_version": "9"}, "no parameters"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_rejected(
    path: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        spec(path, **options)


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (spec("/v9/a"), "more than once"),
        (spec("/v9/a", method="POST", kind=RouteKind.MODEL), "differ in kind"),
        (spec("/v9/a", method="POST", cacheable=True), "differ in kind"),
        (spec("/v9/{other}"), "names of their parameters"),
        (
            spec("/v9/c", method="POST", api_version="3", negotiated_path="/v9/either"),
            "differ in method",
        ),
    ],
)
def test_declarations_that_contradict_each_other_are_rejected(
    second: RouteSpec, reason: str
) -> None:
    first = (
        spec("/v9/a"),
        spec("/v9/{name}"),
        spec("/v9/b", api_version="2", negotiated_path="/v9/either"),
    )
    with pytest.raises(ValueError, match=reason):
        table(*first, second)


def test_who_may_call_what() -> None:
    closed = table(docs="closed", metrics="closed")
    assert {route.path for route in closed.specs if route.scope is None} == OPEN_TO_ALL
    scopes = {route.path: route.scope for route in closed.specs}
    for path in ("/predict", "/api/v1/predict", "/api/v2/predict"):
        assert scopes[path] == "predict"


def test_parameters_of_a_path_are_matched_by_name() -> None:
    routes = table(spec("/v9/models/{name}/versions/{version}"), spec("/v9/models"))
    match = routes.match("GET", "/v9/models/intent/versions/1.0.0")
    assert match is not None
    assert match.parameters == {"name": "intent", "version": "1.0.0"}
    assert match.spec.path == "/v9/models/{name}/versions/{version}"
    fixed = routes.match("GET", "/v9/models")
    assert fixed is not None
    assert fixed.parameters == {}


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", ".a", "a b", "a\n", "a\0", "a;x", "{name}", "\u00fc", "a%2fb"]
)
def test_parameter_is_one_plain_segment(name: str) -> None:
    assert table(spec("/v9/echo/{name}")).match("GET", f"/v9/echo/{name}") is None


def test_fixed_path_is_matched_before_a_template() -> None:
    routes = table(spec("/v9/{name}"), spec("/v9/all"))
    match = routes.match("GET", "/v9/all")
    assert match is not None
    assert match.spec.path == "/v9/all"


def test_rest_of_a_template_is_literal() -> None:
    routes = table(spec("/v9/a.b/{name}"))
    assert routes.match("GET", "/v9/a.b/c") is not None
    assert routes.match("GET", "/v9/axb/c") is None


def test_a_path_may_have_a_route_for_each_method() -> None:
    routes = table(spec("/v9/files/{name}"), spec("/v9/files/{name}", method="POST", scope="ops"))
    post, head = (routes.match(method, "/v9/files/a") for method in ("POST", "HEAD"))
    assert post is not None
    assert head is not None
    assert (post.spec.scope, head.spec.scope) == ("ops", None)
    other = routes.match("DELETE", "/v9/files/a")
    assert other is not None
    assert not other.is_allowed
    assert other.allowed == ("GET", "HEAD", "POST")


def test_negotiated_path_has_a_route_for_each_version() -> None:
    routes = table()
    versions = routes.negotiated["/api/predict"]
    assert {version: route.path for version, route in versions.items()} == {
        "1": "/api/v1/predict",
        "2": "/api/v2/predict",
    }
    front = routes.match("POST", "/api/predict")
    assert front is not None
    assert (front.spec.path, front.spec.scope) == ("/api/predict", "predict")
    assert front.spec.path in routes.model_routes


def test_real_app_answers_nothing_that_is_not_listed(statuses: dict[str, int]) -> None:
    unlisted = {path for path in statuses if table().match("GET", path) is None}
    assert unlisted >= {"/static_content", "/assets/index.html"}
    assert {statuses[path] for path in unlisted} == {404}


def test_real_app_exposes_docs_and_metrics_as_the_settings_say(
    statuses: dict[str, int],
) -> None:
    exposed = {*DOCS, "/schema.json", "/metrics", STATIC_FILE}
    assert {statuses[path] for path in exposed} == {401}


@pytest.mark.parametrize(
    ("exposure", "authorization", "status", "code"),
    [
        ("open", "", 200, None),
        ("token", "", 401, "unauthenticated"),
        ("token", "Bearer x", 401, "unauthenticated"),
        ("token", bearer("predict"), 403, "forbidden"),
        ("token", bearer("ops"), 200, None),
        ("closed", "", 404, "not_found"),
        ("closed", bearer("ops"), 404, "not_found"),
    ],
)
@pytest.mark.parametrize("path", [*sorted(DOCS), "/metrics"])
async def test_docs_and_metrics_are_exposed_as_the_settings_say(
    path: str, exposure: Exposure, authorization: str, status: int, code: str | None
) -> None:
    setting = "metrics" if path == "/metrics" else "docs"
    house = House(gateway=LIMITS.model_copy(update={setting: exposure}))
    answer = await house.ask("GET", path, headers={"Authorization": authorization})
    assert answer.status_code == status
    assert code is None or error_of(answer)["code"] == code


@pytest.mark.parametrize(("setting", "path"), [("docs", "/metrics"), ("metrics", "/docs")])
async def test_closing_the_one_closes_not_the_other(setting: str, path: str) -> None:
    house = House(gateway=LIMITS.model_copy(update={setting: "closed"}))
    assert (await house.ask("GET", path)).status_code == 200
    assert (await house.ask("GET", "/health")).status_code == 200


def test_what_the_page_is_made_of_goes_with_the_page() -> None:
    assert table(docs="closed").match("GET", STATIC_FILE) is None
    match = table(docs="token").match("GET", STATIC_FILE)
    assert match is not None
    assert match.spec.scope == "ops"
