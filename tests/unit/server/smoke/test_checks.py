import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, count, repeat

import pytest

from lifecycle.evaluate.rows import Rows
from server.smoke.checks import SmokeCheck, SmokeRequest, run_smoke_checks
from tests.unit.server.smoke.deployment import (
    HEADERS,
    MODELS,
    PREDICT,
    TAG,
    TOKEN,
    Answer,
    Deployment,
    Request,
    Rule,
    envelope,
    labelled_prediction,
    metrics,
    prediction,
    serve_deployment,
)

NAMES = [
    "liveness",
    "readiness",
    "no token",
    "forged token",
    "predictions",
    "version",
    "metrics",
    "build",
    "unknown path",
    "security headers",
]
GOLDEN = Rows(["is a", "is b"], ["a", "b"])


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with serve_deployment() as deployment:
        yield deployment


async def run_checks(
    deployment: Deployment,
    model: str | None = None,
    golden: Rows | None = None,
    wait_s: float = 0,
    limit_s: float = 30,
) -> dict[str, SmokeCheck]:
    request = SmokeRequest(deployment.url, TOKEN, model, golden, wait_s=wait_s, limit_s=limit_s)
    checks = await run_smoke_checks(request, lambda _: None)
    assert [check.name for check in checks] == NAMES
    assert all(bool(check.remedy) == (check.outcome == "failed") for check in checks)
    assert all(check.seen for check in checks)
    return {check.name: check for check in checks}


def outcomes(checks: dict[str, SmokeCheck], outcome: str) -> list[str]:
    return [name for name, check in checks.items() if check.outcome == outcome]


async def test_good_deployment_passes_every_check(deployment: Deployment) -> None:
    checks = await run_checks(deployment, TAG)
    assert outcomes(checks, "ok") == NAMES
    assert "'a' by 0.90" in checks["predictions"].seen
    assert checks["version"].seen == TAG
    assert checks["metrics"].seen == "open"
    assert "intent:1.0.0 is sha256:1f; Kaiten 0.1.0, bento kaiten_service:1-cpu" in str(
        checks["build"]
    )


async def test_every_request_has_an_id_of_its_own_and_the_forged_token_is_of_the_same_claims(
    deployment: Deployment,
) -> None:
    await run_checks(deployment)
    assert len({request.id for request in deployment.requests}) == len(deployment.requests)
    _, forged, *_ = [request.token for request in deployment.requests if request.path == PREDICT]
    assert forged.startswith("head.claims.")
    assert forged != TOKEN
    assert len(forged) == len(TOKEN)


async def test_golden_rows_are_each_asked_of_the_model_by_its_name(deployment: Deployment) -> None:
    deployment.rules[PREDICT] = labelled_prediction
    checks = await run_checks(deployment, TAG, GOLDEN)
    assert outcomes(checks, "ok") == NAMES
    assert checks["predictions"].seen == "2 golden rows as labelled"
    bodies = [request.body for request in deployment.requests if request.token == TOKEN]
    assert bodies == [{"inputs": [text], "model": "intent"} for text in GOLDEN.texts]


def served_labels(*labels: str) -> Rule:
    version = {"model": TAG, "name": "intent", "version": "1.0.0", "default": True, "ready": True}
    return lambda _: Answer(200, {"models": [{**version, "labels": labels}]})


@pytest.mark.parametrize("model", [TAG, None])
@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (("a", "b"), []),
        (("b", "a"), ["row 1: 'a', not 'b'", "row 2: 'b', not 'a'"]),
        # A label of the model is a name, not an index.
        (("1", "0"), ["row 1: 'a', not '0'", "row 2: 'b', not '1'"]),
    ],
)
async def test_golden_rows_may_have_the_indices_of_labels(
    labels: tuple[str, ...], wrong: list[str], model: str | None, deployment: Deployment
) -> None:
    deployment.rules |= {PREDICT: labelled_prediction, MODELS: served_labels(*labels)}
    checks = await run_checks(deployment, model, Rows(["is a", "is b"], ["0", "1"]))
    expected = f"2 of 2 rows differ: {'; '.join(wrong)}" if wrong else "2 golden rows as labelled"
    assert checks["predictions"].seen == expected


async def test_indices_without_the_names_of_labels_are_a_failure(deployment: Deployment) -> None:
    checks = await run_checks(deployment, golden=Rows(["is a"], ["0"]))
    assert checks["predictions"].outcome == "failed"
    assert "/api/v2/models does not name them: 404" in checks["predictions"].seen


def without_token(request: Request) -> Answer:
    return prediction(replace(request, token=TOKEN))


def without_envelope(request: Request) -> Answer:
    return prediction(request) if request.token == TOKEN else Answer(401, "Unauthorized")


def any_signature(request: Request) -> Answer:
    return prediction(request) if not request.token else without_token(request)


def another_id(request: Request) -> Answer:
    answer = prediction(request)
    return Answer(answer.status, answer.body, id="another")


def two_predictions(request: Request) -> Answer:
    answer = prediction(request)
    if isinstance(answer.body, dict) and "predictions" in answer.body:
        answer.body["predictions"] *= 2
    return answer


def refused_with(status: int, code: str, *reasons: str) -> Rule:
    def rule(request: Request) -> Answer:
        if request.token != TOKEN:
            return prediction(request)
        return envelope(request, status, code, *reasons)

    return rule


def page(request: Request) -> Answer:
    return Answer(200, "<html>") if request.token == TOKEN else prediction(request)


def bare(request: Request) -> Answer:
    return replace(envelope(request, 404, "not_found"), headers={})


def scraped(**changes: str) -> Rule:
    return lambda _: Answer(200, metrics(**changes))


def weaker(request: Request) -> Answer:
    headers = {**HEADERS, "Content-Security-Policy": "script-src *"}
    return replace(envelope(request, 404, "not_found"), headers=headers)


# By fault: the path and its rule, the check that must find it, and part of its message.
FAULTS: dict[str, tuple[str, Rule, str, str]] = {
    "no auth": (PREDICT, without_token, "no token", "200, not 401"),
    "any signature": (PREDICT, any_signature, "forged token", "200, not 401"),
    "401 of a proxy": (PREDICT, without_envelope, "no token", "not in Kaiten's envelope"),
    "wrong label": (
        PREDICT,
        lambda r: prediction(r, label="b"),
        "predictions",
        "row 1: 'b', not 'a'",
    ),
    "empty label": (PREDICT, lambda r: prediction(r, label=""), "predictions", "an empty label"),
    "score over 1": (
        PREDICT,
        lambda r: prediction(r, score=1.1),
        "predictions",
        "breaks the contract: predictions.0.score",
    ),
    "no JSON": (PREDICT, page, "predictions", "row 1: breaks the contract: body"),
    "another id": (PREDICT, another_id, "predictions", "request_id is not the X-Request-ID"),
    "two predictions": (PREDICT, two_predictions, "predictions", "2 predictions for one text"),
    "wrong version": (
        PREDICT,
        lambda r: prediction(r, tag="intent:0.9.0"),
        "version",
        "intent:0.9.0 answers, not intent:1.0.0",
    ),
    "unknown model": (
        PREDICT,
        refused_with(404, "unknown_model", "is not served; use one of x:1"),
        "predictions",
        "404 unknown_model; model is not served; use one of x:1",
    ),
    "token refused": (
        PREDICT,
        refused_with(401, "unauthenticated"),
        "predictions",
        "401 unauthenticated",
    ),
    "scope missing": (PREDICT, refused_with(403, "forbidden"), "predictions", "403 forbidden"),
    "overloaded": (PREDICT, refused_with(429, "queue_full"), "predictions", "429 queue_full"),
    "strange status": (PREDICT, refused_with(520, "odd"), "predictions", "520 odd"),
    "not alive": ("/livez", lambda _: Answer(502, "Bad gateway"), "liveness", "502"),
    "not ready": ("/readyz", lambda r: envelope(r, 503, "not_ready"), "readiness", "503 not_ready"),
    "not counted": (
        "/metrics",
        scraped(without="model_requests_total"),
        "metrics",
        "no model_requests_total of intent:1.0.0",
    ),
    "another counted": (
        "/metrics",
        scraped(tag="intent:0.9.0"),
        "metrics",
        "no model_requests_total of intent:1.0.0",
    ),
    "metrics refused": (
        "/metrics",
        lambda r: envelope(r, 401, "unauthenticated"),
        "metrics",
        "401 unauthenticated",
    ),
    "metrics broken": (
        "/metrics",
        lambda r: envelope(r, 500, "internal_error"),
        "metrics",
        "500 internal_error",
    ),
    "no kaiten_model_info": (
        "/metrics",
        scraped(without="kaiten_model_info"),
        "build",
        "no kaiten_model_info",
    ),
    "no build_info": ("/metrics", scraped(without="kaiten_build"), "build", "no kaiten_build_info"),
    "catch-all": ("", lambda _: Answer(200, "<html>"), "unknown path", "200, not 404"),
    "404 of a proxy": (
        "",
        lambda _: Answer(404, "<html>"),
        "unknown path",
        "not in Kaiten's envelope",
    ),
    "no headers": ("", bare, "security headers", "x-frame-options"),
    "weaker policy": ("", weaker, "security headers", "content-security-policy"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_fault_is_found_by_its_check(fault: str, deployment: Deployment) -> None:
    path, rule, name, message = FAULTS[fault]
    deployment.rules[path] = rule
    checks = await run_checks(deployment, TAG, Rows(["is a"], ["a"]))
    assert name in outcomes(checks, "failed")
    assert message in checks[name].seen


@pytest.mark.parametrize("name", NAMES[:2])
async def test_what_is_not_up_is_asked_nothing_else(name: str, deployment: Deployment) -> None:
    deployment.rules["/livez" if name == "liveness" else "/readyz"] = lambda _: Answer(503, "")
    checks = await run_checks(deployment)
    assert outcomes(checks, "failed") == [name]
    assert outcomes(checks, "skipped") == NAMES[NAMES.index(name) + 1 :]


async def test_readiness_is_waited_for(deployment: Deployment) -> None:
    statuses = chain([503, 503], repeat(200))
    deployment.rules["/readyz"] = lambda _: Answer(next(statuses), "")
    assert outcomes(await run_checks(deployment, wait_s=60), "ok") == NAMES
    assert [request.path for request in deployment.requests].count("/readyz") == 3


async def test_host_that_can_not_be_reached_is_reported() -> None:
    with serve_deployment() as gone:
        pass
    checks = await run_checks(gone)
    assert outcomes(checks, "failed") == ["liveness"]
    assert "ConnectError" in checks["liveness"].seen
    assert "\n" not in checks["liveness"].seen


async def test_without_an_answer_there_is_no_version_to_look_for(deployment: Deployment) -> None:
    deployment.rules[PREDICT] = refused_with(500, "inference_failed")
    checks = await run_checks(deployment)
    assert outcomes(checks, "failed") == ["predictions"]
    assert outcomes(checks, "skipped") == ["version", "metrics", "build"]


async def test_metrics_are_asked_for_with_the_token_where_they_want_one(
    deployment: Deployment,
) -> None:
    deployment.rules["/metrics"] = lambda request: (
        Answer(200, metrics())
        if request.token == TOKEN
        else envelope(request, 401, "unauthenticated")
    )
    checks = await run_checks(deployment)
    assert outcomes(checks, "ok") == NAMES
    assert checks["metrics"].seen == "with the token"


async def test_metrics_that_are_hidden_are_no_fault(deployment: Deployment) -> None:
    deployment.rules["/metrics"] = deployment.rules[""]
    checks = await run_checks(deployment)
    assert outcomes(checks, "skipped") == ["metrics", "build"]
    assert outcomes(checks, "failed") == []


async def test_of_several_replicas_one_that_has_not_answered_yet_is_no_fault(
    deployment: Deployment,
) -> None:
    scrapes = count()
    deployment.rules["/metrics"] = lambda _: Answer(
        200, metrics(without="model_requests_total" if next(scrapes) < 3 else "")
    )
    assert outcomes(await run_checks(deployment), "ok") == NAMES


@pytest.mark.parametrize("path", ["/livez", "/readyz", PREDICT, "/metrics", ""])
async def test_server_that_hangs_holds_nobody(path: str, deployment: Deployment) -> None:
    over = threading.Event()

    def hang(request: Request) -> Answer:
        over.wait()
        return Answer(200, "")

    deployment.rules[path] = hang
    try:
        checks = await run_checks(deployment, limit_s=0.3)
    finally:
        over.set()
    failed = outcomes(checks, "failed")
    assert failed
    assert all("no answer within 0.3 s" in checks[name].seen for name in failed)


async def test_seen_is_one_line_and_short(deployment: Deployment) -> None:
    deployment.rules[PREDICT] = lambda r: prediction(r, label="a\n" * 5000)
    checks = await run_checks(deployment, golden=GOLDEN)
    assert "\n" not in checks["predictions"].seen
    assert len(checks["predictions"].seen) <= 300
