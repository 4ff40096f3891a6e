"""The responses of calls. New fields are ignored; missing fields are errors."""

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class ScoredLabel(_Answer):
    """A label with its probability, from 0 to 1."""

    label: str
    index: int
    score: float


class Prediction(ScoredLabel):
    """The most probable label of a text, and the ``top_k`` of them, most probable first.

    ``truncated`` is true if the text was over the model's maximum length, and only a part was read.
    """

    top_k: tuple[ScoredLabel, ...]
    # Servers before 1.1 do not send it.
    truncated: bool = False


class FeedbackResponse(_Answer):
    """The number of labels that were stored, and of those that were joined with their predictions.

    A prediction is stored a second after its response, so other labels are joined later. A label
    for an unknown prediction is never joined.
    """

    accepted: int
    joined: int
    request_id: str


class PredictResponse(_Answer):
    """A prediction for each input, in order, and ``name:version`` of the model that answered."""

    model: str
    request_id: str
    predictions: tuple[Prediction, ...]
