"""Version 1 of the API: one text, one label."""

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from gateway.api_versions import NEGOTIATED_PATH
from gateway.exchange import Exchange
from gateway.routes import RouteKind, RouteSpec
from gateway.schemas import TRUNCATED, VISIBLE, Body, InputText
from gateway.services import Services
from kaiten.errors import InferenceFailed, QueueFull


class PredictV1Request(Body):
    """One text."""

    text: InputText = Field(
        description=f"The text to classify. {VISIBLE}", examples=["Where is my parcel?"]
    )


class PredictV1Response(BaseModel):
    """The most probable label of the text."""

    result: int = Field(description="The label's index.")
    label: str
    confidence: float = Field(ge=0, le=1, description="The label's probability.")
    truncated: bool = Field(default=False, description=TRUNCATED)
    model: str = Field(description="name:version of the model that answered.")
    request_id: str
    timestamp: datetime


async def predict(
    exchange: Exchange, services: Services, body: PredictV1Request
) -> PredictV1Response:
    """Classify one text with the default model."""
    result = await services.prediction.predict(exchange, [body.text], lambda _: "text")
    (answer,) = result.answers
    return PredictV1Response(
        result=answer.index,
        label=result.labels[answer.index],
        confidence=answer.confidence,
        truncated=answer.truncated,
        model=result.model_tag,
        request_id=exchange.request_id,
        timestamp=datetime.now(UTC),
    )


ROUTES = (
    RouteSpec(
        method="POST",
        path="/api/v1/predict",
        scope="predict",
        kind=RouteKind.MODEL,
        handler=predict,
        summary="Classify one text",
        request=PredictV1Request,
        response=PredictV1Response,
        errors=frozenset({QueueFull, InferenceFailed}),
        api_version="1",
        negotiated_path=NEGOTIATED_PATH,
    ),
)
