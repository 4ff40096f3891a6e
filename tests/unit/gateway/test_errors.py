import asyncio
import errno
import gc
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import STATUS_AND_CODE
from gateway.middleware.early_answer import Refusal
from kaiten.errors import (
    DeadlineExceeded,
    InferenceFailed,
    KaitenError,
    ModelNotFound,
    NotReady,
    QueueFull,
    RequestError,
    ServiceError,
)
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    GOOD,
    PREDICTIONS,
    V1,
    V2,
    Answer,
    Broken,
    Classifier,
    House,
    Raising,
    Stuck,
    error_of,
    fields_of,
)


def leaves(error: type[KaitenError]) -> list[type[KaitenError]]:
    children = error.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] or [error]


def app_raising(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


@pytest.mark.parametrize("error", leaves(RequestError))
def test_what_the_caller_can_mend_is_a_4xx(error: type[KaitenError]) -> None:
    assert 400 <= STATUS_AND_CODE[error][0] < 500


@pytest.mark.parametrize("error", leaves(ServiceError))
def test_the_services_own_state_is_a_429_or_5xx(error: type[KaitenError]) -> None:
    status = STATUS_AND_CODE[error][0]
    assert status == 429 or 500 <= status < 600


def test_each_error_has_a_code_of_its_own() -> None:
    codes = [code for _, code in STATUS_AND_CODE.values()]
    assert len(set(codes)) == len(codes)
    assert set(STATUS_AND_CODE) == {*leaves(RequestError), *leaves(ServiceError)}


@pytest.mark.parametrize(
    ("foreign", "code"),
    [
        (PlainTextResponse(CANARY, 400), "bad_request"),
        (JSONResponse({"error": CANARY}, 400), "bad_request"),
        (JSONResponse({"error": {"code": CANARY}}, 400), "bad_request"),
        (PlainTextResponse(CANARY, 404), "not_found"),
        (PlainTextResponse(CANARY, 405), "method_not_allowed"),
        (PlainTextResponse(CANARY, 499), None),
        (PlainTextResponse(CANARY, 500), "internal_error"),
        (JSONResponse({"error": CANARY}, 503), "not_ready"),
        (Response(status_code=404), "not_found"),
    ],
)
async def test_a_foreign_failure_comes_in_the_envelope(foreign: Response, code: str | None) -> None:
    answer = await House(inner=foreign).post(BENTO, GOOD[BENTO])
    assert answer.status_code == foreign.status_code
    assert code in {None, error_of(answer)["code"]}
    assert CANARY not in answer.text


async def test_a_foreign_failure_keeps_what_is_allowed_and_no_other_header() -> None:
    headers = {"Allow": "POST", "X-Foreign": CANARY, "Set-Cookie": CANARY}
    answer = await House(inner=PlainTextResponse("no", 405, headers)).ask("GET", "/schema.json")
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "POST"
    assert CANARY not in str(answer.headers)


@pytest.mark.parametrize("path", ["/schema.json", "/api/v3/predict", "/api/v1/predict/more"])
async def test_an_unknown_route_is_a_404(path: str) -> None:
    answer = await House().ask("GET", path)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("DELETE", "/health", {"GET", "HEAD"}), ("POST", "/docs.json", {"GET", "HEAD"})],
)
async def test_another_method_is_a_405(method: str, path: str, allowed: set[str]) -> None:
    answer = await House().ask(method, path)
    assert (answer.status_code, error_of(answer)["code"]) == (405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("foreign", [Response(CANARY, 200), Response(CANARY, 302)])
async def test_an_answer_that_is_no_failure_passes_unchanged(foreign: Response) -> None:
    foreign.headers["X-Foreign"] = "kept"
    answer = await House(inner=foreign).ask("GET", "/schema.json")
    assert (answer.status_code, answer.text) == (foreign.status_code, CANARY)
    assert answer.headers["X-Foreign"] == "kept"


@pytest.mark.parametrize(
    "error", [RuntimeError(CANARY), TimeoutError(CANARY), ModelNotFound(CANARY, [CANARY])]
)
@pytest.mark.parametrize("path", [V1, V2])
async def test_what_nobody_expected_is_a_500_that_tells_nothing(
    path: str, error: Exception
) -> None:
    house = House(Raising(error))
    answer = await house.post(path, GOOD[path])
    assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
    assert CANARY not in answer.text
    assert type(error).__name__ not in answer.text


@pytest.mark.parametrize("fault", [errno.EMFILE, errno.ENFILE])
async def test_too_few_descriptors_are_a_503_that_tells_when_to_come_again(fault: int) -> None:
    house = House(inner=app_raising(OSError(fault, os.strerror(fault))))
    answer = await house.post(V1, GOOD[V1])
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "out_of_descriptors"
    assert int(answer.headers["Retry-After"]) > 0


async def test_scores_that_are_no_numbers_are_a_500() -> None:
    answer = await House(Broken()).post(V2, GOOD[V2])
    assert (answer.status_code, error_of(answer)["code"]) == (500, "inference_failed")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QueueFull(7), 429, "queue_full"),
        (InferenceFailed(), 500, "inference_failed"),
        (NotReady(), 503, "not_ready"),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_runners_error_comes_in_the_envelope(
    path: str, error: KaitenError, status: int, code: str
) -> None:
    answer = await House(Raising(error)).post(path, GOOD[path])
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert error_of(answer)["message"] == error.message


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_full_queue_tells_when_to_come_again(path: str) -> None:
    answer = await House(Raising(QueueFull(7))).post(path, GOOD[path])
    assert answer.headers["Retry-After"] == "7"


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_model_that_is_not_ready_is_a_503(path: str) -> None:
    answer = await House(Classifier(ready=False)).post(path, GOOD[path])
    assert (answer.status_code, error_of(answer)["code"]) == (503, "not_ready")


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_model_that_never_answers_is_a_504(path: str) -> None:
    answer = await House(Stuck(), request_timeout_s=0.01).post(path, GOOD[path])
    assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_body_that_never_ends_is_a_504(path: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await House(request_timeout_s=0.01).post(path, body())
    assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")


async def test_an_error_after_the_answer_has_started_cuts_it_off() -> None:
    async def breaks_off(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        await House(inner=breaks_off).ask("GET", "/schema.json")


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_an_error_behind_a_foreign_failure_is_a_500(status: int) -> None:
    foreign = PlainTextResponse(CANARY, status)

    async def answers_and_raises(scope: Scope, receive: Receive, send: Send) -> None:
        await foreign(scope, receive, send)
        raise RuntimeError(CANARY)

    house = House(inner=answers_and_raises)
    if status == 200:
        with pytest.raises(RuntimeError):
            await house.ask("GET", "/schema.json")
    else:
        answer = await house.ask("GET", "/schema.json")
        assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
        assert CANARY not in answer.text


APPS = {
    "good": PlainTextResponse("good"),
    "foreign failure": PlainTextResponse("bad", 400),
    "our failure": app_raising(NotReady()),
    "unexpected": app_raising(RuntimeError()),
}


@pytest.mark.parametrize("inner", APPS.values(), ids=APPS)
@pytest.mark.parametrize(
    "request_id", ["a", "A-b_c.9", "x" * 64, "0b5c4f0e-7d3a-4f6e-9d51-000000000000"]
)
async def test_a_plain_request_id_is_answered_with(inner: ASGIApp, request_id: str) -> None:
    answer = await House(inner=inner).ask(
        "GET", "/schema.json", headers={"X-Request-ID": request_id}
    )
    assert answer.headers.get_list("X-Request-ID") == [request_id]


@pytest.mark.parametrize("inner", APPS.values(), ids=APPS)
@pytest.mark.parametrize(
    "request_id",
    ["", "x" * 65, "a b", "a\n", "a\r\nSet-Cookie: a=b", "a\x00", "ü", "٣", '"a"', "{a}", "a/b"],
)
async def test_another_request_id_is_replaced(inner: ASGIApp, request_id: str) -> None:
    answer = await House(inner=inner).ask(
        "GET", "/schema.json", headers={"X-Request-ID": request_id}
    )
    (new_id,) = answer.headers.get_list("X-Request-ID")
    assert new_id != request_id
    assert len(new_id) == 32
    assert new_id.isalnum()


async def test_each_request_gets_an_id_of_its_own() -> None:
    house = House()
    request_ids = {(await house.post(V1, GOOD[V1])).json()["request_id"] for _ in range(10)}
    assert len(request_ids) == 10


@pytest.mark.parametrize("path", PREDICTIONS)
async def test_a_caller_may_ask_for_less_time(path: str) -> None:
    runner = Stuck()
    answer = await House(runner).post(path, GOOD[path], {"X-Request-Timeout-Ms": "10"})
    assert (answer.status_code, error_of(answer)["code"]) == (504, "deadline_exceeded")
    assert answer.headers["Retry-After"] == str(runner.queue_delay_s)
    assert runner.dropped


async def test_a_caller_may_not_ask_for_more_time_than_the_settings_give() -> None:
    house = House(Stuck(), request_timeout_s=0.01)
    answer = await house.post(V1, GOOD[V1], {"X-Request-Timeout-Ms": "999999999"})
    assert answer.status_code == 504


@pytest.mark.parametrize(
    "time_limit", ["", "0", "-1", "1.5", "1e3", "soon", "1" * 10, "\u0661".encode()]
)
async def test_a_time_limit_that_is_no_number_is_refused(time_limit: str | bytes) -> None:
    answer = await House().post(V1, GOOD[V1], {"X-Request-Timeout-Ms": time_limit})
    assert (answer.status_code, fields_of(answer)) == (422, ["X-Request-Timeout-Ms"])


async def test_the_runner_gets_the_requests_deadline() -> None:
    class DeadlineRecorder(Classifier):
        async def predict(self, inputs: Sequence[str], deadline: float) -> list[Answer]:
            self.remaining_s = deadline - time.monotonic()
            return await super().predict(inputs, deadline)

    runner = DeadlineRecorder()
    await House(runner).post(V1, GOOD[V1], {"X-Request-Timeout-Ms": "5000"})
    assert 0 < runner.remaining_s <= 5


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_a_time_limit_is_not_heeded_where_anybody_may_ask(path: str) -> None:
    answer = await House().ask("GET", path, headers={"X-Request-Timeout-Ms": "no number"})
    assert answer.status_code == 200


def instances(kind: type[object]) -> int:
    return sum(type(instance) is kind for instance in gc.get_objects())


@pytest.fixture
def disabled_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("disabled_gc")
async def test_a_refusal_is_freed_without_the_garbage_collector() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await Refusal(QueueFull(3))(scope, receive, send)

    house, before = House(inner=refuse), instances(QueueFull)
    for _ in range(3):
        assert (await house.post(V1, GOOD[V1])).status_code == 429
    assert instances(QueueFull) == before


@pytest.mark.usefixtures("disabled_gc")
async def test_what_led_to_an_error_is_freed_as_well() -> None:
    before = {kind: instances(kind) for kind in (DeadlineExceeded, TimeoutError)}
    house = House(Stuck(), request_timeout_s=0.01)
    assert (await house.post(V1, GOOD[V1])).status_code == 504
    assert {kind: instances(kind) for kind in before} == before
