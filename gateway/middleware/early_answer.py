"""Runs the app that gateway/admission.py has chosen, inside the layers that every answer passes."""

from starlette.types import ASGIApp, Receive, Scope, Send

# The scope's key for the app that answers the request.
EARLY_ANSWER = "kaiten.early_answer"


class EarlyAnswerMiddleware:
    """Answers with the app that admission put into the scope, if any, else calls the next app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope.get(EARLY_ANSWER, self._app)(scope, receive, send)
