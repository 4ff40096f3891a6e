"""The asyncio client, for web applications and concurrent requests."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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


class AsyncHttpOptions(HttpOptions, total=False):
    """HttpOptions, or a transport instead of their TLS and pool."""

    transport: httpx.AsyncBaseTransport


class AsyncClient:
    """The asyncio counterpart of Client; all tasks of an event loop may share one.

    ``token`` may also be a function that returns an awaitable. Close the client with ``aclose``, or
    use it in an ``async with``.
    """

    def __init__(  # noqa: PLR0913  options are keywords
        self,
        url: str,
        *,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        verify_request_id: bool = True,
        timing: Timing = Timing(),  # noqa: B008  it is frozen
        **http: Unpack[AsyncHttpOptions],
    ) -> None:
        target = make_target(url, token, api_key, timeout_s, retries, timing)
        self._target = replace(target, verify_request_id=verify_request_id)
        check_options(http)
        self._token = token
        create = partial(
            httpx.AsyncClient,
            base_url=self._target.url,
            follow_redirects=False,
            mounts=proxy_mounts(self._target.url, http),
            **http,
        )
        self._connections = Connections(create, recreatable="transport" not in http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of this process."""
        http = self._connections.owned()
        if http is not None:
            await http.aclose()

    async def predict(
        self,
        inputs: Sequence[str],
        *,
        top_k: int = 1,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> PredictResponse:
        """Return a prediction for each text, as Client.predict does."""
        call = prediction_call(inputs, top_k, model)
        return await self._run(CallState(call, self._target, timeout_s))

    async def feedback(
        self,
        labels: Sequence[Label | tuple[str, int, str]],
        *,
        timeout_s: float | None = None,
    ) -> FeedbackResponse:
        """Send labels for earlier predictions, as Client.feedback does."""
        return await self._run(CallState(feedback_call(labels), self._target, timeout_s))

    async def ready(self, *, timeout_s: float | None = None) -> bool:
        """Return whether every model is ready, as Client.ready does."""
        try:
            return await self._run(CallState(readiness_call(), self._target, timeout_s))
        except KaitenError as error:
            if means_not_ready(error):
                return False
            raise

    async def _run(self, state: CallState[T]) -> T:
        while True:
            token = await self._current_token() if state.call.authenticated else None
            outcome = await self._send(state, state.next_attempt(token))
            try:
                verdict = state.judge(outcome)
            except UnexpectedAnswer:
                self._connections.discard()
                raise
            if isinstance(verdict, Done):
                return verdict.value
            await self._target.timing.sleep_async(verdict.wait_s)

    async def _current_token(self) -> str | None:
        token = self._token() if callable(self._token) else self._token
        return token if token is None or isinstance(token, str) else await token

    async def _send(self, state: CallState[T], attempt: Attempt) -> Reply | httpx.RequestError:
        call = state.call
        try:
            # httpx limits each wait, not their sum.
            async with asyncio.timeout(attempt.limit_s):
                response = await self._connections.get().request(
                    call.method,
                    call.path,
                    content=call.content,
                    headers=attempt.headers,
                    timeout=attempt.timeout,
                )
        except TimeoutError:
            return httpx.ReadTimeout("the response was not complete in time")
        except httpx.RequestError as error:
            return error
        received_at = self._target.timing.epoch()
        return Reply(response.status_code, response.headers, response.content, received_at)
