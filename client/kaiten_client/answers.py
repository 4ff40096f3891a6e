"""What a call returns. What a newer server adds is passed over; what is missing is an error."""

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

    ``truncated`` says that the text was over the model's maximum length, and only a part of it was
    read.
    """

    top_k: tuple[ScoredLabel, ...]
    # Servers before 1.1 do not say.
    truncated: bool = False


class FeedbackResponse(_Answer):
    """How many labels are kept, all that were sent, and how many have found their answers.

    The others wait, as an answer is written a second after it is given; a label for none waits in
    vain.
    """

    accepted: int
    joined: int
    request_id: str


class PredictResponse(_Answer):
    """A prediction for each input, in order, and ``name:version`` of the model that answered."""

    model: str
    request_id: str
    predictions: tuple[Prediction, ...]
