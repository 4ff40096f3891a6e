"""The headers that a route's every answer has, failures included."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from email.utils import format_datetime

from gateway.api_versions import HEADER
from gateway.routes import NO_CONTENT_POLICY, RouteSpec, RouteTable
from kaiten.settings.loader import Settings
from kaiten.settings.models import ApiLifetimeSettings

RawHeaders = list[tuple[bytes, bytes]]


class ResponseHeaders:
    """Computes them once: for browsers, and about the version of the API.

    Strict-Transport-Security is sent only if this server itself speaks TLS.
    """

    def __init__(self, table: RouteTable, settings: Settings) -> None:
        self._tls = settings.tls.certificate is not None
        self._settings = settings
        specs = [*table.specs, *table.negotiating]
        self._headers = {spec.path: self._of_spec(spec) for spec in specs}
        self._unknown_path = self._security_headers(NO_CONTENT_POLICY, cacheable=False)

    def of_route(self, spec: RouteSpec | None) -> RawHeaders:
        """Return the headers of a route's answers, or of those on an unknown path."""
        return self._unknown_path if spec is None else self._headers[spec.path]

    def _of_spec(self, spec: RouteSpec) -> RawHeaders:
        headers = self._security_headers(spec.content_policy, cacheable=spec.cacheable)
        if spec.api_version is not None:
            lifetime = self._settings.api_versions.lifetime(spec.api_version)
            headers += _version_headers(spec.api_version, lifetime)
        return headers

    def _security_headers(self, policy: str, *, cacheable: bool) -> RawHeaders:
        headers = {
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            # For browsers that do not know frame-ancestors.
            "x-frame-options": "DENY",
            "content-security-policy": policy,
        }
        if self._tls:
            headers["strict-transport-security"] = "max-age=31536000"
        if not cacheable:
            # An answer is its caller's alone, and holds for now only.
            headers["cache-control"] = "no-store"
        return _raw(headers)


def _version_headers(version: str, lifetime: ApiLifetimeSettings) -> RawHeaders:
    """Return the version, Deprecation by RFC 9745, and Sunset by RFC 8594."""
    headers = {HEADER.lower(): version}
    links = []
    if lifetime.deprecated_at:
        headers["deprecation"] = f"@{int(_midnight(lifetime.deprecated_at).timestamp())}"
        links.append("deprecation")
    if lifetime.sunset_at:
        headers["sunset"] = format_datetime(_midnight(lifetime.sunset_at), usegmt=True)
        links.append("sunset")
    if lifetime.link:
        headers["link"] = ", ".join(f'<{lifetime.link}>; rel="{relation}"' for relation in links)
    return _raw(headers)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _raw(headers: Mapping[str, str]) -> RawHeaders:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
