"""JSON that is sent in slices."""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_SLICE_BYTES = 64 * 1024


class JsonResponse(Response):
    """An answer that is JSON already, sent in slices.

    The server takes a slice only once the caller has read most of those before, so a caller
    that reads slowly, or not at all, does not make it hold the whole answer past the deadline.
    """

    media_type = "application/json"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.body) <= _SLICE_BYTES:
            await super().__call__(scope, receive, send)
            return
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        for start in range(0, len(self.body), _SLICE_BYTES):
            end = start + _SLICE_BYTES
            more = end < len(self.body)
            body = bytes(self.body[start:end])
            await send({"type": "http.response.body", "body": body, "more_body": more})
