"""Promotion and rollback: the conditions for a version to serve in a stage."""

import shutil
import threading
from pathlib import Path

import pytest

from kaiten.errors import ModelRejected, PromotionRefused
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Action, AuditLogEntry, Stage, serving_entry
from lifecycle.baseline import REPORT_FILE
from lifecycle.card import CARD_FILE
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.store import ModelStore
from tests.unit.lifecycle.cards import save_report, store_model

STAGING, PRODUCTION = Stage.STAGING, Stage.PRODUCTION


class House:
    """A store with audit logs, and a promotion gate on it."""

    def __init__(self, folder: Path, rules: VersioningSettings | None = None) -> None:
        self.folder, self.store = folder, ModelStore()
        self.promotions = PromotionGate(self.store, rules or VersioningSettings())

    def add(self, version: str, *, passed: bool | None = True) -> None:
        model = store_model(self.store, f"ours:{version}", self.folder)
        if passed is not None:
            current = self.serves()
            evidence = {"against": current} if current else {}
            save_report(self.store, model, evidence, passed=passed)

    def promote(self, version: str, stage: Stage, **evidence: str) -> AuditLogEntry:
        return self.promotions.promote(
            f"ours:{version}", PromotionRequest(stage, "tester", "for a test", evidence)
        )

    def release(self, version: str) -> None:
        self.add(version)
        self.promote(version, STAGING)
        self.promote(version, PRODUCTION)

    def rollback(self) -> AuditLogEntry:
        return self.promotions.rollback("ours", "tester", "for a test")

    @property
    def entries(self) -> list[AuditLogEntry]:
        return self.store.audit_log("ours").entries()

    def serves(self, stage: Stage = PRODUCTION) -> str | None:
        entry = serving_entry(self.entries, stage)
        return entry.version if entry else None


@pytest.fixture
def house(model_store: Path, tmp_path: Path) -> House:
    return House(tmp_path)


def refusal_message(house: House, version: str, stage: Stage, **evidence: str) -> str:
    before = house.entries
    with pytest.raises(PromotionRefused) as caught:
        house.promote(version, stage, **evidence)
    assert house.entries == before
    return caught.value.message


def test_staging_and_then_production(house: House) -> None:
    house.add("1.0.0")
    entry = house.promote("1.0.0", STAGING)
    assert (entry.action, entry.stage, entry.who) == (Action.PROMOTED, STAGING, "tester")
    assert (house.serves(STAGING), house.serves()) == ("1.0.0", None)
    house.promote("1.0.0", PRODUCTION)
    assert house.serves() == "1.0.0"


def test_nothing_is_promoted_without_a_report(house: House) -> None:
    house.add("1.0.0", passed=None)
    assert "it has no report. Validate it: kaiten validate ours:1.0.0" in refusal_message(
        house, "1.0.0", STAGING
    )


def test_newest_report_counts(house: House) -> None:
    house.add("1.0.0", passed=False)
    assert "did not pass: accuracy is 0.5" in refusal_message(house, "1.0.0", STAGING)
    model = house.store.get("ours:1.0.0")
    save_report(house.store, model)
    house.promote("1.0.0", STAGING)
    save_report(house.store, model, passed=False)
    assert "did not pass" in refusal_message(house, "1.0.0", PRODUCTION)


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_report_that_was_changed_is_none(change: str, house: House) -> None:
    model = store_model(house.store, "ours:1.0.0", house.folder)
    file = model.reports(save_report(house.store, model)) / REPORT_FILE
    if change == "edited":
        file.write_text(file.read_text().replace("True", "true"))
    else:
        file.unlink()
    assert "is missing or was changed" in refusal_message(house, "1.0.0", STAGING)


def test_production_needs_staging(house: House) -> None:
    house.add("1.0.0")
    assert "it does not serve in staging (none does)" in refusal_message(house, "1.0.0", PRODUCTION)
    house.promote("1.0.0", STAGING)
    house.add("1.0.1")
    assert "(1.0.0 does)" in refusal_message(house, "1.0.1", PRODUCTION)


def test_promotion_without_effect_is_refused(house: House) -> None:
    house.release("1.0.0")
    assert "already serves in production" in refusal_message(house, "1.0.0", PRODUCTION)


def test_report_that_asks_for_less_does_not_reach_production(house: House) -> None:
    house.release("1.0.0")
    model = store_model(house.store, "ours:1.0.1", house.folder)
    cases: tuple[tuple[dict[str, str], str | None], ...] = (
        ({"against": "1.0.0", "golden": "d" * 64}, None),
        ({"golden": "d" * 64}, "does not compare it with 1.0.0"),
        ({"against": "0.9.0", "golden": "d" * 64}, "does not compare it with 1.0.0"),
        ({"against": "1.0.0", "golden": "d" * 64, "partly": "true"}, "lack some of its labels"),
        ({"against": "1.0.0"}, "leaves out the golden rows"),
    )
    for number, (evidence, reason) in enumerate(cases):
        save_report(house.store, model, evidence)
        if not number:
            house.promote("1.0.1", STAGING)
        else:
            assert reason is not None
            assert reason in refusal_message(house, "1.0.1", PRODUCTION)
    save_report(house.store, model, cases[0][0])
    assert house.promote("1.0.1", PRODUCTION).version == "1.0.1"


@pytest.mark.parametrize("damage", ["changed", "lost"])
def test_damaged_version_in_production_is_replaced_without_a_comparison(
    house: House, damage: str
) -> None:
    house.release("1.0.0")
    model = store_model(house.store, "ours:1.0.1", house.folder)
    save_report(house.store, model)
    house.promote("1.0.1", STAGING)
    assert "does not compare it with 1.0.0" in refusal_message(house, "1.0.1", PRODUCTION)
    folder = house.store.get("ours:1.0.0").folder
    if damage == "lost":
        shutil.rmtree(folder)
    else:
        (folder / "model.safetensors").write_text("other weights")
    entry = house.promote("1.0.1", PRODUCTION)
    assert (entry.version, entry.evidence) == ("1.0.1", {"unusable": "1.0.0"})


@pytest.mark.parametrize("addition", [".DS_Store", "notes/readme.txt", "a link"])
def test_file_added_to_the_version_in_production_leaves_the_comparison_required(
    house: House, addition: str
) -> None:
    house.release("1.0.0")
    save_report(house.store, store_model(house.store, "ours:1.0.1", house.folder))
    house.promote("1.0.1", STAGING)
    file = house.store.get("ours:1.0.0").folder / addition
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("/etc/hostname") if addition == "a link" else file.touch()
    with pytest.raises(ModelRejected, match="Remove it"):
        house.store.get("ours:1.0.0")
    assert "does not compare it with 1.0.0" in refusal_message(house, "1.0.1", PRODUCTION)


def test_bytes_that_were_not_staged_are_not_promoted_in_their_name(house: House) -> None:
    house.add("1.0.0")
    house.promote("1.0.0", STAGING)
    shutil.rmtree(house.store.get("ours:1.0.0").folder)
    model = store_model(house.store, "ours:1.0.0", house.folder, "other weights")
    save_report(house.store, model)
    assert "it does not serve in staging" in refusal_message(house, "1.0.0", PRODUCTION)


def test_pre_release_never_reaches_production(house: House) -> None:
    house.add("1.0.0-rc.1")
    house.promote("1.0.0-rc.1", STAGING)
    assert "pre-release" in refusal_message(house, "1.0.0-rc.1", PRODUCTION)


def test_changed_byte_is_refused_by_name(house: House) -> None:
    house.add("1.0.0")
    weights = house.store.get("ours:1.0.0").folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelRejected, match=r"model\.safetensors"):
        house.promote("1.0.0", STAGING)


def test_edited_card_is_refused(house: House) -> None:
    house.add("1.0.0")
    card = house.store.get("ours:1.0.0").folder / CARD_FILE
    card.write_text(card.read_text().replace("128", "512"))
    with pytest.raises(ModelRejected, match="was changed after the version was registered"):
        house.promote("1.0.0", STAGING)


def test_release_needs_its_evidence(model_store: Path, tmp_path: Path) -> None:
    house = House(tmp_path, VersioningSettings(release_process=("commit", "tests")))
    house.add("1.0.0")
    # Staging is where a release is made ready.
    house.promote("1.0.0", STAGING)
    assert "missing: tests" in refusal_message(house, "1.0.0", PRODUCTION, commit="abc")
    entry = house.promote("1.0.0", PRODUCTION, commit="abc", tests="12 tests")
    assert entry.evidence == {"commit": "abc", "tests": "12 tests"}


def test_rollback_returns_to_the_last_good_version(house: House) -> None:
    for version in ("1.0.0", "1.0.1", "1.0.2"):
        house.release(version)
    entry = house.rollback()
    assert (entry.action, entry.version, entry.stage) == (Action.ROLLED_BACK, "1.0.1", PRODUCTION)
    assert house.serves() == "1.0.1"
    # A version that was rolled back from does not return.
    assert house.rollback().version == "1.0.0"
    house.release("1.0.3")
    assert house.rollback().version == "1.0.0"


def test_rollback_needs_a_version_before(house: House) -> None:
    with pytest.raises(PromotionRefused, match="no other version served in production before"):
        house.rollback()
    house.release("1.0.0")
    with pytest.raises(PromotionRefused, match="no other version served in production before"):
        house.rollback()
    assert house.serves() == "1.0.0"


def test_rollback_to_changed_files_is_refused(house: House) -> None:
    house.release("1.0.0")
    house.release("1.0.1")
    (house.store.get("ours:1.0.0").folder / "model.safetensors").write_text("others")
    with pytest.raises(ModelRejected, match=r"model\.safetensors"):
        house.rollback()
    assert house.serves() == "1.0.1"


def test_of_two_promotions_at_once_one_is_refused(house: House) -> None:
    house.add("1.0.0")
    outcomes: list[str] = []
    together = threading.Barrier(2)

    def promote() -> None:
        together.wait(10)
        try:
            outcomes.append(house.promote("1.0.0", STAGING).version)
        except PromotionRefused as error:
            outcomes.append(error.message)

    threads = [threading.Thread(target=promote) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner, loser = sorted(outcomes, key=len)
    assert winner == "1.0.0"
    assert "it already serves in staging" in loser
    assert sum(entry.action is Action.PROMOTED for entry in house.entries) == 1
