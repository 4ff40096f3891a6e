from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from kaiten.serving import ServedModel
from runners.registry import ModelRunner, Registry


@dataclass(eq=False)
class FakeRunner:
    ready: bool = False
    hung: bool = False
    calls: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.calls.append("start")
        self.ready = True

    async def close(self) -> None:
        self.calls.append("close")
        self.ready = False


def registry_of(**runners: FakeRunner) -> Registry:
    """Return a registry of ``intent:1.0.0``, written ``intent_1_0_0``, and so on."""
    registry = Registry()
    for name, runner in runners.items():
        model, _, version = name.partition("_")
        tag = f"{model}:{version.replace('_', '.')}"
        registry.add(ServedModel(tag, ("a", "b"), "digest"), cast("ModelRunner", runner))
    return registry


@pytest.mark.parametrize(
    ("model", "index"),
    [
        (None, 0),
        ("intent:1.0.0", 0),
        ("topic", 1),
        ("topic:2.1.0", 1),
        ("intent", 2),
        ("intent:2.0.0", 2),
        ("topic:1.0.0", None),
        ("other", None),
        ("", None),
    ],
)
def test_runner_is_found_by_name_or_tag_and_the_first_is_the_default(
    model: str | None, index: int | None
) -> None:
    runners: list[Any] = [FakeRunner(), FakeRunner(), FakeRunner()]
    registry = registry_of(intent_1_0_0=runners[0], topic_2_1_0=runners[1], intent_2_0_0=runners[2])
    assert registry.get(model) is (None if index is None else runners[index])
    assert [*registry] == runners


def test_view_of_the_models_is_live() -> None:
    registry = Registry()
    models = registry.models
    assert (registry.get(None), dict(models)) == (None, {})
    model = ServedModel("intent:1.0.0", ("a",), "digest")
    registry.add(model, cast("ModelRunner", FakeRunner()))
    assert dict(models) == {"intent:1.0.0": model}
    assert models["intent:1.0.0"].arm == "production"


async def test_all_runners_start_and_close_and_readiness_is_that_of_all() -> None:
    runners = FakeRunner(), FakeRunner()
    registry = registry_of(intent_1_0_0=runners[0], topic_1_0_0=runners[1])
    ready = [registry.ready]
    await registry.start()
    ready.append(registry.ready)
    runners[1].ready = False
    ready.append(registry.ready)
    await registry.close()
    assert ready == [False, True, False]
    assert [runner.calls for runner in runners] == [["start", "close"]] * 2


def test_one_hung_runner_is_enough() -> None:
    runners = FakeRunner(), FakeRunner()
    registry = registry_of(intent_1_0_0=runners[0], topic_1_0_0=runners[1])
    hung = [registry.hung]
    runners[1].hung = True
    hung.append(registry.hung)
    assert hung == [False, True]
