"""The calls of a server, each with its route, its body and the reader of its response. No I/O."""

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
_NOT_SENT = "The request is invalid and was not sent; see details."


class Label(NamedTuple):
    """The correct label of the text at position ``item`` of a request."""

    request_id: str
    item: int
    label: str


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request without the parts that differ between attempts; ``read`` parses a 200."""

    method: str
    path: str
    request_id: str
    read: Callable[[Reply, str], T]
    content: bytes | None = field(default=None, repr=False)
    # Whether it carries a credential, and is safe to repeat.
    authenticated: bool = False


def prediction_call(inputs: Sequence[str], top_k: int, model: str | None) -> Call[PredictResponse]:
    """Return the call that classifies texts; InvalidRequest if the inputs are not texts."""
    request_id = uuid.uuid4().hex
    texts = _check_texts(inputs, request_id)
    body = {"inputs": texts, "top_k": top_k} | ({} if model is None else {"model": model})
    # A lone surrogate becomes its JSON escape, so that the server can name the text that holds it.
    content = json.dumps(body, ensure_ascii=False).encode(errors="backslashreplace")
    read = partial(read_predictions, count=len(texts))
    return Call("POST", PREDICT, request_id, read, content, authenticated=True)


def feedback_call(labels: Sequence[Label | tuple[str, int, str]]) -> Call[FeedbackResponse]:
    """Return the call that sends labels for earlier predictions."""
    request_id = uuid.uuid4().hex
    items = [
        {"request_id": of, "item": item, "label": label}
        for of, item, label in _check_labels(labels, request_id)
    ]
    content = json.dumps({"feedback": items}, ensure_ascii=False).encode(errors="backslashreplace")
    read = partial(read_feedback, count=len(items))
    return Call("POST", FEEDBACK, request_id, read, content, authenticated=True)


def readiness_call() -> Call[bool]:
    """Return the call that asks whether every model is ready; it needs no credential."""
    return Call("GET", READY, uuid.uuid4().hex, lambda _reply, _id: True)


def means_not_ready(error: KaitenError) -> bool:
    """Return whether waiting may help: the server starts, or a proxy cannot reach it."""
    waiting_helps = isinstance(error, ConnectionFailed | TimedOut | Unavailable)
    return waiting_helps or error.status == HTTPStatus.BAD_GATEWAY


def _check_labels(
    labels: Sequence[Label | tuple[str, int, str]], request_id: str
) -> list[tuple[str, int, str]]:
    """Return the labels as a list; InvalidRequest if one is malformed."""
    details = [
        Detail(f"feedback.{index}", "is not a tuple of request id, position and label")
        for index, label in enumerate(labels)
        if not isinstance(label, tuple) or [*map(type, label)] != [str, int, str]
    ]
    if details:
        raise InvalidRequest(_NOT_SENT, details=details[:_MAX_DETAILS], request_id=request_id)
    return list(labels)


def _check_texts(inputs: Sequence[str], request_id: str) -> list[str]:
    """Return the inputs as a list. A single string, itself a sequence of strings, is an error."""
    if isinstance(inputs, str):
        details = [Detail("inputs", "is a single text; send a list of texts")]
    else:
        details = [
            Detail(f"inputs.{index}", f"is of type {type(text).__name__}, not a text")
            for index, text in enumerate(inputs)
            if not isinstance(text, str)
        ]
    if details:
        raise InvalidRequest(_NOT_SENT, details=details[:_MAX_DETAILS], request_id=request_id)
    return list(inputs)
