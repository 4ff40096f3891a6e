import json
import os
import subprocess
import sys

import pytest

from gateway.access import ROUTES, STATIC_PREFIX, STATIC_TEMPLATE, Access, AccessTable
from kaiten.settings.environment import ROOT
from kaiten.settings.models import Exposure, GatewaySettings
from tests.unit.gateway.house import LIMITS, House, bearer, error_of

OPEN_TO_ALL = {"/livez", "/readyz", "/healthz", "/health"}
STATIC_FILE = f"{STATIC_PREFIX}swagger-ui.css"
# The edge answers them itself, before any app.
DIRECT = {"/api/predict", "/api/v1/predict", "/api/v2/predict", "/api/v2/feedback"}
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
    files = {"/static_content/swagger-ui.css", "/assets/index.html"}
    asked = sorted({*paths(app.routes), *files})
    statuses = {}
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://kaiten") as client:
        for path in asked:
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
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_no_row_is_open_unless_it_says_so() -> None:
    with pytest.raises(TypeError, match="scope"):
        Access(("GET",))  # type: ignore[call-arg]


def test_who_may_call_what() -> None:
    closed = AccessTable(GatewaySettings(docs="closed", metrics="closed"))
    found = {path for path in ROUTES if (row := closed.of(path)) and row.scope is None}
    assert found == OPEN_TO_ALL
    asking = {path: row.scope for path in ROUTES if (row := closed.of(path)) and row.scope}
    assert {path: asking[path] for path in ("/predict", "/api/v1/predict", "/api/v2/predict")} == {
        "/predict": "predict",
        "/api/v1/predict": "predict",
        "/api/v2/predict": "predict",
    }


def test_the_real_app_has_every_row_and_answers_nothing_that_is_not_listed(
    statuses: dict[str, int],
) -> None:
    assert set(statuses) >= set(ROUTES) - DIRECT - {STATIC_TEMPLATE}
    unlisted = {path for path in statuses if AccessTable(GatewaySettings()).of(path) is None}
    assert unlisted == {"/static_content", "/assets/index.html"}
    assert {statuses[path] for path in unlisted} == {404}


def test_the_real_app_exposes_docs_and_metrics_as_the_settings_say(
    statuses: dict[str, int],
) -> None:
    table = AccessTable(GatewaySettings())
    exposed = {path for path in statuses if (row := table.of(path)) and row.exposure}
    assert exposed >= {*DOCS, "/schema.json", "/metrics", STATIC_FILE}
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
    own = "metrics" if path == "/metrics" else "docs"
    house = House(gateway=LIMITS.model_copy(update={own: exposure}))
    answer = await house.ask("GET", path, headers={"Authorization": authorization})
    assert answer.status_code == status
    assert code is None or error_of(answer)["code"] == code


@pytest.mark.parametrize(("own", "path"), [("docs", "/metrics"), ("metrics", "/docs")])
async def test_closing_the_one_closes_not_the_other(own: str, path: str) -> None:
    house = House(gateway=LIMITS.model_copy(update={own: "closed"}))
    assert (await house.ask("GET", path)).status_code == 200
    assert (await house.ask("GET", "/health")).status_code == 200


def test_what_the_page_is_made_of_goes_with_the_page() -> None:
    for path in (STATIC_TEMPLATE, STATIC_FILE):
        assert AccessTable(GatewaySettings(docs="closed")).of(path) is None
        row = AccessTable(GatewaySettings(docs="token")).of(path)
        assert row is not None
        assert row.scope == "ops"
