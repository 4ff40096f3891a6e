"""Feedback: labels that callers send for earlier predictions."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, FailFast, Field, WithJsonSchema

from gateway.exchange import Exchange
from gateway.parsing import check_count
from gateway.schemas import REQUEST_ID_PATTERN, TEXT_PATTERN, Body, Whole, check_text
from gateway.services import Services
from kaiten.errors import Forbidden
from kaiten.feedback import Label
from kaiten.settings.loader import Settings
from kaiten.settings.models import MAX_INPUTS, Exposure
from kaiten.text import MAX_LABEL_CHARS

LabelText = Annotated[
    str,
    Field(max_length=MAX_LABEL_CHARS),
    AfterValidator(check_text),
    WithJsonSchema({"type": "string", "pattern": TEXT_PATTERN, "maxLength": MAX_LABEL_CHARS}),
]


class FeedbackItem(Body):
    """The label that a text of an earlier request should have been given."""

    request_id: str = Field(
        pattern=REQUEST_ID_PATTERN, description="The X-Request-ID of the answer."
    )
    item: Whole = Field(
        0, ge=0, lt=MAX_INPUTS, description="The place of the text in the request's inputs."
    )
    label: LabelText = Field(description="One of the model's labels.", examples=["order_status"])


class FeedbackRequest(Body):
    """Labels for texts that were answered; a later one takes an earlier one's place."""

    # `{"request_id": …, "item": …, "label": …},`
    punctuation_per_item: ClassVar[int] = 7
    feedback: Annotated[list[FeedbackItem], FailFast()] = Field(
        min_length=1, max_length=MAX_INPUTS, json_schema_extra={"maxItems": "max_inputs"}
    )


class FeedbackResponse(BaseModel):
    """All labels are kept, and stay so."""

    accepted: int = Field(ge=1)
    joined: int = Field(
        ge=0, description="How many have found their answers; the others wait for theirs."
    )
    request_id: str


async def take_labels(
    exchange: Exchange, services: Services, body: FeedbackRequest
) -> FeedbackResponse:
    """Store labels."""
    check_count("feedback", body.feedback, services.settings.gateway)
    caller = exchange.caller
    models = caller.labelled_models
    if models is not None and not models:
        # Of an issuer's own scopes, none that names a model.
        raise Forbidden("feedback")
    labels = [Label(item.request_id, item.item, item.label) for item in body.feedback]
    joined = await services.feedback.take(labels, models, exchange.deadline, caller.identity)
    return FeedbackResponse(accepted=len(labels), joined=joined, request_id=exchange.request_id)


def exposure(settings: Settings) -> Exposure:
    """Close the routes of feedback if predictions are not stored."""
    return "open" if settings.feedback.enabled else "closed"
