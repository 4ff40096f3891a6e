"""What is tried of a running deployment: what its callers and its operators rely on, in order."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from secrets import token_hex
from typing import Literal

import httpx
from pydantic import ValidationError

from gateway.schemas import Prediction, PredictV2Response
from kaiten.loopback import proxy_bypass
from lifecycle.evaluate.rows import Rows
from server.smoke.deployment import (
    Failed,
    Skipped,
    expect,
    forged,
    id_sent,
    is_tls,
    one_line,
    series,
    status_of,
    versions_of,
)

Outcome = Literal["ok", "failed", "skipped"]
PREDICT = "/api/v2/predict"
# Whatever the model is about: what it says of it is not looked at.
_TEXT = "Good morning, is anybody there?"
_POLL_S = 0.2
# Of several replicas each tells of its own answers only, and a balancer picks one for each request.
_SCRAPES = 20
_TOLD = 5
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'",
    "cache-control": "no-store",
}
_LOG = "See the server's log"
_TOKEN = "give one that holds there, with the scopes predict and ops (--token-file)"  # noqa: S105
_REMEDIES = {
    401: f"The token does not hold there; {_TOKEN}",
    403: f"The token is for less; {_TOKEN}",
    404: "Deploy the version that is asked for, or ask for another",
}


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, whether it is kept, what was seen, and what to do about it."""

    name: str
    outcome: Outcome
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is tried; ``model`` as name:version, durations in seconds.

    ``limit_s`` is for each request from its start to the last byte of its answer, ``wait_s`` for
    the deployment to become ready.
    """

    url: str
    token: str = field(repr=False)
    model: str | None = None
    golden: Rows | None = None
    verify: ssl.SSLContext | bool = True
    wait_s: float = 60
    limit_s: float = 10


async def try_out(asked: Asked, told: Callable[[str], None]) -> list[Check]:
    """Try all of it, past the first failure; ``told`` is what is being done now."""
    # asyncio holds the limit: httpx's are for each step, and a server that trickles keeps those.
    client = httpx.AsyncClient(
        base_url=asked.url,
        verify=asked.verify,
        timeout=None,  # noqa: S113
        mounts=proxy_bypass(asked.url),
    )
    async with client:
        return await _Trial(client, asked, told).run()


class _Trial:
    """One run; what a check sees is kept for those after it."""

    def __init__(
        self, client: httpx.AsyncClient, asked: Asked, told: Callable[[str], None]
    ) -> None:
        self._client, self._asked, self._told = client, asked, told
        self._due = asyncio.get_running_loop().time() + asked.wait_s
        # By name:version, in the order in which they were met.
        self._answered: dict[str, None] = {}
        self._refusals: list[httpx.Response] = []
        self._metrics = ""

    async def run(self) -> list[Check]:
        up: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("liveness", partial(self._until, "/livez")),
            ("readiness", partial(self._until, "/readyz")),
        ]
        others: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("no token", partial(self._refused, None)),
            ("forged token", partial(self._refused, forged(self._asked.token))),
            ("predictions", self._predictions),
            ("version", self._version),
            ("metrics", self._counts),
            ("build", self._build),
            ("unknown path", self._unknown_path),
            ("security headers", self._security_headers),
        ]
        found: list[Check] = []
        for name, step in [*up, *others]:
            if any(each.outcome == "failed" for each in found[: len(up)]):
                found.append(Check(name, "skipped", "it is not up"))
                continue
            self._told(name)
            found.append(await self._check(name, step))
        return found

    async def _check(self, name: str, step: Callable[[], Awaitable[str]]) -> Check:
        try:
            return Check(name, "ok", one_line(await step()))
        except Skipped as error:
            return Check(name, "skipped", one_line(str(error)))
        except Failed as error:
            return Check(name, "failed", one_line(error.seen), error.remedy)
        except (TimeoutError, httpx.RequestError) as error:
            return Check(name, "failed", self._fault(error), f"{_LOG}, and that of what is between")

    async def _ask(
        self, method: str, path: str, token: str | None = None, body: object = None
    ) -> httpx.Response:
        headers = {"X-Request-ID": f"smoke-{token_hex(8)}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with asyncio.timeout(self._asked.limit_s):
            return await self._client.request(method, path, headers=headers, json=body)

    def _fault(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._asked.limit_s:g} s"
        return one_line(f"{str(error) or 'broken off'} ({type(error).__name__})")

    async def _until(self, path: str) -> str:
        """Ask a health route until it is green, or the time to wait is over."""
        while True:
            try:
                answer = await self._ask("GET", path)
            except (TimeoutError, httpx.RequestError) as error:
                if is_tls(error):
                    remedy = (
                        "Name the authority of its certificate (--ca), or mend its names; where "
                        "it speaks no TLS, write http://"
                    )
                    raise Failed(self._fault(error), remedy) from None
                seen = self._fault(error)
                remedy = "Mind the address, and look whether the deployment has started"
            else:
                if answer.status_code == HTTPStatus.OK:
                    return "200"
                seen, remedy = status_of(answer), f"{_LOG}, or wait longer (--wait)"
            if asyncio.get_running_loop().time() >= self._due:
                raise Failed(f"{seen}, after {self._asked.wait_s:g} s", remedy)
            self._told(f"{path}: {seen}; waiting")
            await asyncio.sleep(_POLL_S)

    async def _refused(self, token: str | None) -> str:
        answer = await self._ask("POST", PREDICT, token, _body(_TEXT, None))
        self._refusals.append(answer)
        expect(answer, HTTPStatus.UNAUTHORIZED, "unauthenticated", "Let nobody reach it until")
        return "401"

    async def _predictions(self) -> str:
        golden = self._asked.golden
        if golden is None:
            found = await self._predict(_TEXT)
            return f"{found.label!r} by {found.score:.2f}; without --golden, not held to a label"
        wrong: list[str] = []
        for number, (text, label) in enumerate(
            zip(golden.texts, golden.labels, strict=True), start=1
        ):
            self._told(f"golden row {number} of {len(golden)}")
            found = await self._predict(text, f"row {number}: ")
            if found.label != label:
                wrong.append(f"row {number}: {found.label!r}, not {label!r}")
        if wrong:
            more = f"; and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
            seen = f"{len(wrong)} of {len(golden)} rows otherwise: {'; '.join(wrong[:_TOLD])}{more}"
            raise Failed(seen, "Roll back, or mend the golden rows")
        return f"{len(golden)} golden rows as labelled"

    async def _predict(self, text: str, where: str = "") -> Prediction:
        """Return what is answered of a text; Failed where it is not what the contract says."""
        asked = self._asked
        answer = await self._ask("POST", PREDICT, asked.token, _body(text, asked.model))
        if answer.status_code != HTTPStatus.OK:
            remedy = _REMEDIES.get(answer.status_code, f"{_LOG} for {id_sent(answer)}")
            raise Failed(f"{where}{status_of(answer)}", remedy)
        mend = f"{_LOG}, and what is between: it is no answer of Kaiten"
        try:
            found = PredictV2Response.model_validate_json(answer.content)
            (prediction,) = found.predictions
        except ValidationError as error:
            fields = {".".join(map(str, each["loc"])) or "body" for each in error.errors()}
            raise Failed(f"{where}not as agreed: {', '.join(sorted(fields))}", mend) from None
        except ValueError:
            seen = f"{where}{len(found.predictions)} predictions for one text"
            raise Failed(seen, mend) from None
        if not prediction.label:
            raise Failed(f"{where}an empty label", mend)
        if {found.request_id, answer.headers.get("X-Request-ID")} != {id_sent(answer)}:
            raise Failed(f"{where}request_id is not the X-Request-ID that was sent", mend)
        self._answered[found.model] = None
        return prediction

    async def _version(self) -> str:
        versions = ", ".join(self._versions())
        if self._asked.model is not None and [*self._answered] != [self._asked.model]:
            remedy = "Wait for the roll-out to end, or deploy the version again"
            raise Failed(f"{versions} answers, not {self._asked.model}", remedy)
        return versions

    async def _counts(self) -> str:
        versions = self._versions()
        for _ in range(_SCRAPES):
            shown = await self._scrape()
            if versions & versions_of(series(self._metrics, "model_requests_total")):
                return shown
            await self._predict(_TEXT)
        seen = f"no model_requests_total of {', '.join(versions)}"
        raise Failed(seen, f"{_LOG}: what is answered is not counted")

    async def _scrape(self) -> str:
        """Read the metrics, with the token where they ask for it; return how they are shown."""
        answer, shown = await self._ask("GET", "/metrics"), "open"
        if answer.status_code == HTTPStatus.UNAUTHORIZED:
            answer, shown = await self._ask("GET", "/metrics", self._asked.token), "with the token"
        if answer.status_code == HTTPStatus.NOT_FOUND:
            raise Skipped("hidden at this address: 404")
        if answer.status_code != HTTPStatus.OK:
            remedy = _TOKEN.capitalize() if answer.status_code in (401, 403) else _LOG
            raise Failed(status_of(answer), remedy)
        self._metrics = answer.text
        return shown

    async def _build(self) -> str:
        versions = self._versions()
        if not self._metrics:
            raise Skipped("no metrics were read")
        digests = {
            f"{tag} is {each.get('digest', '')}"
            for each in series(self._metrics, "kaiten_model_info")
            for tag in versions & versions_of([each])
        }
        builds = {
            f"Kaiten {each.get('version')}, bento {each.get('bento') or 'none'}"
            for each in series(self._metrics, "kaiten_build_info")
        }
        for name, found in (("kaiten_model_info", digests), ("kaiten_build_info", builds)):
            if not found:
                seen = f"no {name} in the metrics, so nobody can tell what is deployed"
                raise Failed(seen, "Build and deploy it anew")
        return "; ".join([*sorted(digests), *sorted(builds)])

    async def _unknown_path(self) -> str:
        answer = await self._ask("GET", f"/smoke-{token_hex(8)}")
        self._refusals.append(answer)
        expect(answer, HTTPStatus.NOT_FOUND, "not_found", "Route the whole address to Kaiten, as")
        return "404"

    async def _security_headers(self) -> str:
        if not self._refusals:
            raise Skipped("nothing was answered")
        lacking = {
            name
            for answer in self._refusals
            for name, value in _HEADERS.items()
            if not answer.headers.get(name, "").startswith(value)
        }
        if lacking:
            seen = f"lacking or weaker: {', '.join(sorted(lacking))}"
            raise Failed(seen, "Let what is between pass the headers on as they are")
        return f"{len(_HEADERS)} on each answer"

    def _versions(self) -> set[str]:
        if not self._answered:
            raise Skipped("no prediction was answered")
        return {*self._answered}


def _body(text: str, model: str | None) -> dict[str, object]:
    # By its name alone: then the answer says which version it is that serves.
    return {"inputs": [text]} | ({"model": model.partition(":")[0]} if model else {})
