"""The diff in docs/extending.md is all that a protocol needs."""

import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest

from kaiten.settings.environment import ROOT

# What the house of these tests is made of.
SOURCES = ("gateway", "kaiten", "monitors")
TESTS = ("tests/__init__.py", "tests/unit/__init__.py", "tests/unit/gateway/house.py")
SCRIPT = """
import asyncio, json
from monitors.metrics.definitions import Metrics
from tests.unit.gateway.house import LIMITS, House, bearer

PATH = "/v9/echo/parrot"
metrics = Metrics()
house = House(metrics=metrics)


async def post(path, body, **headers):
    answer = await house.post(path, body, headers)
    return {"status": answer.status_code, "body": answer.json(), "headers": dict(answer.headers)}


async def main():
    answers = {
        "good": await post(PATH, {"text": "hello"}),
        "no token": await post(PATH, {"text": "hello"}, Authorization=""),
        "other scope": await post(PATH, {"text": "hello"}, Authorization=bearer("ops")),
        "large": await post(PATH, b" " * (LIMITS.max_body_bytes + 1)),
        "malformed": await post(PATH, b"{"),
        "unknown field": await post(PATH, {"text": "hello", "more": 1}),
        "another path": await post("/v9/echo/a/b", {"text": "hello"}),
    }
    other = await house.ask("GET", PATH)
    answers["other method"] = {"status": other.status_code, "allow": other.headers["Allow"]}
    answers["document"] = (await house.ask("GET", "/docs.json")).json()
    answers["metrics"] = metrics.exposition()[0].decode()
    print(json.dumps(answers))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what the whole edge answers in a copy of the sources to which the diff is applied."""
    copy = tmp_path_factory.mktemp("extended")
    for package in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, copy / package, ignore=ignored)
    for path in TESTS:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy / path)
    document = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (diff,) = re.findall(r"```diff\n(.*?)```", document, re.DOTALL)
    subprocess.run(["git", "apply", "-"], cwd=copy, input=diff, text=True, check=True)
    # The copy's modules, whatever is installed.
    code = f"import sys; sys.path.insert(0, {str(copy)!r})\n{SCRIPT}"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=True
    )
    edge_answers: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return edge_answers


def test_path_parameter_reaches_the_handler(answers: dict[str, Any]) -> None:
    good = answers["good"]
    request_id = good["headers"]["x-request-id"]
    assert good["status"] == 200
    assert good["body"] == {"name": "parrot", "text": "hello", "request_id": request_id}
    assert good["headers"]["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ("no token", 401, "unauthenticated"),
        ("other scope", 403, "forbidden"),
        ("large", 413, "body_too_large"),
        ("malformed", 400, "malformed_body"),
        ("unknown field", 422, "invalid_input"),
        ("another path", 404, "not_found"),
    ],
)
def test_route_has_the_checks_of_every_route(
    answers: dict[str, Any], request_: str, status: int, code: str
) -> None:
    answer = answers[request_]
    assert (answer["status"], answer["body"]["error"]["code"]) == (status, code)


def test_other_methods_are_rejected(answers: dict[str, Any]) -> None:
    assert answers["other method"] == {"status": 405, "allow": "POST"}


def test_route_is_documented(answers: dict[str, Any]) -> None:
    document = answers["document"]
    operation = document["paths"]["/v9/echo/{name}"]["post"]
    (name, *_) = operation["parameters"]
    assert (name["name"], name["in"], name["required"]) == ("name", "path", True)
    assert {"200", "400", "401", "403", "413", "422", "429"} <= set(operation["responses"])
    assert {"EchoRequest", "EchoResponse"} <= set(document["components"]["schemas"])


def test_metrics_are_labelled_by_the_template(answers: dict[str, Any]) -> None:
    series = answers["metrics"].splitlines()
    lines = [line for line in series if line.startswith("model_request") and "echo" in line]
    assert any(line.startswith("model_requests_total") and 'code="200"' in line for line in lines)
    assert all('route="/v9/echo/{name}"' in line for line in lines)
    assert "parrot" not in answers["metrics"]
