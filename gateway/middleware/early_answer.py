"""Runs the app that admission has chosen, inside the layers that every answer passes."""

from starlette.types import ASGIApp, Receive, Scope, Send

from kaiten.errors import KaitenError

# The scope's key for the app that answers the request.
EARLY_ANSWER = "kaiten.early_answer"


class Refusal:
    """An early answer that is an error, which ErrorsMiddleware puts into the envelope."""

    def __init__(self, error: KaitenError) -> None:
        self.error = error

    async def __call__(self, _: Scope, __: Receive, ___: Send) -> None:
        raise self.error


class EarlyAnswerMiddleware:
    """Answers with the app that admission put into the scope, if any, else calls the next app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope.get(EARLY_ANSWER, self._app)(scope, receive, send)
