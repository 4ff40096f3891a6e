"""Decides, before a request gets a task and its body is read, whether it is answered at once.

Probes are, whatever the load. So is a request that would be refused further in: refusing it here
costs a fraction of what authentication, limits and parsing cost, and leaves the event loop to the
requests that are answered.
"""

import math
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission.deadlines import request_deadline
from gateway.auth.authenticator import Authenticator, sends_credential
from gateway.errors import STATUS_AND_CODE
from gateway.exchange import exchange_of
from gateway.http.backlog import Backlog, Start
from gateway.http.protocol import declared_bytes
from gateway.interfaces import GatewayMetrics
from gateway.middleware.dispatch import call_handler
from gateway.middleware.early_answer import EARLY_ANSWER, Refusal
from gateway.routes import RouteKind, RouteSpec
from gateway.services import Services
from kaiten.context import Principal
from kaiten.errors import DeadlineExceeded, InvalidInput, KaitenError, Overloaded, QueueFull

# Requests that start in one iteration of the event loop: what else is ready, probes among it, waits
# for them, about 0.3 ms each.
_STARTS = 4
# Requests that wait to start, of one subject, and fewer as more subjects wait; and how long they
# wait, about: a burst is started within that time; a steady excess is rejected.
_WAITING, _MAX_WAIT_S = 1024, 1.0
# The subjects of all callers without a credential, and of all whose credential is not remembered: a
# flood of the first takes no turn from a token that a worker sees for the first time.
_ANONYMOUS, _UNVERIFIED = "anonymous", "unverified"
# The turn of Prometheus, which may read the metrics without a token.
_SCRAPE = "metrics"
Answer = Callable[[ASGIApp], None]


class Admission:
    """Admits requests to a worker; ``edge`` is the worker's middleware, once it is built."""

    def __init__(
        self,
        services: Services,
        authenticator: Authenticator,
        metrics: GatewayMetrics,
        time_limit_s: float,
    ) -> None:
        self.edge: ASGIApp | None = None
        self._services = services
        self._authenticator = authenticator
        self._metrics = metrics
        self._time_limit_s = time_limit_s
        self._backlog = Backlog(_WAITING, _STARTS, _MAX_WAIT_S)
        self._urgent_bytes = tuple(
            f"{method} {spec.path} ".encode()
            for spec in services.routes.specs
            if spec.kind in {RouteKind.PROBE, RouteKind.SCRAPE}
            for method in spec.methods
        )

    @property
    def ready(self) -> bool:
        """Whether a load balancer is to send requests here."""
        return self._services.ready

    def is_urgent(self, data: bytes) -> bool:
        """Return whether the first bytes of a request are those of a probe or of a scrape."""
        return data.startswith(self._urgent_bytes)

    def admit(self, scope: Scope, start: Start, answer: Answer, *, crowded: bool = False) -> None:
        """Call ``start`` for a request, now or in a later iteration of the event loop.

        Or call ``answer`` with the app that answers it without ever waiting, as it is a probe or is
        refused. ``crowded``: the worker has as many connections as it may have, so that only probes
        are admitted.
        """
        if self.edge is None:
            start()
            return
        unparsed = scope.get(EARLY_ANSWER)
        if isinstance(unparsed, Refusal):
            self._refuse(scope, unparsed.error, STATUS_AND_CODE[type(unparsed.error)][1], answer)
            return
        match = self._services.routes.match(scope["method"], scope["path"])
        spec = match.spec if match is not None and match.is_allowed else None
        if spec is not None and spec.kind is RouteKind.PROBE:
            self._answer(scope, self._probe, answer)
        elif crowded:
            self._refuse(scope, Overloaded(), "connections", answer)
        else:
            self._admit_in_turn(scope, spec, start, answer)

    def _admit_in_turn(
        self, scope: Scope, spec: RouteSpec | None, start: Start, answer: Answer
    ) -> None:
        principal = self._authenticator.remembered(scope["headers"])
        subject = _subject(scope, spec, principal)
        predicts = principal is not None and spec is not None and spec.is_queued
        due = self._due(scope, spec)
        if predicts and self._refuse_for_full_queues(scope, subject, due, answer):
            return
        if self._backlog.starts_now():
            start()
        elif not self._backlog.has_room(subject):
            self._refuse(scope, Overloaded(), "overloaded", answer)
        else:

            def resume() -> None:
                if time.monotonic() >= due:
                    self._refuse(scope, DeadlineExceeded(), "deadline_exceeded", answer)
                # The queues may have filled up meanwhile.
                elif not (predicts and self._refuse_for_full_queues(scope, subject, due, answer)):
                    start()

            self._backlog.add(subject, resume)

    def _due(self, scope: Scope, spec: RouteSpec | None) -> float:
        try:
            return request_deadline(scope, spec, self._time_limit_s)
        except InvalidInput:
            # DeadlineMiddleware rejects it.
            return math.inf

    def _refuse_for_full_queues(
        self, scope: Scope, subject: str, due: float, answer: Answer
    ) -> bool:
        body_bytes, ahead = declared_bytes(scope["headers"]), self._backlog.waiting(subject)
        retry_after_s = self._services.prediction.retry_after_s(subject, body_bytes, due, ahead)
        if retry_after_s is None:
            return False
        self._refuse(scope, QueueFull(retry_after_s), "queue_full", answer)
        return True

    def _refuse(self, scope: Scope, error: KaitenError, reason: str, answer: Answer) -> None:
        self._metrics.request_refused_early(reason)
        self._answer(scope, Refusal(error), answer)

    def _answer(self, scope: Scope, early: ASGIApp, answer: Answer) -> None:
        scope[EARLY_ANSWER] = early
        answer(self.edge or early)

    async def _probe(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await call_handler(exchange_of(scope), self._services)
        if response is not None:
            await response(scope, receive, send)


def _subject(scope: Scope, spec: RouteSpec | None, principal: Principal | None) -> str:
    """Return whose turn a request takes."""
    if principal is not None:
        return principal.identity
    if spec is not None and spec.kind is RouteKind.SCRAPE:
        return _SCRAPE
    return _UNVERIFIED if sends_credential(scope["headers"]) else _ANONYMOUS
