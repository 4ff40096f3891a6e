"""The versions to serve: found in the model store, and loaded onto runners."""

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from kaiten.serving import ServedModel
from kaiten.settings.loader import Settings
from lifecycle.environment import check_opset, compare_environment, installed_versions
from lifecycle.resolution import effective_baseline, resolve_model
from lifecycle.store import ModelStore, StoredModel
from runners.batching.observer import Observer
from runners.device_process.client import RemoteRunner
from runners.device_process.processes import socket_of
from runners.device_process.server import bytes_task
from runners.engines import choose_engine
from runners.runner import Runner
from runners.tasks import find_task

logger = structlog.get_logger("kaiten.service")


def find_models(settings: Settings) -> list[StoredModel]:
    """Return the version that each name in serving.models stands for.

    Raises:
        ModelNotFound: There is no such version.
        ModelRejected: A file is not as it was registered.
        PromotionRefused: The version may not serve in this environment.

    """
    return [_find_model(name, settings) for name in settings.serving.models]


def _find_model(name: str, settings: Settings) -> StoredModel:
    resolved = resolve_model(
        name, ModelStore(settings.signatures), in_production=settings.in_production
    )
    model = resolved.model
    if not resolved.promoted:
        logger.warning("unpromoted_version_pinned", model=model.card.tag)
    packages = choose_engine(model.folder, settings.runners).packages
    for difference in compare_environment(model.card, installed_versions(packages)):
        logger.warning("environment_differs", model=model.card.tag, difference=str(difference))
    return model


def find_baselines(models: Sequence[StoredModel], settings: Settings) -> dict[str, Path | None]:
    """Return the folder of each version's baseline, by model tag; None without one."""
    chosen = settings.serving.reports
    return {model.card.tag: effective_baseline(model, chosen) for model in models}


def describe(model: StoredModel, baseline: Path | None) -> ServedModel:
    """Return a version's entry in the registry.

    Call it at the start, while its files are known to be whole: they may be lost while it serves.
    """
    return ServedModel(model.card.tag, tuple(model.card.labels), model.digest, baseline)


def load_runner(
    model: StoredModel,
    baseline: Path | None,
    settings: Settings,
    observer: Observer,
    on_death: Callable[[], None],
    *,
    remote: bool = False,
) -> Runner:
    """Load a version into this process; ``on_death`` is called if its runner dies.

    ``remote`` callers send items as bytes and receive bytes, as workers do to a device process.
    """
    card, task_module = model.card, find_task(model.card.task)
    check_opset(card, choose_engine(model.folder, settings.runners).newest_opset)
    task = task_module.load(model.folder, card.max_length, settings.runners, baseline)
    if remote:
        task = bytes_task(task.model, task_module.codec)
    return Runner(card.tag, card.labels, task, settings.effective_batching, observer, on_death)


def connect_runner(
    model: StoredModel, settings: Settings, worker: int, on_death: Callable[[], None]
) -> RemoteRunner:
    """Return a runner whose network is in the device process of a worker, numbered from 0."""
    card, task_module = model.card, find_task(model.card.task)
    return RemoteRunner(
        card.tag,
        card.labels,
        task_module.load_processor(model.folder, card.max_length),
        task_module.codec,
        socket_of(settings.runners, worker),
        settings.effective_batching,
        on_death,
    )
