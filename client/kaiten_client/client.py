"""The client that waits for its answers: for scripts, notebooks and batch jobs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from kaiten_client.answers import FeedbackResponse, PredictResponse
from kaiten_client.calls import Label, labelling, means_not_ready, prediction, readiness
from kaiten_client.connections import Connections
from kaiten_client.errors import KaitenError, UnexpectedAnswer
from kaiten_client.exchange import Done, Exchange, Try
from kaiten_client.replies import Reply
from kaiten_client.target import HttpOptions, Timing, aim, check_options, direct

T = TypeVar("T")


class SyncHttpOptions(HttpOptions, total=False):
    """As HttpOptions, or an own transport in place of its TLS and pool."""

    transport: httpx.BaseTransport


class Client:
    """Asks one Kaiten server; threads may share it. Close it, or use it in a ``with``.

    ``token`` is a token, or a function that returns one: it is called for every try, and once more
    after a 401. ``api_key`` stands in its place. ``timeout_s`` is the deadline of a request, over
    all its tries; ``retries`` is how many more tries it may take where that is safe and may help.
    ``verify_request_id`` is to be False only behind a proxy that replaces X-Request-ID: an answer
    for another request is an error otherwise.

    After a fork, the child opens connections of its own; it needs no client of its own, unless this
    one was given a ``transport``.
    """

    def __init__(  # noqa: PLR0913  options are keywords
        self,
        url: str,
        *,
        token: str | Callable[[], str] | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        verify_request_id: bool = True,
        timing: Timing = Timing(),  # noqa: B008  it is frozen
        **http: Unpack[SyncHttpOptions],
    ) -> None:
        target = aim(url, token, api_key, timeout_s, retries, timing)
        self._target = replace(target, verify_request_id=verify_request_id)
        check_options(http)
        self._token = token
        create = partial(
            httpx.Client,
            base_url=self._target.url,
            follow_redirects=False,
            mounts=direct(self._target.url, http),
            **http,
        )
        self._connections = Connections(create, recreatable="transport" not in http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; after a fork, a child's own only."""
        http = self._connections.owned()
        if http is not None:
            http.close()

    def predict(
        self,
        inputs: Sequence[str],
        *,
        top_k: int = 1,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> PredictResponse:
        """Return a prediction for each text, in order, with its ``top_k`` most probable labels.

        ``model`` is ``name`` or ``name:version``; the server has a default. A KaitenError if there
        is no answer.
        """
        call = prediction(inputs, top_k, model)
        return self._run(Exchange(call, self._target, timeout_s))

    def feedback(
        self,
        labels: Sequence[Label | tuple[str, int, str]],
        *,
        timeout_s: float | None = None,
    ) -> FeedbackResponse:
        """Say what texts should have been answered with; it is kept for good once this returns.

        Each names the answer's ``request_id``, the text's place in it, and the right label. A label
        for the same text takes the place of an earlier one, so it is safe to send again. A
        KaitenError if there is no answer; then none is kept, or the answer was lost.
        """
        return self._run(Exchange(labelling(labels), self._target, timeout_s))

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Tell whether every model can answer; False as well while the server is not there.

        A KaitenError where waiting would not mend it, such as a wrong path.
        """
        try:
            return self._run(Exchange(readiness(), self._target, timeout_s))
        except KaitenError as error:
            if means_not_ready(error):
                return False
            raise

    def _run(self, exchange: Exchange[T]) -> T:
        while True:
            attempt = exchange.next_try(self._ask_token() if exchange.call.authenticated else None)
            outcome = self._send(exchange, attempt)
            try:
                verdict = exchange.judge(outcome)
            except UnexpectedAnswer:
                self._connections.discard()
                raise
            if isinstance(verdict, Done):
                return verdict.value
            self._target.timing.sleep(verdict.wait_s)

    def _ask_token(self) -> str | None:
        return self._token() if callable(self._token) else self._token

    def _send(self, exchange: Exchange[T], attempt: Try) -> Reply | httpx.RequestError:
        call, content = exchange.call, bytearray()
        try:
            with self._connections.get().stream(
                call.method,
                call.path,
                content=call.content,
                headers=attempt.headers,
                timeout=attempt.timeout,
            ) as answer:
                # httpx limits each wait, not their sum; an answer may trickle.
                for chunk in answer.iter_bytes():
                    content += chunk
                    if exchange.is_over:
                        return httpx.ReadTimeout("the answer was not whole in time")
        except httpx.RequestError as error:
            return error
        received_at = self._target.timing.epoch()
        return Reply(answer.status_code, answer.headers, bytes(content), received_at)
