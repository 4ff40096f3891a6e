"""What can be asked of a server: each call with its route, its body and its reader. No I/O."""

import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Generic, NamedTuple, TypeVar

from kaiten_client.answers import FeedbackResponse, PredictResponse
from kaiten_client.errors import (
    ConnectionFailed,
    Detail,
    InvalidRequest,
    KaitenError,
    TimedOut,
    Unavailable,
)
from kaiten_client.replies import Reply, read_feedback, read_predictions

T = TypeVar("T")
PREDICT = "/api/v2/predict"
FEEDBACK = "/api/v2/feedback"
READY = "/readyz"
_MAX_DETAILS = 20
_NOT_SENT = "The request is not valid, and was not sent."


class Label(NamedTuple):
    """What the text at place ``item`` of a request should have been answered with."""

    request_id: str
    item: int
    label: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, but for what differs from try to try; ``read`` reads a 200, given the id."""

    method: str
    path: str
    request_id: str
    read: Callable[[Reply, str], T]
    content: bytes | None = field(default=None, repr=False)
    # Whether it shows who calls, and may be repeated.
    authenticated: bool = False


def prediction(inputs: Sequence[str], top_k: int, model: str | None) -> Call[PredictResponse]:
    """Return the call that classifies texts; InvalidRequest if they are none."""
    request_id = uuid.uuid4().hex
    texts = _texts(inputs, request_id)
    body = {"inputs": texts, "top_k": top_k} | ({} if model is None else {"model": model})
    # A lone surrogate becomes its JSON escape, so that the server can name the text that holds it.
    content = json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace")
    read = partial(read_predictions, count=len(texts))
    return Call("POST", PREDICT, request_id, read, content, authenticated=True)


def labelling(labels: Sequence[Label | tuple[str, int, str]]) -> Call[FeedbackResponse]:
    """Return the call that says what texts should have been answered with."""
    request_id = uuid.uuid4().hex
    items = [
        {"request_id": of, "item": item, "label": label}
        for of, item, label in _told(labels, request_id)
    ]
    content = json.dumps({"feedback": items}, ensure_ascii=False).encode(errors="backslashreplace")
    read = partial(read_feedback, count=len(items))
    return Call("POST", FEEDBACK, request_id, read, content, authenticated=True)


def readiness() -> Call[bool]:
    """Return the call that asks whether every model can answer; anybody may ask it."""
    return Call("GET", READY, uuid.uuid4().hex, lambda _reply, _id: True)


def means_not_ready(error: KaitenError) -> bool:
    """Tell whether waiting may mend it: a server that starts, or a proxy that finds none."""
    waiting_helps = isinstance(error, ConnectionFailed | TimedOut | Unavailable)
    return waiting_helps or error.status == HTTPStatus.BAD_GATEWAY


def _told(
    labels: Sequence[Label | tuple[str, int, str]], request_id: str
) -> list[tuple[str, int, str]]:
    """Return the labels as a list; InvalidRequest for what is none."""
    details = [
        Detail(f"feedback.{index}", "is not a request id, a place and a label")
        for index, each in enumerate(labels)
        if not isinstance(each, tuple) or [*map(type, each)] != [str, int, str]
    ]
    if details:
        raise InvalidRequest(_NOT_SENT, details=details[:_MAX_DETAILS], request_id=request_id)
    return list(labels)


def _texts(inputs: Sequence[str], request_id: str) -> list[str]:
    """Return the inputs as a list. A string is a sequence of strings, but surely not meant so."""
    if isinstance(inputs, str):
        details = [Detail("inputs", "is one text; send a list of texts")]
    else:
        details = [
            Detail(f"inputs.{index}", f"is no text but of type {type(text).__name__}")
            for index, text in enumerate(inputs)
            if not isinstance(text, str)
        ]
    if details:
        raise InvalidRequest(_NOT_SENT, details=details[:_MAX_DETAILS], request_id=request_id)
    return list(inputs)
