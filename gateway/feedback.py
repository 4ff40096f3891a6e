"""Labels for what was answered, and what they say: the routes of both."""

from dataclasses import asdict, fields

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api_versions import FEEDBACK
from gateway.interfaces import QualityDesk
from gateway.parsing import check_count, read
from gateway.responses import json_answer
from gateway.schemas import (
    EstimatedAccuracy,
    FeedbackRequest,
    FeedbackResponse,
    ModelQuality,
    QualityResponse,
)
from kaiten.context import current
from kaiten.errors import Forbidden, Unauthenticated
from kaiten.feedback import Label, Measures, VersionQuality
from kaiten.settings.models import GatewaySettings

_NOTHING = {each.name: None for each in fields(Measures)} | {"labelled": 0}


class QualityRoutes:
    """The handlers."""

    def __init__(self, desk: QualityDesk, limits: GatewaySettings) -> None:
        self._desk = desk
        self._limits = limits

    def direct(self) -> dict[str, ASGIApp]:
        """Return the handlers that the edge calls itself, by path."""
        return {FEEDBACK: self.feedback}

    def routes(self) -> list[Route]:
        """Return the routes to stand beside all others."""
        return [Route("/ops/quality", self.quality)]

    async def feedback(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep labels; the body comes whole, from the middleware that has read it."""
        body = await read((await receive())["body"], FeedbackRequest, self._limits)
        check_count("feedback", body.feedback, self._limits)
        context = current()
        if context.principal is None:
            raise Unauthenticated(token_sent=False)
        labels = [Label(each.request_id, each.item, each.label) for each in body.feedback]
        models = context.principal.labelled_models
        if models is not None and not models:
            # Of an issuer's own scopes, none that names a model.
            raise Forbidden("feedback")
        joined = await self._desk.take(labels, models, context.deadline, context.principal.identity)
        answer = FeedbackResponse(
            accepted=len(labels), joined=joined, request_id=context.request_id
        )
        await json_answer(answer)(scope, receive, send)

    async def quality(self, _: Request) -> Response:
        """Tell what is known of each version: the same from every worker that serves it.

        A host that does not serve a version has no calibration of it, and gives no estimate.
        """
        found = await self._desk.read(current().deadline)
        return json_answer(QualityResponse(models=[*map(_told, found)]))


def _told(found: VersionQuality) -> ModelQuality:
    estimate = found.estimate and EstimatedAccuracy.model_validate(found.estimate)
    measures = asdict(found.measures) if found.measures else _NOTHING
    return ModelQuality(
        model=found.model,
        version=found.version,
        arm=found.arm,
        estimate=estimate,
        reference=found.reference,
        reason=found.reason,
        **measures,
    )
