"""What the models of requests and answers are made of, and the error envelope."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from kaiten.text import text_problem

# As middleware/request_context.py accepts one.
REQUEST_ID_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"


def check_text(value: str) -> str:
    """Return a text of a request.

    Raises:
        ValueError: It is blank, or holds characters that are not text.

    """
    if problem := text_problem(value):
        raise ValueError(problem)
    return value


# The same for the document, but for texts of invisible characters alone. It is spelled out: what
# counts as a space differs from one dialect of regular expressions to the next.
_SPACES = r"\t-\r\u001c- \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
TEXT_PATTERN = rf"^[^\u0000]*[^\u0000{_SPACES}][^\u0000]*$"
_TEXT_SCHEMA = {"type": "string", "pattern": TEXT_PATTERN}
Text = Annotated[str, AfterValidator(check_text), WithJsonSchema(_TEXT_SCHEMA)]
# An input of a model. The document's generator puts the limit in force in place of its name.
InputText = Annotated[
    str,
    AfterValidator(check_text),
    WithJsonSchema({**_TEXT_SCHEMA, "maxLength": "max_text_chars"}),
]
VISIBLE = "A text must hold a character that is visible and that the model's tokenizer keeps."
TRUNCATED = "The text was over the model's maximum length, and only a part of it was read."


def _whole(value: object) -> object:
    """Return 2 for 2.0: JSON has one kind of number, and its Schema takes both for an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


# Room for repeated and unknown keys, which validation then names.
_SPARE_PUNCTUATION = 64


class Body(BaseModel):
    """A request body: exact types, no unknown fields.

    ``punctuation_per_item`` is how many of the characters ``, : [ {`` outside strings each item of
    the body takes. With 0, a body has room for its fields and no more; a model with a list sets it.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    punctuation_per_item: ClassVar[int] = 0

    @classmethod
    def max_punctuation(cls, max_inputs: int) -> int:
        """Return the most such characters that a valid body of up to ``max_inputs`` items has."""
        return cls.punctuation_per_item * max_inputs + _SPARE_PUNCTUATION


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
