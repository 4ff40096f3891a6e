"""The one handler behind every prediction route."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import structlog
from pydantic_core import to_json

from gateway.admission.refused_bodies import RefusedBodies
from gateway.interfaces import Classified, Runner, RunnerRegistry
from gateway.parsing import check_count, check_lengths
from gateway.schemas import PredictV1Response
from kaiten import model_tags
from kaiten.context import RequestContext, current
from kaiten.errors import (
    BlankText,
    Detail,
    InferenceFailed,
    InvalidInput,
    NotReady,
    QueueFull,
    Unauthenticated,
    UnknownModel,
)
from kaiten.events import PredictionEvent
from kaiten.settings.models import GatewaySettings

logger = structlog.get_logger(__name__)
# Labels that are ranked and written, a microsecond each, before others run.
_RANKED_AT_ONCE = 2000


class Predictor:
    """Answers by the versions that serve, which it asks the registry for at each request."""

    def __init__(
        self,
        registry: RunnerRegistry,
        limits: GatewaySettings,
        others_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._others_ready = others_ready
        self._refused_bodies = RefusedBodies()

    @property
    def ready(self) -> bool:
        """Whether every model can answer, and callers can be told apart."""
        return self._others_ready() and self._registry.ready

    def retry_after_s(
        self, subject: str, body_bytes: int, deadline: float, ahead: int
    ) -> int | None:
        """Return when to retry, in seconds, if every model would refuse a request of the subject.

        Its body, of so many bytes or 0 if that is unknown, has not been read: it tells the model
        and the number of inputs. ``deadline`` is when it is due, by time.monotonic(), and ``ahead``
        how many requests of the subject are to be handled before it.
        """
        inputs = self._refused_bodies.inputs(subject, body_bytes)
        pauses_s: list[int] = []
        for runner in self._registry:
            ready = runner.ready
            pause_s = runner.retry_after_s(subject, inputs, deadline, ahead) if ready else None
            if pause_s is None:
                return None
            pauses_s.append(pause_s)
        return min(pauses_s, default=None)

    async def one(self, text: str) -> PredictV1Response:
        """Answer for one text, by the default model."""
        check_lengths({"text": text}, self._limits)
        runner, context = self._admit(None)
        with _naming(lambda _: "text"):
            answer = (await self._predict(runner, [text], context))[0]
        return PredictV1Response(
            result=answer.index,
            label=runner.labels[answer.index],
            confidence=answer.confidence,
            truncated=answer.truncated,
            model=runner.tag,
            request_id=context.request_id,
            timestamp=datetime.now(UTC),
        )

    async def many(self, texts: Sequence[str], top_k: int = 1, model: str | None = None) -> bytes:
        """Answer for each text, in order: the JSON of a PredictV2Response."""
        check_count("inputs", texts, self._limits)
        check_lengths({f"inputs.{index}": text for index, text in enumerate(texts)}, self._limits)
        runner, context = self._admit(model)
        with _naming(lambda index: f"inputs.{index}"):
            answers = await self._predict(runner, texts, context)
        head = to_json({"model": runner.tag, "request_id": context.request_id})
        predictions = await _predictions(answers, runner.labels, top_k)
        return b'%s,"predictions":[%s]}' % (head.removesuffix(b"}"), b",".join(predictions))

    def _admit(self, model: str | None) -> tuple[Runner, RequestContext]:
        """Return the model's runner, once the caller is known to be allowed to ask it."""
        context = current()
        if context.principal is None:
            raise Unauthenticated(token_sent=False)
        runner = self._registry.get(model)
        if runner is None:
            raise UnknownModel(sorted(runner.tag for runner in self._registry))
        context.principal.require_prediction(model_tags.split(runner.tag)[0])
        if not runner.ready:
            raise NotReady
        context.model = runner.tag
        context.retry_after_s = runner.drain_seconds
        return runner, context

    async def _predict(
        self, runner: Runner, texts: Sequence[str], context: RequestContext
    ) -> Sequence[Classified]:
        try:
            answers = await runner.predict(texts, context.deadline)
        except QueueFull as error:
            self._refused_bodies.add(
                context.subject, context.body_bytes, len(texts), error.retry_after_s
            )
            raise
        if not all(math.isfinite(answer.confidence) for answer in answers):
            logger.error("scores_not_finite", model=runner.tag)
            raise InferenceFailed
        context.events += [
            PredictionEvent(
                request_id=context.request_id,
                item=item,
                subject=context.subject,
                model_tag=runner.tag,
                text=text,
                label=runner.labels[answer.index],
                tokens=answer.tokens,
                unknown_tokens=answer.unknown_tokens,
                confidence=answer.confidence,
                entropy=answer.entropy,
                distance=answer.distance,
                truncated=answer.truncated,
            )
            for item, (text, answer) in enumerate(zip(texts, answers, strict=True))
        ]
        return answers


@contextmanager
def _naming(field: Callable[[int], str]) -> Iterator[None]:
    """Refuse a text that is blank to the model, by the name of its field."""
    try:
        yield
    except BlankText as error:
        reason = "is empty to the model: it holds only characters that its tokenizer removes"
        raise InvalidInput([Detail(field(error.index), reason)]) from None


async def _predictions(
    answers: Sequence[Classified], labels: Sequence[str], top_k: int
) -> list[bytes]:
    """Return the JSON of a Prediction for each answer, and let others run in between."""
    predictions = []
    ranked = 0
    for answer in answers:
        if ranked >= _RANKED_AT_ONCE:
            await asyncio.sleep(0)
            ranked = 0
        predictions.append(_prediction(answer, labels, top_k))
        ranked += min(top_k, len(labels))
    return predictions


def _prediction(answer: Classified, labels: Sequence[str], top_k: int) -> bytes:
    order = [answer.index]
    if top_k > 1:
        # A stable sort, so that equal scores come in the order of the labels.
        order = np.argsort(-answer.scores, kind="stable")[:top_k].tolist()
    # Plain values: a model for each label would cost ten times as much.
    ranked = [
        {"label": labels[index], "index": index, "score": float(answer.scores[index])}
        for index in order
    ]
    return to_json({**ranked[0], "top_k": ranked, "truncated": answer.truncated})
