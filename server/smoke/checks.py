"""The smoke checks: what a deployment's callers and operators rely on, in order."""

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

from gateway.protocols.kaiten_v2 import ModelsResponse, Prediction, PredictV2Response
from kaiten.addresses import proxy_bypass
from lifecycle.evaluate.rows import Rows, name_labels
from server.smoke.responses import (
    CheckFailed,
    CheckSkipped,
    describe_status,
    expect_error,
    forge_token,
    is_tls_error,
    metric_series,
    model_tags_of,
    sent_request_id,
    to_one_line,
)

Outcome = Literal["ok", "failed", "skipped"]
PREDICT, MODELS = "/api/v2/predict", "/api/v2/models"
# Fits no model in particular: its label is not checked.
_TEXT = "Good morning, can you help me?"
_POLL_S = 0.2
# Each replica counts its own predictions, and a balancer picks a replica for each request.
_SCRAPES = 20
_MAX_LISTED = 5
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'",
    "cache-control": "no-store",
}
_LOG = "See the server's log"
_TOKEN = "pass one that is valid there, with the scopes predict and ops (--token-file)"  # noqa: S105
_REMEDIES = {
    401: f"The token is not valid there; {_TOKEN}",
    403: f"The token lacks a scope; {_TOKEN}",
    404: "Deploy the version that is asked for, or ask for another",
}


@dataclass(frozen=True, slots=True)
class SmokeCheck:
    """The outcome of one check: the observation and, if it failed, the remedy."""

    name: str
    outcome: Outcome
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class SmokeRequest:
    """The deployment to check; ``model`` is the model tag that must answer.

    ``limit_s`` bounds each request from its start to the last byte of its response, ``wait_s`` the
    time until the deployment is ready.
    """

    url: str
    token: str = field(repr=False)
    model: str | None = None
    golden: Rows | None = None
    verify: ssl.SSLContext | bool = True
    wait_s: float = 60
    limit_s: float = 10


async def run_smoke_checks(
    request: SmokeRequest, report_step: Callable[[str], None]
) -> list[SmokeCheck]:
    """Run all checks, also after a failure; ``report_step`` is called with the current step."""
    # asyncio enforces the limit: httpx's are for each read, and a slow server keeps within those.
    client = httpx.AsyncClient(
        base_url=request.url,
        verify=request.verify,
        timeout=None,  # noqa: S113
        mounts=proxy_bypass(request.url),
    )
    async with client:
        return await _SmokeRun(client, request, report_step).run()


class _SmokeRun:
    """One run; later checks use what earlier checks saw."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        request: SmokeRequest,
        report_step: Callable[[str], None],
    ) -> None:
        self._client, self._request, self._report_step = client, request, report_step
        self._ready_deadline = asyncio.get_running_loop().time() + request.wait_s
        # The model tags that answered, in the order of their first answer.
        self._answered: dict[str, None] = {}
        self._error_responses: list[httpx.Response] = []
        self._metrics = ""

    async def run(self) -> list[SmokeCheck]:
        health: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("liveness", partial(self._wait_for, "/livez")),
            ("readiness", partial(self._wait_for, "/readyz")),
        ]
        others: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("no token", partial(self._check_unauthenticated, None)),
            (
                "forged token",
                partial(self._check_unauthenticated, forge_token(self._request.token)),
            ),
            ("predictions", self._check_predictions),
            ("version", self._check_version),
            ("metrics", self._check_metrics),
            ("build", self._check_build),
            ("unknown path", self._check_unknown_path),
            ("security headers", self._check_security_headers),
        ]
        checks: list[SmokeCheck] = []
        for name, check in [*health, *others]:
            if any(earlier.outcome == "failed" for earlier in checks[: len(health)]):
                checks.append(SmokeCheck(name, "skipped", "it is not up"))
                continue
            self._report_step(name)
            checks.append(await self._run_check(name, check))
        return checks

    async def _run_check(self, name: str, check: Callable[[], Awaitable[str]]) -> SmokeCheck:
        try:
            return SmokeCheck(name, "ok", to_one_line(await check()))
        except CheckSkipped as error:
            return SmokeCheck(name, "skipped", to_one_line(str(error)))
        except CheckFailed as error:
            return SmokeCheck(name, "failed", to_one_line(error.observation), error.remedy)
        except (TimeoutError, httpx.RequestError) as error:
            remedy = f"{_LOG}, and the log of each proxy before it"
            return SmokeCheck(name, "failed", self._describe_fault(error), remedy)

    async def _send(
        self, method: str, path: str, token: str | None = None, body: object = None
    ) -> httpx.Response:
        headers = {"X-Request-ID": f"smoke-{token_hex(8)}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        async with asyncio.timeout(self._request.limit_s):
            return await self._client.request(method, path, headers=headers, json=body)

    def _describe_fault(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._request.limit_s:g} s"
        return to_one_line(f"{str(error) or 'broken off'} ({type(error).__name__})")

    async def _wait_for(self, path: str) -> str:
        """Poll a health route until it answers 200, or until the time to wait is over."""
        while True:
            try:
                response = await self._send("GET", path)
            except (TimeoutError, httpx.RequestError) as error:
                if is_tls_error(error):
                    remedy = (
                        "Name the authority of its certificate (--ca), or correct its names; if "
                        "it does not use TLS, write http://"
                    )
                    raise CheckFailed(self._describe_fault(error), remedy) from None
                observation = self._describe_fault(error)
                remedy = "Check the address, and whether the deployment has started"
            else:
                if response.status_code == HTTPStatus.OK:
                    return "200"
                observation, remedy = describe_status(response), f"{_LOG}, or wait longer (--wait)"
            if asyncio.get_running_loop().time() >= self._ready_deadline:
                raise CheckFailed(f"{observation}, after {self._request.wait_s:g} s", remedy)
            self._report_step(f"{path}: {observation}; waiting")
            await asyncio.sleep(_POLL_S)

    async def _check_unauthenticated(self, token: str | None) -> str:
        response = await self._send("POST", PREDICT, token, _body(_TEXT, None))
        self._error_responses.append(response)
        remedy = "Block all traffic to it until"
        expect_error(response, HTTPStatus.UNAUTHORIZED, "unauthenticated", remedy)
        return "401"

    async def _check_predictions(self) -> str:
        if self._request.golden is None:
            prediction = await self._predict(_TEXT)
            return (
                f"{prediction.label!r} by {prediction.score:.2f}; no --golden, so any label will do"
            )
        golden = await self._name_labels(self._request.golden)
        wrong: list[str] = []
        for number, (text, label) in enumerate(
            zip(golden.texts, golden.labels, strict=True), start=1
        ):
            self._report_step(f"golden row {number} of {len(golden)}")
            prediction = await self._predict(text, f"row {number}: ")
            if prediction.label != label:
                wrong.append(f"row {number}: {prediction.label!r}, not {label!r}")
        if wrong:
            more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
            listed = "; ".join(wrong[:_MAX_LISTED])
            observation = f"{len(wrong)} of {len(golden)} rows differ: {listed}{more}"
            raise CheckFailed(observation, "Roll back, or correct the golden rows")
        return f"{len(golden)} golden rows as labelled"

    async def _name_labels(self, golden: Rows) -> Rows:
        """Return the golden rows with the names of labels, if they have the model's indices."""
        if not all(label.isdecimal() for label in golden.labels):
            return golden
        response = await self._send("GET", MODELS, self._request.token)
        try:
            versions = ModelsResponse.model_validate_json(response.content).models
        except ValidationError:
            seen = f"the labels are numbers, and {MODELS} does not name them: "
            remedy = f"Open {MODELS} to the token, or write the labels' names into the golden rows"
            raise CheckFailed(f"{seen}{describe_status(response)}", remedy) from None
        name = self._request.model and self._request.model.partition(":")[0]
        for version in versions:
            if version.name == name or (name is None and version.default):
                return name_labels(golden, version.labels)
        return golden

    async def _predict(self, text: str, prefix: str = "") -> Prediction:
        """Return the prediction for a text; raise CheckFailed if it breaks the contract."""
        request = self._request
        response = await self._send("POST", PREDICT, request.token, _body(text, request.model))
        if response.status_code != HTTPStatus.OK:
            remedy = _REMEDIES.get(response.status_code, f"{_LOG} for {sent_request_id(response)}")
            raise CheckFailed(f"{prefix}{describe_status(response)}", remedy)
        remedy = f"{_LOG}, and check each proxy: this is not an answer of Kaiten"
        try:
            answer = PredictV2Response.model_validate_json(response.content)
            (prediction,) = answer.predictions
        except ValidationError as error:
            fields = {".".join(map(str, problem["loc"])) or "body" for problem in error.errors()}
            observation = f"{prefix}breaks the contract: {', '.join(sorted(fields))}"
            raise CheckFailed(observation, remedy) from None
        except ValueError:
            observation = f"{prefix}{len(answer.predictions)} predictions for one text"
            raise CheckFailed(observation, remedy) from None
        if not prediction.label:
            raise CheckFailed(f"{prefix}an empty label", remedy)
        request_ids = {answer.request_id, response.headers.get("X-Request-ID")}
        if request_ids != {sent_request_id(response)}:
            raise CheckFailed(f"{prefix}request_id is not the X-Request-ID that was sent", remedy)
        self._answered[answer.model] = None
        return prediction

    async def _check_version(self) -> str:
        answered = ", ".join(self._answered_tags())
        if self._request.model is not None and [*self._answered] != [self._request.model]:
            remedy = "Wait for the rollout to end, or deploy the version again"
            raise CheckFailed(f"{answered} answers, not {self._request.model}", remedy)
        return answered

    async def _check_metrics(self) -> str:
        answered = self._answered_tags()
        for _ in range(_SCRAPES):
            exposure = await self._scrape()
            if answered & model_tags_of(metric_series(self._metrics, "model_requests_total")):
                return exposure
            await self._predict(_TEXT)
        observation = f"no model_requests_total of {', '.join(answered)}"
        raise CheckFailed(observation, f"{_LOG}: predictions are not counted")

    async def _scrape(self) -> str:
        """Read the metrics, with the token if the route requires it; return which it was."""
        response, exposure = await self._send("GET", "/metrics"), "open"
        if response.status_code == HTTPStatus.UNAUTHORIZED:
            response = await self._send("GET", "/metrics", self._request.token)
            exposure = "with the token"
        if response.status_code == HTTPStatus.NOT_FOUND:
            raise CheckSkipped("hidden at this address: 404")
        if response.status_code != HTTPStatus.OK:
            remedy = _TOKEN.capitalize() if response.status_code in (401, 403) else _LOG
            raise CheckFailed(describe_status(response), remedy)
        self._metrics = response.text
        return exposure

    async def _check_build(self) -> str:
        answered = self._answered_tags()
        if not self._metrics:
            raise CheckSkipped("no metrics were read")
        digests = {
            f"{model_tag} is {labels.get('digest', '')}"
            for labels in metric_series(self._metrics, "kaiten_model_info")
            for model_tag in answered & model_tags_of([labels])
        }
        builds = {
            f"Kaiten {labels.get('version')}, bento {labels.get('bento') or 'none'}"
            for labels in metric_series(self._metrics, "kaiten_build_info")
        }
        for name, values in (("kaiten_model_info", digests), ("kaiten_build_info", builds)):
            if not values:
                observation = f"no {name} in the metrics, so the deployed version is unknown"
                raise CheckFailed(observation, "Build and deploy it again")
        return "; ".join([*sorted(digests), *sorted(builds)])

    async def _check_unknown_path(self) -> str:
        response = await self._send("GET", f"/smoke-{token_hex(8)}")
        self._error_responses.append(response)
        remedy = "Route all paths of the address to Kaiten:"
        expect_error(response, HTTPStatus.NOT_FOUND, "not_found", remedy)
        return "404"

    async def _check_security_headers(self) -> str:
        if not self._error_responses:
            raise CheckSkipped("there was no answer")
        missing = {
            name
            for response in self._error_responses
            for name, value in _HEADERS.items()
            if not response.headers.get(name, "").startswith(value)
        }
        if missing:
            observation = f"missing or weaker: {', '.join(sorted(missing))}"
            raise CheckFailed(observation, "Let each proxy pass the headers on unchanged")
        return f"{len(_HEADERS)} on each answer"

    def _answered_tags(self) -> set[str]:
        if not self._answered:
            raise CheckSkipped("no prediction was answered")
        return {*self._answered}


def _body(text: str, model_tag: str | None) -> dict[str, object]:
    # The name alone, so that the answer says which version serves.
    return {"inputs": [text]} | ({"model": model_tag.partition(":")[0]} if model_tag else {})
