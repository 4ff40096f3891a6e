"""The handler behind every protocol's prediction routes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from gateway.admission.refused_bodies import RefusedBodies
from gateway.exchange import Exchange
from gateway.interfaces import Classified, PredictionRunner, RunnerRegistry
from gateway.parsing import check_lengths
from kaiten.errors import (
    BlankText,
    Detail,
    InferenceFailed,
    InvalidInput,
    NotReady,
    QueueFull,
    UnknownModel,
)
from kaiten.events import PredictionEvent
from kaiten.settings.models import GatewaySettings

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PredictionResult:
    """A model's answer for each input, in order."""

    model_tag: str
    labels: Sequence[str]
    answers: Sequence[Classified]


class PredictionHandler:
    """Answers by the versions that serve, which it asks the registry for at each request."""

    def __init__(
        self,
        registry: RunnerRegistry,
        limits: GatewaySettings,
        others_ready: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._limits = limits
        self._others_ready = others_ready
        self._refused_bodies = RefusedBodies()

    @property
    def ready(self) -> bool:
        """Whether every model can answer, and callers can be authenticated."""
        return self._others_ready() and self._registry.ready

    @property
    def runners(self) -> Iterator[PredictionRunner]:
        """The runner of each version that serves, the default's first."""
        return iter(self._registry)

    def retry_after_s(
        self, subject: str, body_bytes: int, deadline: float, ahead: int
    ) -> int | None:
        """Return when to retry, in seconds, if every model would reject a request of the subject.

        Its body, of so many bytes or 0 if that is unknown, has not been read: it names the model
        and holds the inputs. ``deadline`` is when it is due, by time.monotonic(), and ``ahead`` how
        many requests of the subject are to be handled before it.
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

    async def predict(
        self,
        exchange: Exchange,
        inputs: Sequence[str],
        field_of: Callable[[int], str],
        model: str | None = None,
    ) -> PredictionResult:
        """Return the answers of a model, by its name or tag; ``field_of`` names an input's field.

        Raises:
            InvalidInput: An input is too long, or blank to the model.
            UnknownModel: The model is not served.
            Forbidden: The caller has no scope for the model.
            NotReady: The model is not warm yet.
            QueueFull: The model's queue has no room.
            InferenceFailed: The model failed, or its scores are not numbers.
            DeadlineExceeded: There was no answer in time.

        """
        check_lengths(inputs, field_of, self._limits)
        runner = self._runner(exchange, model)
        try:
            answers = await runner.predict(inputs, exchange.deadline)
        except QueueFull as error:
            self._refused_bodies.add(
                exchange.subject, exchange.declared_bytes, len(inputs), error.retry_after_s
            )
            raise
        except BlankText as error:
            reason = "is empty to the model: it holds only characters that its tokenizer removes"
            raise InvalidInput([Detail(field_of(error.index), reason)]) from None
        if not all(math.isfinite(answer.confidence) for answer in answers):
            logger.error("scores_not_finite", model=runner.model_tag)
            raise InferenceFailed
        exchange.events += [
            _event(exchange, runner, item, text, answer)
            for item, (text, answer) in enumerate(zip(inputs, answers, strict=True))
        ]
        return PredictionResult(runner.model_tag, runner.labels, answers)

    def _runner(self, exchange: Exchange, model: str | None) -> PredictionRunner:
        """Return the model's runner if the caller may use it and it is ready."""
        caller = exchange.caller
        runner = self._registry.get(model)
        if runner is None:
            served = (runner.model_tag for runner in self._registry)
            raise UnknownModel(sorted(tag for tag in served if caller.may_predict(tag)))
        caller.require_prediction(runner.model_tag)
        if not runner.ready:
            raise NotReady
        exchange.model_tag = runner.model_tag
        exchange.retry_after_s = runner.queue_delay_s
        return runner


def _event(
    exchange: Exchange, runner: PredictionRunner, item: int, text: str, answer: Classified
) -> PredictionEvent:
    return PredictionEvent(
        request_id=exchange.request_id,
        item=item,
        subject=exchange.subject,
        model_tag=runner.model_tag,
        text=text,
        label=runner.labels[answer.index],
        tokens=answer.tokens,
        unknown_tokens=answer.unknown_tokens,
        confidence=answer.confidence,
        entropy=answer.entropy,
        distance=answer.distance,
        truncated=answer.truncated,
    )
