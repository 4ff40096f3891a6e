"""An issuer that rotates its keys under load, hangs and goes away, beside made-up key ids."""

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

from benchmarks.client import Answer, Pool
from benchmarks.load import percentile
from tests.acceptance.fuzz import failures_in
from tests.acceptance.places import TWO_WORKERS, WatchedServer, serve
from tests.acceptance.report import Report
from tests.acceptance.target import Target
from tests.acceptance.watch import callers
from tests.issuer import Issuer, issuing
from tests.servers import quickstart_texts, until_all_ready

_ROTATING_S, _HANGING_S, _AWAY_S = 180, 30, 60
_ROTATION_EVERY_S, _SETTLED_S = 5, 8
_LANES, _PAUSE_S, _TOKEN_FOR = 6, 0.02, 4
_MADE_UP_EVERY_S = 0.05
# What the settings say, and what a fetch and two busy cores may add.
_MIN_INTERVAL_S, _ALLOWANCE_S = 3.0, 1.0
_WINDOW_S, _FETCHES_A_SECOND = 10, 1.0
# Of the server whose issuer stays away for too long.
_MAX_AGE_S, _REFRESH_S = 8, 4
_POLL_S, _IN_A_ROW, _PATIENCE_S = 0.05, 8, 90

Token = Callable[[], str]


@dataclass
class TokenOutcomes:
    """The answers to one kind of token."""

    answers: list[Answer] = field(default_factory=list)

    @property
    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(answer.status for answer in self.answers).items()))

    def latency(self, share: float) -> float:
        return percentile([answer.seconds for answer in self.answers], share)


@dataclass
class Phase:
    """The outcomes during one behaviour of the issuer."""

    name: str
    valid: TokenOutcomes = field(default_factory=TokenOutcomes)
    # The very first token of each key, to as many requests at once as there are workers twice.
    first: TokenOutcomes = field(default_factory=TokenOutcomes)
    # By a published id, and by a made-up one.
    forged: TokenOutcomes = field(default_factory=TokenOutcomes)
    made_up: TokenOutcomes = field(default_factory=TokenOutcomes)

    def tell(self, report: Report) -> None:
        for kind in ("valid", "first", "forged", "made_up"):
            outcomes: TokenOutcomes = getattr(self, kind)
            if outcomes.answers:
                report.tell(self.name, **{f"{kind}_statuses": outcomes.statuses})
                report.tell(
                    self.name,
                    **{f"{kind}_p{share}_s": outcomes.latency(share) for share in (50, 99, 100)},
                )

    def check(self, report: Report, kind: str, requirement: str, *statuses: int) -> None:
        """Check that all of a kind, and there were some, ended as they should."""
        outcomes: TokenOutcomes = getattr(self, kind)
        counts = outcomes.statuses
        passed = bool(counts) and set(counts) <= set(statuses)
        report.check(f"{self.name}: {requirement}", counts, passed=passed)


@dataclass(frozen=True)
class Load:
    """Concurrent callers of one server, until they are stopped."""

    port: int
    pool: Pool
    issuer: Issuer
    stranger: Issuer = field(default_factory=lambda: Issuer(family="strangers"))

    async def during(self, phase: Phase, seconds: float, *, rotate: bool = False) -> None:
        """Ask for so long by valid tokens and by others."""
        until = time.monotonic() + seconds
        texts = _in_turn(quickstart_texts())
        async with asyncio.TaskGroup() as group:
            for _ in range(_LANES):
                group.create_task(self._ask_validly(phase.valid, texts, until))
            group.create_task(self._forge(phase, until))
            if rotate:
                group.create_task(self._rotate(phase.first, until))

    async def ask(
        self, outcomes: TokenOutcomes, token: str, text: str = "Where is my parcel?"
    ) -> Answer:
        answer = await self.pool.ask(Target(self.port, token).v1(text))
        outcomes.answers.append(answer)
        return answer

    async def _ask_validly(
        self, outcomes: TokenOutcomes, texts: Iterator[str], until: float
    ) -> None:
        number = 0
        while time.monotonic() < until:
            if number % _TOKEN_FOR == 0:
                token = self.issuer.token(jti=secrets.token_hex(8))
            number += 1
            await self.ask(outcomes, token, next(texts))
            await asyncio.sleep(_PAUSE_S)

    async def _rotate(self, outcomes: TokenOutcomes, until: float) -> None:
        """Publish a key, and use it at once: no background fetch can have found it."""
        while time.monotonic() < until - _ROTATION_EVERY_S:
            due = time.monotonic() + _ROTATION_EVERY_S
            self.issuer.rotate()
            token = self.issuer.token()
            await asyncio.gather(*(self.ask(outcomes, token) for _ in range(4)))
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _forge(self, phase: Phase, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            while time.monotonic() < until:
                claims = {"iss": self.issuer.name, "jti": secrets.token_hex(8)}
                kid = {"kid": secrets.token_hex(8)}
                made_up = self.stranger.token(headers=kid, **claims)
                forged = self.stranger.token(headers={"kid": self.issuer.kid}, **claims)
                group.create_task(self.ask(phase.made_up, made_up))
                # One whose id is known is refused at once, or waits with the first of its key.
                group.create_task(self.ask(phase.forged, forged))
                await asyncio.sleep(_MADE_UP_EVERY_S)


def _in_turn(texts: list[str]) -> Iterator[str]:
    while True:
        yield from texts


def most_in_a_window(times: list[float], seconds: float = _WINDOW_S) -> int:
    """Return the most that fell into any window of so many seconds."""
    return max((sum(at <= moment < at + seconds for moment in times) for at in times), default=0)


def _settings(issuer: Issuer, **jwks: str) -> dict[str, str]:
    jwks_settings = {f"KAITEN_AUTH__JWKS__{name.upper()}": value for name, value in jwks.items()}
    # A secret of its own as well: the suites' callers have tokens by it.
    auth_secret = {"KAITEN_AUTH__SECRET": secrets.token_hex(32)}
    issuers = {"KAITEN_AUTH__ISSUERS": json.dumps([issuer.settings()])}
    return {**TWO_WORKERS, **auth_secret, **issuers, **jwks_settings}


async def _check_rotation(report: Report, server: WatchedServer, load: Load) -> None:
    seconds = _ROTATING_S * report.scale
    phase, issuer = Phase("rotating"), load.issuer
    began, before = time.monotonic(), len(issuer.fetched_at)
    await load.during(phase, seconds, rotate=True)
    took, fetched = time.monotonic() - began, issuer.fetched_at[before:]
    ports = {answer.port for answer in phase.valid.answers}
    reached = sum(bool(callers(worker) & ports) for worker in server.watch.workers())
    phase.tell(report)
    report.tell(
        "rotating", seconds=took, workers_reached=reached, keys=len(phase.first.answers) // 4
    )
    phase.check(report, "valid", "every valid token is answered", 200)
    phase.check(report, "first", "so is the first of every key, by on-demand fetches", 200)
    phase.check(report, "forged", "every forged token is a 401", 401)
    phase.check(report, "made_up", "and so is every made-up key id", 401)
    slowest = phase.first.latency(100)
    passed = slowest <= _MIN_INTERVAL_S + _ALLOWANCE_S
    report.check(
        "rotating: the first of a key waits for min_refresh_interval_s", slowest, passed=passed
    )
    _check_fetches(report, "rotating", fetched, took)


def _check_fetches(report: Report, name: str, fetched: list[float], seconds: float) -> None:
    rate, most = len(fetched) / seconds, most_in_a_window(fetched)
    counts = {"in all": len(fetched), "a second": round(rate, 3), f"most in {_WINDOW_S} s": most}
    passed = 0 < rate < _FETCHES_A_SECOND and most < _WINDOW_S * _FETCHES_A_SECOND
    report.check(f"{name}: both workers fetch less than once a second", counts, passed=passed)


async def _check_outage(report: Report, load: Load, name: str, seconds: float) -> None:
    """Ask while the issuer hangs or is down, and once more when it is back with a new key."""
    phase, issuer = Phase(name), load.issuer
    began, before = time.monotonic(), len(issuer.fetched_at)
    await load.during(phase, seconds)
    took, fetched = time.monotonic() - began, issuer.fetched_at[before:]
    phase.tell(report)
    phase.check(report, "valid", "every token of a known key is answered", 200)
    phase.check(report, "forged", "every forged token is a 401", 401)
    phase.check(
        report, "made_up", "of a made-up key id nobody can tell: 503, or 401 by memory", 401, 503
    )
    if fetched:
        _check_fetches(report, name, fetched, took)


async def _check_return(report: Report, load: Load, name: str) -> None:
    phase = Phase(f"{name}, and back")
    load.issuer.rotate()
    await asyncio.gather(*(load.ask(phase.first, load.issuer.token()) for _ in range(4)))
    phase.tell(report)
    phase.check(report, "first", "the first token of a new key is answered", 200)


async def _within_grace(report: Report, store: Path, folder: Path) -> None:
    with issuing() as issuer, serve(store, folder, _settings(issuer)) as server:
        until_all_ready(server.server.url)
        async with server.pool() as pool:
            load = Load(server.target.port, pool, issuer)
            await _check_rotation(report, server, load)
            # Until both workers have the last key, which one of them may not have been asked for.
            await load.during(Phase("settling"), _SETTLED_S)
            issuer.hang()
            await _check_outage(report, load, "hanging", _HANGING_S * report.scale)
            issuer.go_on()
            await _check_return(report, load, "hanging")
            await load.during(Phase("settling"), _SETTLED_S)
            issuer.down()
            await _check_outage(report, load, "down", _AWAY_S * report.scale)
            issuer.up()
            await _check_return(report, load, "down")
        failures = failures_in(server.server.process.lines)
    report.check("no failure in the log", failures[:3], passed=not failures)


async def _beyond_grace(report: Report, store: Path, folder: Path) -> None:
    settings = {
        "max_age_s": str(_MAX_AGE_S), "refresh_s": str(_REFRESH_S), "min_refresh_interval_s": "2",
    }  # fmt: skip
    with issuing() as issuer, serve(store, folder, _settings(issuer, **settings)) as server:
        until_all_ready(server.server.url)
        async with server.pool() as pool:
            load = Load(server.target.port, pool, issuer)
            outcomes = TokenOutcomes()
            await _until(load, outcomes, 200)
            issuer.down()
            down_at = time.monotonic()
            await _until(load, outcomes, 503)
            issuer.up()
            up_at = time.monotonic()
            await _until(load, outcomes, 200)
    refused = [answer for answer in outcomes.answers if answer.status != HTTPStatus.OK]
    codes = dict(Counter(_code(answer) for answer in refused))
    held_s = refused[0].sent - down_at
    late = [answer.status for answer in refused if answer.sent >= up_at]
    name = "down for longer than max_age_s"
    report.tell(name, statuses=outcomes.statuses, seconds_down=up_at - down_at)
    report.check(
        f"{name}: 503 issuer_unavailable with Retry-After, and never a 401",
        [outcomes.statuses, codes],
        passed=codes.keys() == {"issuer_unavailable"}
        and all(answer.retry_after for answer in refused),
    )
    report.check(
        f"{name}: keys held until then, less the time since the last refresh",
        held_s,
        passed=_MAX_AGE_S - _REFRESH_S <= held_s <= _MAX_AGE_S + _ALLOWANCE_S,
    )
    report.check(f"{name}: nobody is refused who asks once it is back", late, passed=not late)


def _code(answer: Answer) -> str:
    return str(json.loads(answer.body)["error"]["code"]) if answer.body else "lost"


async def _until(load: Load, outcomes: TokenOutcomes, status: int) -> None:
    """Ask by valid tokens until all of several answers in a row are so."""
    in_a_row = 0
    async with asyncio.timeout(_PATIENCE_S):
        while in_a_row < _IN_A_ROW:
            answer = await load.ask(outcomes, load.issuer.token())
            in_a_row = in_a_row + 1 if answer.status == status else 0
            await asyncio.sleep(_POLL_S)


async def run(report: Report, store: Path, folder: Path) -> None:
    await _within_grace(report, store, folder / "within")
    await _beyond_grace(report, store, folder / "beyond")
