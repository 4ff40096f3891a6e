"""Answers every failure in the one envelope: ours, and those that BentoML words in its own way."""

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import FIRST_ERROR_STATUS, error_response, foreign_response
from kaiten.context import current
from kaiten.errors import ClientDisconnected, KaitenError, OutOfDescriptors
from kaiten.files import is_out_of_descriptors

logger = structlog.get_logger(__name__)
# uvloop's words, in an error of no type of its own.
_CONNECTION_CLOSED = "the handler is closed"


class ErrorsMiddleware:
    """The one place where a failure gets its form."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send = _to_a_caller(send)
        answer = _Answer(send)
        try:
            _raise_refusal()
            await self._app(scope, receive, answer.send)
        except Exception as caught:
            error = OutOfDescriptors() if is_out_of_descriptors(caught) else caught
            if not isinstance(error, KaitenError):
                logger.exception("request_failed")
            if answer.started:
                # The status is out; cutting the connection is the only honest end.
                raise
            await error_response(error)(scope, receive, send)
            _drop_frames(error)
        else:
            if answer.foreign is not None:
                headers = Headers(raw=answer.foreign["headers"])
                await foreign_response(answer.foreign["status"], headers)(scope, receive, send)


def _to_a_caller(send: Send) -> Send:
    """Return a send that raises ClientDisconnected where there is no connection any more.

    uvicorn itself drops what is sent to a caller who has left, but it tells only the last of a
    connection's requests that one has: the first of two on a connection that ends, because of its
    caller or of bytes that are no HTTP, writes to it still.
    """

    async def send_on(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            if _CONNECTION_CLOSED in str(error):
                raise ClientDisconnected from None
            raise

    return send_on


def _drop_frames(error: BaseException) -> None:
    """Drop the frames that an error has passed through, and those of what led to it.

    They refer to the error in turn. Only the garbage collector would free them, with all that a
    request holds, and collecting thousands of refusals holds the event loop for 100 ms and more.
    """
    passed: BaseException | None = error
    while passed is not None:
        passed.__traceback__ = None
        passed = passed.__context__


def _raise_refusal() -> None:
    """Raise what a middleware further out has refused."""
    refusal = current().refusal
    if refusal is not None:
        raise refusal


class _Answer:
    """Passes an answer on, but holds back a failure that is not in the envelope.

    It waits until the app is done: Starlette answers an exception in its own words, and then raises
    it on to us.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.foreign: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= FIRST_ERROR_STATUS and not current().enveloped:
                self.foreign = message
            else:
                self.started = True
        if self.started:
            await self._send(message)
