"""Which version serves under a name, pinned or not, in development and in production."""

import shutil
from pathlib import Path

import pytest

from kaiten.errors import ModelNotFound, PromotionRefused
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Stage
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.resolution import resolve_model
from lifecycle.store import ModelStore
from tests.unit.lifecycle.cards import save_report, store_model


@pytest.fixture
def store(model_store: Path, tmp_path: Path) -> ModelStore:
    """Return a store with 1.0.0 in production, 1.0.1 in staging, and 1.0.2 in neither."""
    store = ModelStore()
    promotions = PromotionGate(store, VersioningSettings())
    for version, stages in {"1.0.0": [*Stage], "1.0.1": [Stage.STAGING], "1.0.2": []}.items():
        save_report(store, store_model(store, f"ours:{version}", tmp_path))
        for stage in stages:
            promotions.promote(
                f"ours:{version}", PromotionRequest(stage, "tester", "for a test", {})
            )
    return store


@pytest.mark.parametrize("in_production", [False, True])
def test_name_alone_stands_for_production(store: ModelStore, *, in_production: bool) -> None:
    assert resolve_model("ours", store, in_production=in_production).model.card.version == "1.0.0"


@pytest.mark.parametrize("version", ["1.0.0", "1.0.1"])
def test_promoted_pin_serves_anywhere(version: str, store: ModelStore) -> None:
    resolved = resolve_model(f"ours:{version}", store, in_production=True)
    assert resolved.model.card.version == version
    assert resolved.promoted


def test_unpromoted_pin_serves_in_development_only(store: ModelStore) -> None:
    resolved = resolve_model("ours:1.0.2", store, in_production=False)
    assert resolved.model.card.version == "1.0.2"
    assert not resolved.promoted
    with pytest.raises(PromotionRefused, match="promoted to no stage"):
        resolve_model("ours:1.0.2", store, in_production=True)


def test_store_without_its_trail_knows_what_the_versions_carry(store: ModelStore) -> None:
    for file in (store.folder.parent / "kaiten").iterdir():
        file.unlink()
    assert resolve_model("ours", store, in_production=True).model.card.version == "1.0.0"
    assert resolve_model("ours:1.0.1", store, in_production=True).model.card.version == "1.0.1"
    with pytest.raises(PromotionRefused, match="promoted to no stage"):
        resolve_model("ours:1.0.2", store, in_production=True)


def test_version_that_was_rolled_back_to_carries_that(store: ModelStore) -> None:
    promotions = PromotionGate(store, VersioningSettings())
    newer = store.get("ours:1.0.1")
    save_report(store, newer, {"against": "1.0.0"})
    promotions.promote("ours:1.0.1", PromotionRequest(Stage.PRODUCTION, "tester", "for a test", {}))
    promotions.rollback("ours", "tester", "for a test")
    for file in (store.folder.parent / "kaiten").iterdir():
        file.unlink()
    assert resolve_model("ours", store, in_production=True).model.card.version == "1.0.0"
    assert resolve_model("ours:1.0.0", store, in_production=True).promoted
    # Alone, as in a bento of its own.
    shutil.rmtree(newer.folder)
    assert resolve_model("ours:1.0.0", store, in_production=True).promoted


def test_version_that_was_rolled_back_from_does_not_serve_pinned(store: ModelStore) -> None:
    promotions = PromotionGate(store, VersioningSettings())
    newer = store.get("ours:1.0.1")
    save_report(store, newer, {"against": "1.0.0"})
    promotions.promote("ours:1.0.1", PromotionRequest(Stage.PRODUCTION, "tester", "for a test", {}))
    promotions.rollback("ours", "tester", "for a test")
    for _ in range(2):
        with pytest.raises(PromotionRefused, match="promoted to no stage"):
            resolve_model("ours:1.0.1", store, in_production=True)
        # Likewise by what the versions carry.
        shutil.rmtree(store.folder.parent / "kaiten", ignore_errors=True)


def test_stage_stands_for_the_version_in_it_until_it_is_rolled_back_from(
    store: ModelStore,
) -> None:
    promotions = PromotionGate(store, VersioningSettings())
    newer = store.get("ours:1.0.1")
    # It is in staging already; the older one is in production.
    assert resolve_model("ours@staging", store, in_production=True).model.card.version == "1.0.1"
    assert resolve_model("ours@production", store, in_production=True).model.card.version == "1.0.0"
    save_report(store, newer, {"against": "1.0.0"})
    promotions.promote("ours:1.0.1", PromotionRequest(Stage.PRODUCTION, "tester", "for a test", {}))
    for reference in ("ours", "ours@staging"):
        resolved = resolve_model(reference, store, in_production=True)
        assert (resolved.model.card.version, resolved.promoted) == ("1.0.1", True)
    promotions.rollback("ours", "tester", "for a test")
    with pytest.raises(PromotionRefused, match="none of its versions is in staging"):
        resolve_model("ours@staging", store, in_production=True)


def test_version_in_production_that_goes_through_staging_again_still_serves(
    store: ModelStore,
) -> None:
    promotions = PromotionGate(store, VersioningSettings())
    promotions.promote("ours:1.0.0", PromotionRequest(Stage.STAGING, "tester", "for a test", {}))
    for file in (store.folder.parent / "kaiten").iterdir():
        file.unlink()
    assert resolve_model("ours", store, in_production=True).model.card.version == "1.0.0"


def test_name_without_a_version_in_production(model_store: Path, tmp_path: Path) -> None:
    store = ModelStore()
    with pytest.raises(ModelNotFound):
        resolve_model("ours", store, in_production=False)
    store_model(store, "ours:1.0.0", tmp_path)
    with pytest.raises(
        PromotionRefused, match=r"none of its versions is in production \(there: ours:1.0.0\)"
    ):
        resolve_model("ours", store, in_production=False)
