"""The synchronous client, for scripts, notebooks and batch jobs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from kaiten_client.answers import FeedbackResponse, PredictResponse
from kaiten_client.call_state import Attempt, CallState, Done
from kaiten_client.calls import (
    Label,
    feedback_call,
    means_not_ready,
    prediction_call,
    readiness_call,
)
from kaiten_client.connections import Connections
from kaiten_client.errors import KaitenError, UnexpectedAnswer
from kaiten_client.replies import Reply
from kaiten_client.target import HttpOptions, Timing, check_options, make_target, proxy_mounts

T = TypeVar("T")


class SyncHttpOptions(HttpOptions, total=False):
    """HttpOptions, or a transport instead of their TLS and pool."""

    transport: httpx.BaseTransport


class Client:
    """Calls one Kaiten server; threads may share it. Close it, or use it in a ``with``.

    ``token`` is a token, or a function that returns one: it is called for every attempt, and once
    more after a 401. ``api_key`` replaces it. ``timeout_s`` is the deadline of a request over all
    its attempts. ``retries`` is the number of further attempts if they are safe and may help. Set
    ``verify_request_id`` to False only behind a proxy that replaces X-Request-ID: otherwise a
    response for another request is an error.

    After a fork, a child process may use the client: it opens connections of its own. A client with
    a ``transport`` must be created again in the child.
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
        target = make_target(url, token, api_key, timeout_s, retries, timing)
        self._target = replace(target, verify_request_id=verify_request_id)
        check_options(http)
        self._token = token
        create = partial(
            httpx.Client,
            base_url=self._target.url,
            follow_redirects=False,
            mounts=proxy_mounts(self._target.url, http),
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
        """Close the connections of this process."""
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

        ``model`` is ``name`` or ``name:version``, by default the server's default model.

        Raises:
            KaitenError: There is no valid response.

        """
        call = prediction_call(inputs, top_k, model)
        return self._run(CallState(call, self._target, timeout_s))

    def feedback(
        self,
        labels: Sequence[Label | tuple[str, int, str]],
        *,
        timeout_s: float | None = None,
    ) -> FeedbackResponse:
        """Send labels for earlier predictions; they are stored when this returns.

        Each names the ``request_id`` of the response, the position of the text in it, and the
        correct label. A label replaces an earlier one for the same text, so a repetition is safe.

        Raises:
            KaitenError: No label was stored, or the response was lost.

        """
        return self._run(CallState(feedback_call(labels), self._target, timeout_s))

    def ready(self, *, timeout_s: float | None = None) -> bool:
        """Return whether every model is ready; False also if the server cannot be reached.

        Raises:
            KaitenError: Waiting would not help, for example after a wrong path.

        """
        try:
            return self._run(CallState(readiness_call(), self._target, timeout_s))
        except KaitenError as error:
            if means_not_ready(error):
                return False
            raise

    def _run(self, state: CallState[T]) -> T:
        while True:
            attempt = state.next_attempt(
                self._current_token() if state.call.authenticated else None
            )
            outcome = self._send(state, attempt)
            try:
                verdict = state.judge(outcome)
            except UnexpectedAnswer:
                self._connections.discard()
                raise
            if isinstance(verdict, Done):
                return verdict.value
            self._target.timing.sleep(verdict.wait_s)

    def _current_token(self) -> str | None:
        return self._token() if callable(self._token) else self._token

    def _send(self, state: CallState[T], attempt: Attempt) -> Reply | httpx.RequestError:
        call, content = state.call, bytearray()
        try:
            with self._connections.get().stream(
                call.method,
                call.path,
                content=call.content,
                headers=attempt.headers,
                timeout=attempt.timeout,
            ) as response:
                # httpx limits each wait, not their sum; a response may trickle.
                for chunk in response.iter_bytes():
                    content += chunk
                    if state.is_over:
                        return httpx.ReadTimeout("the response was not complete in time")
        except httpx.RequestError as error:
            return error
        received_at = self._target.timing.epoch()
        return Reply(response.status_code, response.headers, bytes(content), received_at)
