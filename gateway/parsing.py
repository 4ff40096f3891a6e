"""Parses and validates request bodies, and translates pydantic's errors.

JSON parsers hold the GIL while they run, on any thread. So the number of values in a body is
bounded before it is parsed, and large bodies are parsed one at a time on a thread, with the event
loop running in between.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from gateway.schemas import Body
from kaiten.errors import Detail, InvalidInput, MalformedBody
from kaiten.model_kinds import SERVES, kind_of_field
from kaiten.settings.models import GatewaySettings
from kaiten.text import length_problem

BodyT = TypeVar("BodyT", bound=Body)
# More would only lengthen the response.
_MAX_DETAILS = 20
# Parsing so few bytes takes under a millisecond, about the cost of switching threads twice.
_INLINE_BYTES = 32 * 1024
# The fields with the inputs of models.
_TEXTS = {("text",), ("inputs",)}
_PUNCTUATION = (b",", b":", b"[", b"{")
_SPACES = b" \t\r\n"
# Outside strings. A valid body has two or three, or five with long numbers.
_BYTES_PER_PUNCTUATION = 64
_ANY_PUNCTUATION = re.compile(rb"[,:\[{]")
# A valid body nests three levels deep.
_MAX_DEPTH = 16
_thread = ThreadPoolExecutor(1, thread_name_prefix="parse")


async def read(body: bytes, model: type[BodyT], limits: GatewaySettings) -> BodyT:
    """Return the validated request as ``parse`` does, without blocking the event loop for long."""
    if len(body) <= _INLINE_BYTES:
        return parse(body, model, limits)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread, parse, body, model, limits)


def parse(body: bytes, model: type[BodyT], limits: GatewaySettings) -> BodyT:
    """Return the validated request.

    Raises:
        MalformedBody: The body is not JSON.
        InvalidInput: It is not a request of this model; the details name the fields.

    """
    excess_at = _excess_position(body, model.max_punctuation(limits.max_inputs))
    if excess_at is not None:
        raise _oversized(body[:excess_at], model, limits)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        errors = _errors(error)
    if errors[0]["type"] != "json_invalid":
        raise _invalid(errors)
    # pydantic's parser also refuses JSON with a lone surrogate, without naming the field. The
    # standard library parses it, so that validation can name the field.
    value = _load(body)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _invalid(_errors(error)) from None


def check_count(field: str, items: Sequence[object], limits: GatewaySettings) -> None:
    """Check the number of items in a field.

    Raises:
        InvalidInput: There are more than one request may have.

    """
    if len(items) > limits.max_inputs:
        raise InvalidInput([_too_many_items(field, limits)])


def check_lengths(
    texts: Sequence[str], field_of: Callable[[int], str], limits: GatewaySettings
) -> None:
    """Check the length of each text; ``field_of`` names the field of a text by its index.

    Raises:
        InvalidInput: A text has too many characters; the details name the fields.

    """
    details = [
        Detail(field_of(index), problem)
        for index, text in enumerate(texts)
        if (problem := length_problem(text, limits.max_text_chars))
    ]
    if details:
        raise InvalidInput(details[:_MAX_DETAILS])


def _excess_position(body: bytes, limit: int) -> int | None:
    """Return the position at which a body exceeds the structure of a valid one, None if it fits.

    Outside strings, a body may have ``limit`` of the characters ``, : [ {`` and a number of bytes
    in proportion. The check takes time in proportion to the body's bytes, not to its values: it
    consists of searches and copies, and of a bounded number of pieces.
    """
    if len(body) <= _INLINE_BYTES and not _may_exceed(body, limit):
        return None
    body = _without_escaped_quotes(body)
    left, bytes_left = limit, _BYTES_PER_PUNCTUATION * limit
    start = 0
    # JSON has one of the characters before each string.
    for number, piece in enumerate(body.split(b'"', 2 * limit + 1)):
        # Every other piece lies outside strings; one beyond the last split holds all the rest.
        if number > 2 * limit:
            return start
        if number % 2 == 0:
            dense = piece.translate(None, _SPACES)
            count = sum(map(dense.count, _PUNCTUATION))
            if count > left:
                return start + _nth(_ANY_PUNCTUATION.finditer(piece), left)
            left, bytes_left = left - count, bytes_left - len(dense)
            if bytes_left < 0:
                return start
        start += len(piece) + 1
    return None


def _may_exceed(body: bytes, limit: int) -> bool:
    """Return False for most valid bodies, by a cheap count that includes the insides of strings."""
    return sum(map(body.count, _PUNCTUATION)) > limit or body.count(b'"') > 2 * limit


def _without_escaped_quotes(body: bytes) -> bytes:
    """Return a body of the same length in which every quote delimits a string."""
    if b"\\" not in body:
        return body
    return body.replace(rb"\\", b"__").replace(rb"\"", b"__")


def _nth(matches: Iterator[re.Match[bytes]], number: int) -> int:
    return next(islice(matches, number, None)).start()


def _oversized(start: bytes, model: type[Body], limits: GatewaySettings) -> InvalidInput:
    """Return the error for a body that exceeds the limit after ``start``.

    Raises:
        MalformedBody: ``start`` is not the start of JSON.

    """
    outside = b"".join(_without_escaped_quotes(start).split(b'"')[::2])
    opened = outside.count(b"[") + outside.count(b"{")
    if opened - outside.count(b"]") - outside.count(b"}") > _MAX_DEPTH:
        raise MalformedBody("is nested too deep")
    try:
        value = from_json(start, allow_partial=True)
    except ValueError:
        value = _load(start)
    return InvalidInput(
        _details_of_start(value, model)
        or _long_lists(value, model, limits)
        or [Detail("body", "has more keys, items or digits than a valid request")]
    )


def _details_of_start(value: object, model: type[Body]) -> list[Detail]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        # A missing field may follow after the start.
        present = [item for item in _errors(error) if item["type"] != "missing"]
        return [*map(_detail, present[:_MAX_DETAILS])]
    return []


def _long_lists(value: object, model: type[Body], limits: GatewaySettings) -> list[Detail]:
    fields = value if isinstance(value, dict) else {}
    return [
        _too_many_items(name, limits)
        for name in model.model_fields
        if isinstance(items := fields.get(name), list) and len(items) > limits.max_inputs
    ]


def _too_many_items(field: str, limits: GatewaySettings) -> Detail:
    return Detail(field, f"has over {limits.max_inputs} items")


def _load(body: bytes) -> Any:  # noqa: ANN401  any JSON value
    try:
        # Decoded first: json.loads would guess other encodings and accept surrogates.
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


def _invalid(errors: Sequence[ErrorDetails]) -> InvalidInput:
    return InvalidInput([_detail(error) for error in errors[:_MAX_DETAILS]])


def _detail(error: ErrorDetails) -> Detail:
    # The caller chose the name of an unknown field: shorten it and escape all but ASCII.
    field = ".".join(str(part)[:80] for part in error["loc"]) or "body"
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden" and (kind := kind_of_field(field)):
        reason = kind.refusal
    elif error["type"] in {"missing", "string_type"} and error["loc"][:1] in _TEXTS:
        # Perhaps numbers, features or an image are sent in place of a text.
        reason = f"{reason}: Kaiten serves no other input yet; {SERVES}"
    return Detail(field.encode("ascii", "backslashreplace").decode(), reason)
