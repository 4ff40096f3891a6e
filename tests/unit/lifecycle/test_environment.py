"""Another major version refuses to load, a minor one is told, a patch is nothing."""

import pytest

from kaiten.errors import ModelRejected
from lifecycle.card import EngineCard
from lifecycle.environment import check, check_opset, installed_versions
from tests.unit.lifecycle.cards import card

HERE = {"torch": "2.11.0", "transformers": "5.17.0", "onnxruntime": "1.22.0"}


@pytest.mark.parametrize(
    ("here", "told"),
    [
        ({}, []),
        ({"torch": "2.11.7+cpu"}, []),
        ({"torch": "2.13.0"}, ["torch was 2.11.0 at registration, and is 2.13.0 here"]),
        ({"onnxruntime": "1.32.1"}, ["onnxruntime was 1.22.0 at registration, and is 1.32.1 here"]),
    ],
)
def test_minor_versions_are_told(here: dict[str, str], told: list[str]) -> None:
    assert [str(each) for each in check(card(), HERE | here)] == told


@pytest.mark.parametrize("here", [{"torch": "3.0.0"}, {"transformers": "4.57.0"}, {"torch": None}])
def test_major_versions_refuse(here: dict[str, str | None]) -> None:
    with pytest.raises(ModelRejected) as caught:
        check(card(), HERE | here)
    (package,) = here
    assert caught.value.details[0].field == "framework_versions"
    assert package in caught.value.message


def test_what_nobody_asks_about_is_passed_over() -> None:
    assert check(card(), {"onnxruntime": "1.22.0"}) == []


def test_versions_are_those_installed() -> None:
    found = installed_versions(["pydantic", "no-such-package"])
    assert found["pydantic"] is not None
    assert found["no-such-package"] is None


def test_newer_onnx_operators_than_the_engine_knows_refuse() -> None:
    exported = card(engine=EngineCard(name="onnx", reason="for a test", opset=17))
    check_opset(exported, 17)
    check_opset(exported, None)
    check_opset(card(), 16)
    with pytest.raises(ModelRejected, match=r"engine\.opset: of ours:1\.0\.0 is 17, .* up to 16"):
        check_opset(exported, 16)
