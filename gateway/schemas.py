"""The wire contract: what each route takes and gives."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    WithJsonSchema,
)

from kaiten.settings.models import MAX_INPUTS
from kaiten.text import MAX_LABEL_CHARS, text_problem


def _is_text(value: str) -> str:
    if problem := text_problem(value):
        raise ValueError(problem)
    return value


# The same for the document, but for texts of invisible characters alone. It is spelled out: what
# counts as a space differs from one dialect of regular expressions to the next.
_SPACES = r"\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
TEXT_PATTERN = rf"^[^\u0000]*[^\u0000{_SPACES}][^\u0000]*$"
Text = Annotated[
    str,
    AfterValidator(_is_text),
    WithJsonSchema({"type": "string", "pattern": TEXT_PATTERN}),
]


def _whole(value: object) -> object:
    """Return 2 for 2.0: JSON has one kind of number, and its Schema takes both for an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


# Room for repeated and unknown keys, which validation then names.
_SPARE_PUNCTUATION = 64


class Body(BaseModel):
    """A request body: exact types, no unknown fields.

    ``punctuation_per_item`` is how many of the characters ``, : [ {`` outside strings each item of
    the body takes.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    punctuation_per_item: ClassVar[int] = 0

    @classmethod
    def max_punctuation(cls, max_inputs: int) -> int:
        """Return the most such characters that a valid body of up to ``max_inputs`` items has."""
        return cls.punctuation_per_item * max_inputs + _SPARE_PUNCTUATION


class PredictV1Request(Body):
    """One text."""

    text: Text = Field(description="The text to classify.", examples=["Where is my parcel?"])


class PredictV2Request(Body):
    """Several texts, and how much to tell of each."""

    punctuation_per_item: ClassVar[int] = 1
    # The first bad item is enough: a body of a million would take seconds to list.
    inputs: Annotated[list[Text], FailFast()] = Field(
        min_length=1,
        # Whatever the settings allow: more are refused before each is looked at.
        max_length=MAX_INPUTS,
        description="The texts to classify.",
        examples=[["Where is my parcel?", "I forgot my password"]],
    )
    top_k: Whole = Field(1, ge=1, description="How many labels to give for each text.")
    model: Text | None = Field(
        None,
        description="name or name:version of a served model; the first served if left out.",
        examples=["support-intent"],
    )


_TRUNCATED = "The text was over the model's maximum length, and only a part of it was read."


class PredictV1Response(BaseModel):
    """The most probable label of the text."""

    result: int = Field(description="The label's index.")
    label: str
    confidence: float = Field(ge=0, le=1, description="The label's probability.")
    truncated: bool = Field(default=False, description=_TRUNCATED)
    model: str = Field(description="name:version of the model that answered.")
    request_id: str
    timestamp: datetime


class ScoredLabel(BaseModel):
    """A label with its probability."""

    label: str
    index: int
    score: float = Field(ge=0, le=1)


class Prediction(ScoredLabel):
    """The most probable label of a text, and the top_k of them, most probable first."""

    top_k: list[ScoredLabel]
    truncated: bool = Field(default=False, description=_TRUNCATED)


class PredictV2Response(BaseModel):
    """A prediction for each input, in order."""

    model: str = Field(description="name:version of the model that answered.")
    request_id: str
    predictions: list[Prediction]


# As middleware/request_context.py takes one.
REQUEST_ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
LabelText = Annotated[
    str,
    Field(max_length=MAX_LABEL_CHARS),
    AfterValidator(_is_text),
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
    feedback: Annotated[list[FeedbackItem], FailFast()] = Field(min_length=1, max_length=MAX_INPUTS)


class FeedbackResponse(BaseModel):
    """All labels are kept, and stay so."""

    accepted: int = Field(ge=1)
    joined: int = Field(
        ge=0, description="How many have found their answers; the others wait for theirs."
    )
    request_id: str


class EstimatedAccuracy(BaseModel):
    """The accuracy to expect without labels, over the latest rows, with its 95 % interval."""

    model_config = ConfigDict(from_attributes=True)

    accuracy: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    rows: int = Field(ge=1)
    error: float = Field(ge=0, description="The mean absolute error, as measured at validation.")
    error_rows: int = Field(ge=1, description="Answers in each window that it was measured on.")
    error_windows: int = Field(ge=1, description="How many windows those were.")


class ModelQuality(BaseModel):
    """What is known of a version in an arm; null without labels, or without a calibration.

    The same from every worker of every host, but that a host which does not serve the version
    estimates nothing.
    """

    model: str
    version: str
    arm: str
    labelled: int = Field(ge=0, description="Labelled answers that the measures are of.")
    first_at: datetime | None
    last_at: datetime | None
    accuracy: float | None
    precision: float | None = Field(description="The mean over labels, as recall and f1.")
    recall: float | None
    f1: float | None
    estimate: EstimatedAccuracy | None
    observed_error: float | None = Field(
        description="How far an estimate for the labelled answers is from their accuracy."
    )
    reference: str | None = Field(description="The validation report that estimates are made by.")
    reason: str | None = Field(description="Why there is no estimate.")


class QualityResponse(BaseModel):
    """Every version that has answered, by name, version and arm."""

    models: list[ModelQuality]


class HealthResponse(BaseModel):
    """The service can answer; where it can not, the answer is a 503 in the error envelope."""

    status: Literal["healthy"]
    timestamp: datetime


class RouteStats(BaseModel):
    """What a route has answered; times are of its successful answers, null where it had none.

    They run from the end of the request's headers to the end of the answer; a percentile is within
    1 % of the time of the answer that stands there.
    """

    route: str
    count: int = Field(ge=0, description="Successful answers (2xx).")
    errors: dict[str, int] = Field(
        description="All other answers, by status; 499 where the caller had left."
    )
    mean_ms: float | None
    min_ms: float | None
    max_ms: float | None
    p50_ms: float | None
    p90_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class StatsResponse(BaseModel):
    """Each route's answers since the server started, over all workers, those gone as well."""

    since: datetime
    routes: list[RouteStats]


class _Kept(BaseModel):
    """What is read from an object that is kept elsewhere."""

    model_config = ConfigDict(from_attributes=True)


class FeatureDrift(_Kept):
    """How far a feature of the answers is off, as the last window or the last two tell."""

    name: str
    drifted: bool
    effect: float = Field(ge=0, le=1, description="The size of the difference.")
    p_value: float = Field(
        ge=0, le=1, description="Of no difference at all; corrected for all features."
    )
    windows: int = Field(ge=1, le=2, description="How many windows these figures are of.")
    details: dict[str, float | str]


class DriftWindow(_Kept):
    """The last window; drift is told where its p-value is at most its level."""

    rows: int = Field(ge=1)
    started_at: datetime
    ended_at: datetime
    p_value: float | None
    level: float | None


class VersionDrift(_Kept):
    """Whether the answers of a version are still like those that it was validated on."""

    model: str
    version: str
    arm: str
    drifted: bool | None = Field(description="null where there is no reference; see reason.")
    since: datetime | None
    reference: str | None = Field(description="The validation report that holds it.")
    reference_rows: int | None = Field(
        description="How many rows it has: with few, only large changes can be told."
    )
    reason: str | None
    windows: int = Field(ge=0, description="How many windows were judged.")
    window: DriftWindow | None
    features: list[FeatureDrift] = Field(description="Likely causes first.")


class DriftResponse(BaseModel):
    """The drift of each served version: the same from every worker."""

    models: list[VersionDrift]


class ErrorDetail(BaseModel):
    """One thing that is wrong."""

    field: str
    reason: str


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str
    message: str
    details: list[ErrorDetail]
    request_id: str


class ErrorEnvelope(BaseModel):
    """The one form of every failure."""

    error: ErrorBody
