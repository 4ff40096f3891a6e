"""From body bytes to a checked request, and from pydantic's errors to ours."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from gateway.schemas import Body
from kaiten.errors import Detail, InvalidInput, MalformedBody
from kaiten.sections import Gateway

BodyT = TypeVar("BodyT", bound=Body)
# More would only make the answer long.
_MAX_DETAILS = 20


def parse(body: bytes, model: type[BodyT]) -> BodyT:
    """Return the checked request; MalformedBody or InvalidInput, which name the field."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = _errors(error)
    if found[0]["type"] != "json_invalid":
        raise _invalid(found)
    # pydantic's parser also refuses what is JSON but no Unicode, such as a lone surrogate, and can
    # not say where. The standard one reads it, so that the check can name the field.
    value = _load(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(_errors(error)) from None


def check_count(texts: Sequence[str], limits: Gateway) -> None:
    """Raise InvalidInput if there are more texts than one request may bring."""
    if len(texts) > limits.max_inputs:
        raise InvalidInput([Detail("inputs", f"has over {limits.max_inputs} items")])


def check_lengths(texts: Mapping[str, str], limits: Gateway) -> None:
    """Raise InvalidInput if a text is too long; ``texts`` by the path of its field."""
    details = [
        Detail(field, f"has over {limits.max_text_chars} characters")
        for field, text in texts.items()
        if len(text) > limits.max_text_chars
    ]
    if details:
        raise InvalidInput(details[:_MAX_DETAILS])


def _load(body: bytes) -> Any:  # noqa: ANN401  whatever JSON holds
    try:
        # Decoded first: json.loads would guess other encodings, and let surrogates through.
        return json.loads(body.decode())
    except UnicodeDecodeError:
        raise MalformedBody("is not UTF-8") from None
    except json.JSONDecodeError as error:
        reason = f"at line {error.lineno}, column {error.colno}: {error.msg}"
        raise MalformedBody(reason) from None
    except (RecursionError, ValueError):
        raise MalformedBody("is nested too deep, or holds a number that is too long") from None


def _errors(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def _invalid(found: Sequence[ErrorDetails]) -> InvalidInput:
    return InvalidInput([_detail(each) for each in found[:_MAX_DETAILS]])


def _detail(error: ErrorDetails) -> Detail:
    # An unknown field's name is the caller's own text: cut, and in ASCII, so that it may be shown.
    field = ".".join(str(part)[:80] for part in error["loc"]) or "body"
    reason = error["msg"].removeprefix("Value error, ")
    return Detail(field.encode("ascii", "backslashreplace").decode(), reason)
