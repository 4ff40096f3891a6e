"""Answers every failure in the form of its route."""

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import STATUS_AND_CODE, error_response
from gateway.exchange import exchange_of
from gateway.security_log import log_refusal
from kaiten.errors import OutOfDescriptors
from kaiten.files import is_out_of_descriptors

logger = structlog.get_logger(__name__)


class ErrorsMiddleware:
    """The one place where an exception becomes an answer, and a refusal is logged."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope)
        try:
            await self._app(scope, receive, send)
        except Exception as caught:
            error = OutOfDescriptors() if is_out_of_descriptors(caught) else caught
            if type(error) not in STATUS_AND_CODE:
                logger.exception("request_failed")
            if exchange.started:
                # The status is out; cutting the connection is the only honest end.
                raise
            render = exchange.spec.render_error if exchange.spec else error_response
            log_refusal(error)
            await render(error)(scope, receive, send)
            _drop_frames(caught)


def _drop_frames(error: BaseException) -> None:
    """Drop the frames that an error has passed through, and those of what led to it.

    They refer to the error in turn. Only the garbage collector would free them, with all that a
    request holds, and collecting thousands of rejections holds the event loop for 100 ms and more.
    """
    passed: BaseException | None = error
    while passed is not None:
        passed.__traceback__ = None
        passed = passed.__context__
