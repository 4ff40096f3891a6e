"""How a handler answers."""

from pydantic import BaseModel
from starlette.responses import Response


def json_answer(answer: BaseModel) -> Response:
    """Return an answer as JSON."""
    return Response(answer.model_dump_json(), media_type="application/json")
