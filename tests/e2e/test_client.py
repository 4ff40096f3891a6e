"""The client before the real server, and before what stands in for a proxy's page."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kaiten_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    Forbidden,
    KaitenError,
    PredictResponse,
    RateLimited,
    ServerError,
    TimedOut,
    Unauthenticated,
    UnexpectedAnswer,
    UnknownModel,
)
from tests.servers import ROOT, Server, free_port

TEXTS = ["I forgot my password", "Where is my parcel?"]


def error(client: Client, model: str | None = None) -> KaitenError:
    with client, pytest.raises(KaitenError) as raised:
        client.predict(TEXTS, model=model)
    return raised.value


def labels(answer: PredictResponse) -> list[str]:
    return [prediction.label for prediction in answer.predictions]


async def test_sync_and_async_get_the_same_answer(server: Server, token: str) -> None:
    with Client(server.url, token=token) as client:
        assert client.ready()
        answer = client.predict(TEXTS, top_k=2, model="support-intent")
    assert answer.model == "support-intent:1.0.0"
    assert labels(answer) == ["login_problem", "order_status"]
    assert all(len(prediction.top_k) == 2 for prediction in answer.predictions)

    async with AsyncClient(server.url, token=lambda: token) as client_:
        assert await client_.ready()
        answers = await asyncio.gather(*(client_.predict(TEXTS) for _ in range(20)))
    assert {tuple(labels(response)) for response in answers} == {tuple(labels(answer))}
    assert len({response.request_id for response in answers}) == 20


@pytest.mark.parametrize("page", ["client/README.md", "docs/serve.md"])
def test_the_documented_lines_run(
    page: str, server: Server, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (lines, *_) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    exec(lines.replace("http://127.0.0.1:3000", server.url), {"TOKEN": token})
    assert re.search("order_status|login_problem", capsys.readouterr().out)


def test_refusals_say_what_the_server_said(server: Server, token: str) -> None:
    bad = error(Client(server.url, token="no.good.token"))
    assert (type(bad), bad.status, bad.code) == (Unauthenticated, 401, "unauthenticated")
    other = error(Client(server.url, token=server.token("x", "ops")))
    assert type(other) is Forbidden
    unknown = error(Client(server.url, token=token), "nope")
    assert type(unknown) is UnknownModel
    assert "support-intent:1.0.0" in str(unknown)
    # The log knows it by the same id.
    assert server.process.wait_for(unknown.request_id)


def test_a_token_that_has_run_out_is_fetched_anew(server: Server, token: str) -> None:
    tokens = iter(["no.good.token", token])
    with Client(server.url, token=lambda: next(tokens), retries=0) as client:
        assert labels(client.predict(TEXTS)) == ["login_problem", "order_status"]


def test_nobody_works_on_after_the_time_limit(server: Server, token: str, texts: list[str]) -> None:
    long = [" ".join(texts[start : start + 20]) for start in range(256)]
    with Client(server.url, token=token, retries=0) as client, pytest.raises(KaitenError) as raised:
        client.predict(long, timeout_s=0.2)
    # RateLimited if the queue is too long for the time limit.
    assert isinstance(raised.value, TimedOut | RateLimited)
    line = json.loads(server.process.wait_for(raised.value.request_id)[0])
    # 499 where a busy machine is late with its 504, and the client has left.
    assert line["status"] in {504, 429, 499}


@contextmanager
def answering(status: int) -> Iterator[str]:
    """Answer every request with a page, as a proxy does."""

    class Page(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>canary</html>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "kind"), [(200, UnexpectedAnswer), (502, ServerError)])
def test_a_proxys_page_is_an_error_that_quotes_nothing(
    status: int, kind: type[KaitenError]
) -> None:
    with answering(status) as url:
        failure = error(Client(url, token="t", retries=0))
    assert (type(failure), failure.status, failure.code) == (kind, status, None)
    assert len(failure.request_id) == 32
    assert "canary" not in str(failure)


async def test_nobody_there_is_not_ready_and_no_connection() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with AsyncClient(url, retries=0) as client:
        assert not await client.ready()
        with pytest.raises(ConnectionFailed, match="ConnectError"):
            await client.predict(TEXTS)
