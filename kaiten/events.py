"""What monitoring keeps of an answer: measures of the text, never the text."""

from string import ascii_uppercase
from typing import NamedTuple, Protocol

# In the folder of a validation's report: the profile of its answers, which drift is told from.
REFERENCE_FILE = "reference.bin"
# Where an answer comes from that goes to its caller.
PRODUCTION = "production"
_UPPER_CASE = ascii_uppercase.encode()


class Answer(Protocol):
    """What a runner tells of one text."""

    @property
    def tokens(self) -> int: ...
    @property
    def unknown_tokens(self) -> int: ...
    @property
    def confidence(self) -> float: ...
    @property
    def entropy(self) -> float: ...
    @property
    def distance(self) -> float | None: ...


class PredictionRecord(NamedTuple):
    """One answered input.

    ``item`` is its place in the request, ``subject`` who asked (Principal.identity). Shares are
    from 0 to 1: of the tokens, those that the vocabulary does not know; of the characters, those
    outside ASCII, and its capitals. ``entropy`` is that of the probabilities, in nats;
    ``distance`` the embedding's to the nearest reference centroid, None where there is none.
    """

    request_id: str
    item: int
    subject: str
    model: str
    arm: str
    text_length: int
    token_count: int
    unknown_share: float
    non_ascii_share: float
    upper_case_share: float
    label: str
    confidence: float
    entropy: float
    distance: float | None


class Origin(NamedTuple):
    """Whose answer it is, and what answers."""

    request_id: str
    subject: str
    model: str
    arm: str = PRODUCTION


def record(origin: Origin, item: int, text: str, label: str, answer: Answer) -> PredictionRecord:
    """Return what is kept of an answer."""
    length = len(text)
    ascii_only = text.encode("ascii", "ignore")
    capitals = len(ascii_only) - len(ascii_only.translate(None, _UPPER_CASE))
    return PredictionRecord(
        request_id=origin.request_id,
        item=item,
        subject=origin.subject,
        model=origin.model,
        arm=origin.arm,
        text_length=length,
        token_count=answer.tokens,
        unknown_share=answer.unknown_tokens / answer.tokens if answer.tokens else 0.0,
        non_ascii_share=(length - len(ascii_only)) / length if length else 0.0,
        upper_case_share=capitals / length if length else 0.0,
        label=label,
        confidence=answer.confidence,
        entropy=answer.entropy,
        distance=answer.distance,
    )
