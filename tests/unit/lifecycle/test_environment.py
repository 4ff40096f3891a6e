"""Another major version does not load, a minor one is reported, a patch is ignored."""

import pytest

from kaiten.errors import ModelRejected
from lifecycle.card import EngineCard
from lifecycle.environment import check_opset, compare_environment, installed_versions
from tests.unit.lifecycle.cards import card

INSTALLED = {"torch": "2.11.0", "transformers": "5.17.0", "onnxruntime": "1.22.0"}


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, []),
        ({"torch": "2.11.7+cpu"}, []),
        ({"torch": "2.13.0"}, ["torch was 2.11.0 at registration, and is 2.13.0 here"]),
        ({"onnxruntime": "1.32.1"}, ["onnxruntime was 1.22.0 at registration, and is 1.32.1 here"]),
    ],
)
def test_minor_versions_are_reported(changes: dict[str, str], differences: list[str]) -> None:
    assert [
        str(difference) for difference in compare_environment(card(), INSTALLED | changes)
    ] == differences


@pytest.mark.parametrize(
    "changes", [{"torch": "3.0.0"}, {"transformers": "4.57.0"}, {"torch": None}]
)
def test_major_versions_refuse(changes: dict[str, str | None]) -> None:
    with pytest.raises(ModelRejected) as caught:
        compare_environment(card(), INSTALLED | changes)
    (package,) = changes
    assert caught.value.details[0].field == "framework_versions"
    assert package in caught.value.message


def test_other_packages_are_ignored() -> None:
    assert compare_environment(card(), {"onnxruntime": "1.22.0"}) == []


def test_versions_are_those_installed() -> None:
    versions = installed_versions(["pydantic", "no-such-package"])
    assert versions["pydantic"] is not None
    assert versions["no-such-package"] is None


def test_newer_onnx_operators_than_the_engine_knows_refuse() -> None:
    exported = card(engine=EngineCard(name="onnx", reason="for a test", opset=17))
    check_opset(exported, 17)
    check_opset(exported, None)
    check_opset(card(), 16)
    with pytest.raises(ModelRejected, match=r"engine\.opset: of ours:1\.0\.0 is 17, .* up to 16"):
        check_opset(exported, 16)
