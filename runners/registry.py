"""The registry: which versions serve in this process, and by which runner.

It is the only holder of that set. Everything else asks it, for each request or each turn, so that a
version can be added while others serve.
"""

import asyncio
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from kaiten import model_tags
from kaiten.serving import ServedModel
from runners.device_process.client import RemoteRunner
from runners.runner import Runner

ModelRunner = Runner | RemoteRunner


class Registry:
    """The served versions, by model name and by model tag. The first is the default.

    ``models`` is a live view by model tag.
    """

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self._runners: dict[str, ModelRunner] = {}
        # A name without a version stands for the version of that model that was added last.
        self._tags: dict[str, str] = {}
        self.models: Mapping[str, ServedModel] = MappingProxyType(self._models)

    def add(self, model: ServedModel, runner: ModelRunner) -> None:
        """Let a version serve by its runner, which is not ready before it has started."""
        self._models[model.model_tag] = model
        self._runners[model.model_tag] = runner
        self._tags[model_tags.split(model.model_tag)[0]] = model.model_tag

    def __iter__(self) -> Iterator[ModelRunner]:
        """Yield every runner."""
        return iter(self._runners.values())

    def get(self, model: str | None) -> ModelRunner | None:
        """Return the runner for a model name or model tag, the default for None.

        Returns None if no such version serves.
        """
        if model is None:
            return next(iter(self._runners.values()), None)
        return self._runners.get(self._tags.get(model, model))

    @property
    def ready(self) -> bool:
        """Whether every version can answer."""
        return all(runner.ready for runner in self)

    @property
    def hung(self) -> bool:
        """Whether a thread of some runner hangs, so that the process cannot end by itself."""
        return any(runner.hung for runner in self)

    async def start(self) -> None:
        """Warm up all versions, each ready as soon as it is warm."""
        await asyncio.gather(*(runner.start() for runner in self))

    async def close(self) -> None:
        """Stop all runners; waiting requests are answered with NotReady."""
        await asyncio.gather(*(runner.close() for runner in self))
