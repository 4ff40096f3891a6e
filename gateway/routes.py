"""Routes: each is declared once, and everything about it is derived from its declaration.

The declarations are in gateway/protocols and gateway/admin.
"""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Literal

from pydantic import BaseModel
from starlette.responses import Response

from gateway.errors import error_response
from gateway.schemas import Body
from kaiten.errors import KaitenError, QueueFull
from kaiten.settings.loader import Settings
from kaiten.settings.models import Exposure

# What a browser may do with an answer that is not a page: nothing.
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
Handler = Callable[..., Awaitable[Response | BaseModel]]
ErrorRenderer = Callable[[Exception], Response]
# A path's parameter: one segment, which cannot lead to another route.
PARAMETER_PATTERN = r"[A-Za-z0-9_-][A-Za-z0-9._:-]*"
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
# The handler's other arguments.
_RESERVED_PARAMETERS = {"exchange", "services", "body"}


class RouteKind(Enum):
    """What a route is for."""

    # Counted and timed in the metrics, and the caller may shorten its deadline.
    MODEL = auto()
    # Answered before admission looks at the load, without authentication and without a body.
    PROBE = auto()
    # The metrics: read by Prometheus, which has a turn of its own under load.
    SCRAPE = auto()
    ADMIN = auto()
    # The API's documents and what shows them.
    PAGE = auto()


def always_open(_: Settings) -> Exposure:
    """Expose a route as it is declared, whatever the settings say."""
    return "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """One method and path of the API.

    ``path`` may hold parameters, as in ``/v1/models/{name}``. The handler is called with the
    exchange, the services, the parsed body if ``request`` is its model, and the path's parameters
    by name; it returns a response, or the model to send as JSON. Without a handler, BentoML's own
    app answers.

    ``scope`` None means open to everyone, and each declaration has to say so. ``exposure`` may
    close the route, or require the scope ``ops``. ``errors`` are those that the handler raises in
    addition to what every such route can answer. ``negotiated_path`` is a second path, on which
    the API-Version header chooses between the routes that declare it. A route without a
    ``summary`` is left out of the OpenAPI documents.

    Raises:
        ValueError: The declaration contradicts itself.

    """

    method: Literal["GET", "POST"]
    path: str
    scope: str | None
    kind: RouteKind
    handler: Handler | None
    summary: str = ""
    request: type[Body] | None = None
    # None: plain text, or a page.
    response: type[BaseModel] | None = None
    errors: frozenset[type[KaitenError]] = frozenset()
    # None: the route belongs to every version, and is in every version's document.
    api_version: str | None = None
    negotiated_path: str | None = None
    exposure: Callable[[Settings], Exposure] = always_open
    render_error: ErrorRenderer = error_response
    content_policy: str = NO_CONTENT_POLICY
    # Whether a browser may keep the answer.
    cacheable: bool = False

    def __post_init__(self) -> None:
        if {"{", "}"} & {*_PLACEHOLDER.sub("", self.path)}:
            raise ValueError(f"{self.path}: a parameter is lower-case letters and _ in braces")
        if reserved := _RESERVED_PARAMETERS & {*self.parameters}:
            raise ValueError(f"{self.path}: {', '.join(reserved)} is an argument of the handler")
        if self.kind is RouteKind.PROBE and (self.scope, self.request) != (None, None):
            raise ValueError(f"{self.path}: a probe has no scope and no body")
        if self.negotiated_path is not None and self.api_version is None:
            raise ValueError(f"{self.path}: negotiated_path needs an api_version")
        if self.negotiated_path is not None and self.parameters:
            raise ValueError(f"{self.path}: a negotiated route has no parameters")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that the route answers."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)

    @property
    def parameters(self) -> list[str]:
        """The names of the path's parameters."""
        return _PLACEHOLDER.findall(self.path)

    @property
    def is_queued(self) -> bool:
        """Whether requests wait in a model's queue, and are rejected early if it is full."""
        return QueueFull in self.errors

    def pattern(self) -> re.Pattern[str]:
        """Return the expression that matches the whole path."""
        literals = _PLACEHOLDER.split(self.path)
        # Every second part is a parameter's name.
        for place, part in enumerate(literals):
            literals[place] = f"(?P<{part}>{PARAMETER_PATTERN})" if place % 2 else re.escape(part)
        return re.compile("".join(literals))


@dataclass(frozen=True, slots=True)
class RouteMatch:
    """The route of a request's path, the methods that the path allows, and its parameters.

    ``is_allowed`` is False if no route of the path has the request's method; ``spec`` is then the
    first of them.
    """

    spec: RouteSpec
    allowed: tuple[str, ...]
    is_allowed: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)


class _PathRoutes:
    """The routes of one path, by method."""

    def __init__(self, specs: Sequence[RouteSpec]) -> None:
        allowed = tuple(method for spec in specs for method in spec.methods)
        if len({*allowed}) < len(allowed):
            raise ValueError(f"{specs[0].path} is declared more than once for one method")
        # Metrics and response headers are by path.
        traits = {(spec.kind, spec.cacheable, spec.content_policy) for spec in specs}
        if len(traits) > 1:
            raise ValueError(f"{specs[0].path}: its methods differ in kind or response headers")
        self._matches = {
            method: RouteMatch(spec, allowed) for spec in specs for method in spec.methods
        }
        self._other_method = RouteMatch(specs[0], allowed, is_allowed=False)
        self.pattern = specs[0].pattern() if specs[0].parameters else None

    def match(self, method: str) -> RouteMatch:
        return self._matches.get(method, self._other_method)


class RouteTable:
    """The routes that the settings expose. Any other path is unknown.

    Raises:
        ValueError: Two declarations contradict each other.

    """

    def __init__(self, specs: Iterable[RouteSpec], settings: Settings) -> None:
        exposed = [(spec, spec.exposure(settings)) for spec in specs]
        self.specs = tuple(
            replace(spec, scope="ops") if exposure == "token" else spec
            for spec, exposure in exposed
            if exposure != "closed"
        )
        # By the negotiated path, and then by version.
        self.negotiated: dict[str, dict[str, RouteSpec]] = {}
        for spec in self.specs:
            if spec.negotiated_path is not None and spec.api_version is not None:
                versions = self.negotiated.setdefault(spec.negotiated_path, {})
                if any(other.method != spec.method for other in versions.values()):
                    raise ValueError(f"{spec.negotiated_path}: its versions differ in method")
                versions[spec.api_version] = spec
        by_path: dict[str, list[RouteSpec]] = {}
        # Where requests whose version is rejected are counted.
        self.negotiating = tuple(self._negotiating_specs())
        for spec in (*self.negotiating, *self.specs):
            by_path.setdefault(spec.path, []).append(spec)
        paths = {path: _PathRoutes(specs) for path, specs in by_path.items()}
        self._fixed = {path: routes for path, routes in paths.items() if routes.pattern is None}
        self._templates = [
            (routes.pattern, routes) for routes in paths.values() if routes.pattern is not None
        ]
        shapes = {_PLACEHOLDER.sub("{}", path) for path in paths}
        if len(shapes) < len(paths):
            raise ValueError("two paths differ only in the names of their parameters")
        # The path templates that the metrics count.
        self.model_routes = tuple(
            path for path, (spec, *_) in by_path.items() if spec.kind is RouteKind.MODEL
        )

    def match(self, method: str, path: str) -> RouteMatch | None:
        """Return the route of a request; None if no route has that path, to the letter.

        Routers match more loosely: Starlette's take ``/predict`` with a line feed after it for
        ``/predict``, and such a request would bypass the checks of that route.
        """
        if (routes := self._fixed.get(path)) is not None:
            return routes.match(method)
        for pattern, routes in self._templates:
            if parameters := pattern.fullmatch(path):
                return replace(routes.match(method), parameters=parameters.groupdict())
        return None

    def _negotiating_specs(self) -> Iterator[RouteSpec]:
        """Yield a route for each negotiated path, without a version."""
        for path, versions in self.negotiated.items():
            spec = next(iter(versions.values()))
            yield replace(spec, path=path, api_version=None, negotiated_path=None)
