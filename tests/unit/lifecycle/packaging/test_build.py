"""Which models a bento may be built with; tests/e2e/test_bento.py builds one."""

import re
from pathlib import Path

import pytest

from kaiten.errors import BuildRefused, ModelNotFound, SetupError
from kaiten.settings.environment import ROOT
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Stage
from lifecycle.packaging import build as building
from lifecycle.packaging.bento import check_models
from lifecycle.packaging.build import BuildRequest, build_bento
from lifecycle.packaging.image import containerize_bento
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.store import ModelStore
from tests.unit.lifecycle.cards import save_report, store_model


class Reached(Exception):
    """All models may go in."""


@pytest.fixture
def store(model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """Return a store with a version in staging, one without a stage, one refused and one bare."""

    def reached(*_: object) -> object:
        raise Reached

    # The next step needs a package index.
    monkeypatch.setattr(building, "_lock", reached)
    store = ModelStore()
    for version in ("1.0.0", "1.0.1", "1.0.2", "1.0.3"):
        model = store_model(store, f"ours:{version}", tmp_path)
        if version != "1.0.3":
            save_report(store, model, passed=version != "1.0.2")
    promote(store, "ours:1.0.0")
    return store


def promote(store: ModelStore, tag: str) -> None:
    PromotionGate(store, VersioningSettings()).promote(
        tag, PromotionRequest(Stage.STAGING, "tester", "a test", {})
    )


def refusal(store: ModelStore, *models: str) -> str:
    with pytest.raises(SetupError) as caught:
        build_bento(BuildRequest(ROOT, models), store, {})
    assert isinstance(caught.value, BuildRefused | ModelNotFound)
    return caught.value.message


def test_version_with_a_passing_report_and_a_stage_goes_in(store: ModelStore) -> None:
    with pytest.raises(Reached):
        build_bento(BuildRequest(ROOT, ("ours:1.0.0",)), store, {})


@pytest.mark.parametrize(
    ("tag", "reason"),
    [
        ("ours:1.0.1", "promoted to no stage.*kaiten promote ours:1.0.1 --to staging"),
        ("ours:1.0.2", "did not pass.*kaiten validate ours:1.0.2"),
        ("ours:1.0.3", "has no report.*kaiten validate ours:1.0.3"),
        ("ours:9.9.9", "not in the model store"),
    ],
)
def test_other_versions_are_refused(tag: str, reason: str, store: ModelStore) -> None:
    message = refusal(store, "ours:1.0.0", tag)
    assert re.search(reason, message), message


def test_version_that_fails_after_its_promotion_is_refused(store: ModelStore) -> None:
    save_report(store, store.get("ours:1.0.0"), {"later": "rows"}, passed=False)
    assert "did not pass" in refusal(store, "ours:1.0.0")


def test_imported_version_goes_in_by_what_it_carries(store: ModelStore) -> None:
    for file in (store.folder.parent / "kaiten").iterdir():
        file.unlink()
    with pytest.raises(Reached):
        build_bento(BuildRequest(ROOT, ("ours:1.0.0",)), store, {})
    assert "has no passing report" in refusal(store, "ours:1.0.1")
    report = next((store.get("ours:1.0.0").folder / "reports").glob("*/report.json"))
    report.write_text("{}")
    assert "has no passing report" in refusal(store, "ours:1.0.0")


@pytest.mark.usefixtures("model_store")
def test_only_a_bento_of_ours_becomes_an_image() -> None:
    with pytest.raises(BuildRefused, match="was not made by kaiten build"):
        containerize_bento("kaiten_service:1", ModelStore(), "docker", None, [], {})


def test_models_are_to_be_those_of_the_build(store: ModelStore) -> None:
    model = store.get("ours:1.0.0")
    report = store.audit_log("ours").entries()[-1].report
    labels = {
        "models": "ours:1.0.0",
        "model_digests": f"sha256:{model.digest}",
        "report_digests": f"sha256:{report}",
    }
    check_models(labels, store)
    reasons = {
        "model_digests": "was registered again since",
        "report_digests": r"has lost the report .*kaiten validate ours:1\.0\.0",
    }
    for key, reason in reasons.items():
        with pytest.raises(BuildRefused, match=reason):
            check_models({**labels, key: f"sha256:{'0' * 64}"}, store)
