"""Finds the version of the API that a request is for, and names it in the answer."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from email.utils import format_datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.api_versions import DEFAULT, HEADER, KNOWN, NEGOTIATED, PREDICT, VERSION_OF
from kaiten.context import current
from kaiten.errors import ApiVersionMismatch, RequestError, UnknownApiVersion
from kaiten.settings.models import ApiLifetimeSettings, ApiVersionSettings

_RAW_HEADER = HEADER.lower().encode()
RawHeaders = list[tuple[bytes, bytes]]


class ApiVersionMiddleware:
    """Sends a request for /api/predict on as one to the path of its version.

    So everything further in knows one path for it. Every answer of a version's route, a failure as
    well, names the version and tells when it is deprecated and when it ends; so this stands outside
    the error envelope, and leaves what it refuses in the context, to be raised inside.
    """

    def __init__(self, app: ASGIApp, settings: ApiVersionSettings) -> None:
        self._app = app
        self._told = {version: _told(version, settings.lifetime(version)) for version in PREDICT}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        version = VERSION_OF.get(path)
        if version is None and path != NEGOTIATED:
            await self._app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == _RAW_HEADER]
        try:
            version = _negotiate(version, [value.decode("latin-1") for value in sent])
        except RequestError as error:
            current().refusal = error
        if version is None:
            await self._app(scope, receive, send)
            return
        if path == NEGOTIATED:
            path = PREDICT[version]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        told = self._told[version]

        async def send_and_tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *told]
            await send(message)

        await self._app(scope, receive, send_and_tell)


def _negotiate(own: str | None, sent: Sequence[str]) -> str:
    """Return the version of a request; ``own`` is its path's, ``sent`` what its headers name."""
    if len(sent) > 1:
        raise ApiVersionMismatch(f"is sent {len(sent)} times; send it once")
    asked = KNOWN.get(sent[0]) if sent else own or DEFAULT
    if asked is None:
        raise UnknownApiVersion([*PREDICT])
    if own is not None and asked != own:
        raise ApiVersionMismatch(f"is {asked}, and the path is of version {own}; leave one out")
    return asked


def _told(version: str, lifetime: ApiLifetimeSettings) -> RawHeaders:
    """Return the headers of its answers: Deprecation by RFC 9745, Sunset by RFC 8594."""
    told = [(_RAW_HEADER, version.encode())]
    links = []
    if lifetime.deprecated_at:
        seconds = int(_midnight(lifetime.deprecated_at).timestamp())
        told.append((b"deprecation", f"@{seconds}".encode()))
        links.append("deprecation")
    if lifetime.sunset_at:
        ends = format_datetime(_midnight(lifetime.sunset_at), usegmt=True)
        told.append((b"sunset", ends.encode()))
        links.append("sunset")
    if lifetime.link:
        link = ", ".join(f'<{lifetime.link}>; rel="{each}"' for each in links)
        told.append((b"link", link.encode()))
    return told


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
