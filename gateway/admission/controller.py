"""Decides, before a request gets a task and its body is read, whether it is answered at once.

Probes are, whatever the load. So is a request that would be refused further in: refusing it here
costs a fraction of what authentication, limits and parsing cost, and leaves the event loop to the
requests that are answered.
"""

import math
import time
from collections.abc import Callable, Mapping

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access import ROUTES
from gateway.admission.deadlines import deadline
from gateway.auth.authenticator import Authenticator, sends_credential
from gateway.errors import STATUS_AND_CODE
from gateway.http.backlog import Backlog, Start
from gateway.http.protocol import declared_bytes
from gateway.interfaces import AdmissionWatch
from gateway.middleware.early_answer import EARLY_ANSWER, Refusal
from gateway.predictions import Predictor
from gateway.responses import health_answer
from kaiten.context import Principal
from kaiten.errors import (
    DeadlineExceeded,
    InvalidInput,
    KaitenError,
    NotReady,
    Overloaded,
    QueueFull,
)

# Requests that start in one iteration of the event loop: what else is ready, probes among it, waits
# for them, about 0.3 ms each.
_STARTS = 4
# Requests that wait to start, of one subject, and fewer as more subjects wait; and how long they
# wait, about: a burst is started within that time, what comes steadily is too much.
_WAITING, _MAX_WAIT_S = 1024, 1.0
# Read by Prometheus, without a token where the settings say so: a subject of its own.
_METRICS = "/metrics"
# The subjects of all callers without a credential, and of all whose credential is not remembered: a
# flood of the first takes no turn from a token that a worker sees for the first time.
_ANONYMOUS, _UNVERIFIED = "anonymous", "unverified"
_PROBE_METHODS = ("GET", "HEAD")
_LIVE, _READY, _HEALTH = ("/livez", "/healthz"), "/readyz", "/health"
_URGENT_BYTES = tuple(
    f"{method} {path} ".encode()
    for method in _PROBE_METHODS
    for path in (*_LIVE, _READY, _HEALTH, _METRICS)
)
_ALIVE = PlainTextResponse("\n")
Answer = Callable[[ASGIApp], None]


class Admission:
    """Admits requests to a worker; ``edge`` is the worker's middleware, once it is built."""

    def __init__(
        self,
        predictor: Predictor,
        authenticator: Authenticator,
        is_draining: Callable[[], bool],
        watch: AdmissionWatch,
        time_limit_s: float,
    ) -> None:
        self.edge: ASGIApp | None = None
        self._predictor = predictor
        self._authenticator = authenticator
        self._is_draining = is_draining
        self._watch = watch
        self._time_limit_s = time_limit_s
        self._backlog = Backlog(_WAITING, _STARTS, _MAX_WAIT_S)
        self._probes: Mapping[str, ASGIApp] = {
            **dict.fromkeys(_LIVE, _ALIVE),
            _READY: self._ready,
            _HEALTH: self._healthy,
        }

    @property
    def ready(self) -> bool:
        """Whether a balancer is to send requests here: readiness, from wherever it is asked for."""
        return self._predictor.ready and not self._is_draining()

    @staticmethod
    def is_urgent(data: bytes) -> bool:
        """Return whether the first bytes of a request are those of a probe or of a scrape."""
        return data.startswith(_URGENT_BYTES)

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
        probe = self._probes.get(scope["path"])
        if probe is not None and scope["method"] in _PROBE_METHODS:
            self._answer(scope, probe, answer)
        elif crowded:
            self._refuse(scope, Overloaded(), "connections", answer)
        else:
            self._admit_in_turn(scope, start, answer)

    def _admit_in_turn(self, scope: Scope, start: Start, answer: Answer) -> None:
        principal = self._authenticator.remembered(scope["headers"])
        subject = _subject(scope, principal)
        predicts = principal is not None and _predicts(scope)
        due = self._due(scope)
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

    def _due(self, scope: Scope) -> float:
        try:
            return deadline(scope, self._time_limit_s)
        except InvalidInput:
            # It is refused for that where its route is known.
            return math.inf

    def _refuse_for_full_queues(
        self, scope: Scope, subject: str, due: float, answer: Answer
    ) -> bool:
        body_bytes, ahead = declared_bytes(scope["headers"]), self._backlog.waiting(subject)
        retry_after_s = self._predictor.retry_after_s(subject, body_bytes, due, ahead)
        if retry_after_s is None:
            return False
        self._refuse(scope, QueueFull(retry_after_s), "queue_full", answer)
        return True

    def _refuse(self, scope: Scope, error: KaitenError, reason: str, answer: Answer) -> None:
        self._watch.request_refused_early(reason)
        self._answer(scope, Refusal(error), answer)

    def _answer(self, scope: Scope, early: ASGIApp, answer: Answer) -> None:
        scope[EARLY_ANSWER] = early
        answer(self.edge or early)

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.ready:
            raise NotReady
        await _ALIVE(scope, receive, send)

    async def _healthy(self, scope: Scope, receive: Receive, send: Send) -> None:
        await health_answer(ready=self._predictor.ready)(scope, receive, send)


def _subject(scope: Scope, principal: Principal | None) -> str:
    """Return whose turn a request takes."""
    if principal is not None:
        return principal.identity
    if scope["path"] == _METRICS:
        return _METRICS
    return _UNVERIFIED if sends_credential(scope["headers"]) else _ANONYMOUS


def _predicts(scope: Scope) -> bool:
    access = ROUTES.get(scope["path"])
    return access is not None and access.scope == "predict" and scope["method"] in access.methods
