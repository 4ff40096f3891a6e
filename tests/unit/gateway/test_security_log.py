import asyncio
import contextvars
from collections.abc import Callable

import jwt
import pytest
from structlog.typing import EventDict

from gateway import security_log
from gateway.auth.signing_secret import SigningSecret
from gateway.security_log import (
    MAX_FAULTS,
    MAX_SOURCES,
    PER_SOURCE,
    PERIOD_S,
    SecurityLog,
    log_operator_action,
)
from kaiten.addresses import network_of
from kaiten.context import Principal, RequestContext, bind
from tests.unit.gateway.house import (
    BENTO,
    CANARY,
    GOOD,
    PREDICTIONS,
    SECRET,
    V1,
    V2,
    House,
    bearer,
)

EXPIRED = jwt.encode(
    {"sub": CANARY, "scope": "predict", "iss": "kaiten", "aud": "kaiten", "exp": 1}, SECRET
)


def events(logs: list[EventDict]) -> list[EventDict]:
    """Return the security events: every line but the request's own."""
    return [line for line in logs if line["event"] != "request"]


@pytest.mark.parametrize(
    ("token", "fault"),
    [
        ("x", "DecodeError"),
        (EXPIRED, "ExpiredSignatureError"),
        (f"{EXPIRED}x", "InvalidSignatureError"),
        ("x" * 9000, "size"),
    ],
)
@pytest.mark.parametrize("path", PREDICTIONS)
async def test_every_rejected_token_is_told_with_its_fault(
    logs: list[EventDict], path: str, token: str, fault: str
) -> None:
    house = House()
    for _ in range(30):
        await house.post(path, GOOD[path], {"Authorization": f"Bearer {token}"})
    security_log.security_log.end_period()
    line = {
        "event": "token_rejected",
        "fault": fault,
        "route": path,
        "log_level": "warning",
    }
    assert events(logs) == [line] * PER_SOURCE + [line | {"repeated": 30 - PER_SOURCE}]
    assert token not in str(logs)
    assert CANARY not in str(logs)


@pytest.mark.parametrize(
    ("path", "scope", "lacks"),
    [
        (V1, "ops", "lacks predict"),
        (V1, "predict:topic", "lacks predict:intent"),
        (V2, "predict:topic", "lacks predict:intent"),
        (BENTO, "predict:topic", "lacks predict:intent"),
    ],
)
async def test_a_missing_scope_is_logged_wherever_it_was_missed(
    logs: list[EventDict], path: str, scope: str, lacks: str
) -> None:
    await House().post(path, GOOD[path], {"Authorization": bearer(scope)})
    (line,) = events(logs)
    assert (line["event"], line["fault"], line["route"]) == ("forbidden", lacks, path)


async def test_a_caller_from_elsewhere_is_logged(logs: list[EventDict]) -> None:
    secret = SigningSecret(SECRET, development=True)
    await House(secret=secret).post(V1, GOOD[V1], client="203.0.113.9")
    (line,) = events(logs)
    assert (line["event"], line["fault"], line["route"]) == ("loopback_refused", None, V1)


@pytest.mark.parametrize("authorization", ["", "Basic YWxpY2U6cHc=", bearer("predict")])
async def test_what_is_no_attack_is_not_logged(logs: list[EventDict], authorization: str) -> None:
    await House().post(V1, GOOD[V1], {"Authorization": authorization})
    assert events(logs) == []


def test_an_act_outside_a_request_is_logged_as_well(logs: list[EventDict]) -> None:
    for _ in range(3 * PER_SOURCE):
        log_operator_action("key_created", key="7f3a")
    assert len(logs) == 3 * PER_SOURCE
    assert all((line["event"], line["key"]) == ("key_created", "7f3a") for line in logs)
    assert (logs[0]["fault"], logs[0]["route"]) == (None, None)


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Flood:
    """A security log, and requests from where they are said to come from."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.log = SecurityLog(self.clock)

    def refuse(
        self, client: str, event: str = "token_rejected", fault: str = "DecodeError",
        subject: str | None = None,
    ) -> None:  # fmt: skip
        context = RequestContext("request")
        context.client, context.route = client, V1
        if subject is not None:
            context.principal = Principal(subject, frozenset())
        contextvars.Context().run(self._log_event, context, event, fault)

    def _log_event(self, context: RequestContext, event: str, fault: str) -> None:
        bind(context)
        self.log.log_event(event, fault)

    def next_period(self) -> None:
        self.clock.now += PERIOD_S
        self.log.end_period()


def event_count(logs: list[EventDict], event: str = "token_rejected") -> int:
    """Return how many events the lines stand for."""
    return sum(line.get("repeated", 1) for line in logs if line["event"] == event)


def test_lines_of_one_source_are_bounded_and_all_are_counted(logs: list[EventDict]) -> None:
    flood = Flood()
    for number in range(10_000):
        # Of one network: its owner has all its addresses.
        flood.refuse(f"203.0.113.{number % 256}")
    flood.next_period()
    assert len(logs) == PER_SOURCE + 1
    assert event_count(logs) == 10_000
    assert logs[-1]["route"] == V1


def test_each_period_begins_again(logs: list[EventDict]) -> None:
    flood = Flood()
    for _ in range(3):
        for _ in range(100):
            flood.refuse("203.0.113.9")
        flood.clock.now += PERIOD_S
    flood.log.end_period()
    assert len(logs) == 3 * (PER_SOURCE + 1)
    assert event_count(logs) == 300


def test_lines_of_many_sources_are_bounded_too_and_all_are_counted(logs: list[EventDict]) -> None:
    flood = Flood()
    for number in range(20_000):
        flood.refuse(f"10.{number // 250 % 250}.{number % 250}.1")
    flood.next_period()
    assert len(logs) <= (MAX_SOURCES + 1) * (PER_SOURCE + 1)
    assert event_count(logs) == 20_000


def test_another_kind_of_event_is_not_lost_among_those_of_a_flood(logs: list[EventDict]) -> None:
    flood = Flood()
    for number in range(5000):
        flood.refuse(f"10.{number // 250}.{number % 250}.1")
    flood.refuse("203.0.113.9", "forbidden", "lacks ops")
    flood.refuse("203.0.113.9", "token_rejected", "revoked_token")
    last_events = [(line["event"], line["fault"]) for line in logs[-2:]]
    assert last_events == [("forbidden", "lacks ops"), ("token_rejected", "revoked_token")]


def test_faults_without_end_are_bounded_and_counted(logs: list[EventDict]) -> None:
    flood = Flood()
    for number in range(5000):
        flood.refuse("203.0.113.9", fault=f"fault {number}")
    flood.next_period()
    max_lines = (MAX_SOURCES + MAX_FAULTS + 1) * (PER_SOURCE + 1)
    assert len(logs) <= max_lines
    assert event_count(logs) == 5000


def test_callers_with_a_name_are_distinguished_behind_one_address(logs: list[EventDict]) -> None:
    flood = Flood()
    for _ in range(100):
        flood.refuse("203.0.113.9", "rate_limited", "", "loud")
    flood.refuse("203.0.113.9", "rate_limited", "", "quiet")
    assert len(logs) == PER_SOURCE + 1


async def test_count_is_written_although_nothing_comes_after_it(logs: list[EventDict]) -> None:
    log = SecurityLog(Clock())
    loop = asyncio.get_running_loop()
    calls: list[tuple[float, contextvars.Context]] = []
    original = loop.call_later

    ended = asyncio.Event()

    def call_later(
        delay: float, call: Callable[[], None], *, context: contextvars.Context
    ) -> asyncio.TimerHandle:
        calls.append((delay, context))
        # The log cancels its own timer as the period ends, and not this one.
        timer = original(0, call, context=context)
        original(0, ended.set)
        return timer

    loop.call_later = call_later  # type: ignore[method-assign, assignment]
    for _ in range(PER_SOURCE + 5):
        log.log_event("token_rejected", "size")
    await ended.wait()
    assert logs[-1]["repeated"] == 5
    ((delay, context),) = calls
    assert delay == PERIOD_S
    # It holds nothing of a request.
    assert len(context) == 0


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("203.0.113.9", "203.0.113.0/24"),
        ("::ffff:203.0.113.9", "203.0.113.0/24"),
        ("2001:db8:1:2::3", "2001:db8:1::/48"),
        ("nonsense", None),
    ],
)
def test_source_is_a_network(client: str, network: str | None) -> None:
    assert network_of(client) == network
