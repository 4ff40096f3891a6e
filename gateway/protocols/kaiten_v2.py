"""Version 2 of the API: several texts, the most probable labels of each, models and feedback."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FailFast, Field
from pydantic_core import to_json

from gateway import feedback
from gateway.api_versions import NEGOTIATED_PATH
from gateway.exchange import Exchange
from gateway.interfaces import Classified
from gateway.parsing import check_count
from gateway.responses import JsonResponse
from gateway.routes import RouteKind, RouteSpec
from gateway.schemas import TRUNCATED, VISIBLE, Body, InputText, Text, Whole
from gateway.services import Services
from kaiten import model_tags
from kaiten.errors import DatabaseUnavailable, InferenceFailed, QueueFull, UnknownModel
from kaiten.settings.models import MAX_INPUTS

# Labels that are ranked and written, a microsecond each, before other requests run.
_RANKED_AT_ONCE = 2000
_EXAMPLES = ["Where is my parcel?", "I forgot my password"]


class PredictV2Request(Body):
    """Several texts, and how many labels to return for each."""

    # The whole body: a page that fills in each field would name a model that is not served.
    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": [*_EXAMPLES]}]})
    punctuation_per_item: ClassVar[int] = 1
    # The first bad item is enough: a body of a million would take seconds to list.
    inputs: Annotated[list[InputText], FailFast()] = Field(
        min_length=1,
        # Whatever the settings allow: more are rejected before each is looked at.
        max_length=MAX_INPUTS,
        description=f"The texts to classify. {VISIBLE}",
        examples=[_EXAMPLES],
        json_schema_extra={"maxItems": "max_inputs"},
    )
    top_k: Whole = Field(1, ge=1, description="How many labels to give for each text.")
    model: Text | None = Field(
        None,
        description="name or name:version of a served model; the first served if left out.",
    )


class ScoredLabel(BaseModel):
    """A label with its probability."""

    label: str
    index: int
    score: float = Field(ge=0, le=1)


class Prediction(ScoredLabel):
    """The most probable label of a text, and the top_k of them, most probable first."""

    top_k: list[ScoredLabel]
    truncated: bool = Field(default=False, description=TRUNCATED)


class PredictV2Response(BaseModel):
    """A prediction for each input, in order."""

    model: str = Field(description="name:version of the model that answered.")
    request_id: str
    predictions: list[Prediction]


class ServedVersion(BaseModel):
    """A version that serves."""

    model: str = Field(description="name:version, as a request may name it.")
    name: str
    version: str
    labels: list[str] = Field(description="In the order of their indices.")
    default: bool = Field(description="Whether it answers requests that name no model.")
    ready: bool = Field(description="Whether it is warm and can answer.")


class ModelsResponse(BaseModel):
    """The versions that the caller may use, the default first."""

    models: list[ServedVersion]


async def list_models(exchange: Exchange, services: Services) -> ModelsResponse:
    """Return the versions that serve and that the caller may use."""
    versions = []
    for place, runner in enumerate(services.prediction.runners):
        if exchange.caller.may_predict(runner.model_tag):
            name, version = model_tags.split(runner.model_tag)
            served = ServedVersion(
                model=runner.model_tag,
                name=name,
                version=version,
                labels=[*runner.labels],
                default=place == 0,
                ready=runner.ready,
            )
            versions.append(served)
    return ModelsResponse(models=versions)


async def predict(exchange: Exchange, services: Services, body: PredictV2Request) -> JsonResponse:
    """Classify several texts."""
    check_count("inputs", body.inputs, services.settings.gateway)
    result = await services.prediction.predict(
        exchange, body.inputs, lambda index: f"inputs.{index}", body.model
    )
    head = to_json({"model": result.model_tag, "request_id": exchange.request_id})
    predictions = await _predictions(result.answers, result.labels, body.top_k)
    return JsonResponse(b'%s,"predictions":[%s]}' % (head.removesuffix(b"}"), predictions))


async def _predictions(answers: Sequence[Classified], labels: Sequence[str], top_k: int) -> bytes:
    """Return the JSON of a Prediction for each answer; other requests run in between."""
    predictions = []
    ranked = 0
    for answer in answers:
        if ranked >= _RANKED_AT_ONCE:
            await asyncio.sleep(0)
            ranked = 0
        predictions.append(_prediction(answer, labels, top_k))
        ranked += min(top_k, len(labels))
    return b",".join(predictions)


def _prediction(answer: Classified, labels: Sequence[str], top_k: int) -> bytes:
    order = [answer.index]
    if top_k > 1:
        # A stable sort, so that equal scores come in the order of the labels.
        order = np.argsort(-answer.scores, kind="stable")[:top_k].tolist()
    # Plain values: a model for each label would cost ten times as much.
    ranked = [
        {"label": labels[index], "index": index, "score": float(answer.scores[index])}
        for index in order
    ]
    return to_json({**ranked[0], "top_k": ranked, "truncated": answer.truncated})


PREDICT = RouteSpec(
    method="POST",
    path="/api/v2/predict",
    scope="predict",
    kind=RouteKind.MODEL,
    handler=predict,
    summary="Classify several texts",
    request=PredictV2Request,
    response=PredictV2Response,
    errors=frozenset({UnknownModel, QueueFull, InferenceFailed}),
    api_version="2",
    negotiated_path=NEGOTIATED_PATH,
)
ROUTES = (
    PREDICT,
    RouteSpec(
        method="GET",
        path="/api/v2/models",
        scope="predict",
        kind=RouteKind.MODEL,
        handler=list_models,
        summary="List the versions that serve, with their labels",
        response=ModelsResponse,
        api_version="2",
    ),
    RouteSpec(
        method="POST",
        path="/api/v2/feedback",
        scope="feedback",
        kind=RouteKind.MODEL,
        handler=feedback.take_labels,
        summary="Say what texts should have been answered with",
        request=feedback.FeedbackRequest,
        response=feedback.FeedbackResponse,
        errors=frozenset({DatabaseUnavailable}),
        api_version="2",
        exposure=feedback.exposure,
    ),
)
