"""Killed by SIGKILL at each change of the disk: the old state holds, and the next try works."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kaiten.errors import PromotionRefused
from kaiten.settings.models import ValidationSettings, VersioningSettings
from lifecycle.audit_log import Action, Stage
from lifecycle.evaluate import page
from lifecycle.evaluate.rows import Rows
from lifecycle.evaluate.run import Candidate, InferenceDevice, ValidationData, Validator
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.registration import register_model
from lifecycle.store import ModelStore
from server import validation as command
from tests.unit.lifecycle.cards import save_report
from tests.unit.lifecycle.folders import MODEL
from tests.unit.lifecycle.test_registration import RULES, inspect, submission

# Python 3.12 warns where a process of several threads forks; the child starts none.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.link", "os.truncate"}
# More than any operation makes; bounds a test that would never end.
MOST = 200
TAG = "ours:1.0.1"


def changes_the_disk(event: str, arguments: Sequence[object]) -> bool:
    if event != "open":
        return event in CHANGES
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def kill_at_change(number: int, act: Callable[[], object]) -> bool:
    """Do it in a process that dies before that change of the disk; return whether it came to it."""
    child = os.fork()
    if child == 0:
        change_count = 0

        def count(event: str, arguments: Sequence[object]) -> None:
            nonlocal change_count
            if changes_the_disk(event, arguments):
                change_count += 1
                if change_count == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(count)
            act()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@dataclass
class House:
    """A store whose first version serves in production; ``reset`` goes back to that."""

    home: Path
    source: Path
    work: Path

    @property
    def store(self) -> ModelStore:
        return ModelStore()

    def keep(self) -> None:
        shutil.copytree(self.home, self.work / "saved")

    def reset(self) -> None:
        shutil.rmtree(self.home)
        shutil.copytree(self.work / "saved", self.home)
        shutil.rmtree(self.work / "validation", ignore_errors=True)

    def register(self, tag: str = TAG) -> None:
        model_submission = submission(self.source, tag)
        register_model(model_submission, "tester", RULES, store=self.store, inspect=inspect)

    def validate(self) -> None:
        model = self.store.get(TAG)
        rows = Rows(texts=("a", "b") * 40, labels=("no", "yes") * 40, slices={}, digest="0" * 64)

        def predict(texts: Sequence[str]) -> NDArray[np.float32]:
            return np.array([[0.9, 0.1] if text == "a" else [0.1, 0.9] for text in texts], "f4")

        device = InferenceDevice("none", lambda: 1 << 20, {})
        validator = Validator(
            ValidationSettings(), device, self.work / "validation", lambda *_: None
        )
        data = ValidationData(Path("test.jsonl"), rows)
        report, _ = validator.validate(Candidate(model, predict), None, data)
        assert report.passed
        command.save_report(
            self.store, model, report, {"against": "1.0.0"}, {"reference.bin": b"profile"}
        )
        validator.remove_cache()

    def promote(self, stage: Stage) -> None:
        request = PromotionRequest(stage, "tester", "for a test", {})
        PromotionGate(self.store, VersioningSettings()).promote(TAG, request)

    def rollback(self) -> None:
        PromotionGate(self.store, VersioningSettings()).rollback("ours", "tester", "for a test")


@pytest.fixture
def house(model_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    source = tmp_path / "model"
    source.mkdir()
    for name, text in MODEL.items():
        (source / name).write_text(text)
    # Drawing it takes a second, and nothing of it is written.
    monkeypatch.setattr(page, "render", lambda _: "<html>")
    house = House(model_store, source, tmp_path)
    house.register("ours:1.0.0")
    save_report(house.store, house.store.get("ours:1.0.0"))
    promotions = PromotionGate(house.store, VersioningSettings())
    for stage in Stage:
        promotions.promote("ours:1.0.0", PromotionRequest(stage, "tester", "the first", {}))
    return house


def prepare(house: House, *steps: Callable[[], object]) -> None:
    for step in steps:
        step()
    house.keep()


def check_each(house: House, act: Callable[[], object], check: Callable[[], object]) -> int:
    """Kill it at each change of the disk, check the state, and try again; return the changes."""
    for number in range(1, MOST):
        house.reset()
        if not kill_at_change(number, act):
            return number - 1
        # After any partial change, the same version serves and the audit log is valid.
        assert house.store.get("ours:1.0.0").card.version == "1.0.0"
        house.store.audit_log("ours").entries()
        assert {model.card.version for model in house.store} <= {"1.0.0", "1.0.1"}
        check()
    raise AssertionError("it never ends")


def actions(house: House) -> list[Action]:
    return [entry.action for entry in house.store.audit_log("ours").entries()]


def test_register(house: House) -> None:
    prepare(house)

    def again() -> None:
        if TAG not in house.store or house.store.is_unfinished(TAG):
            house.register()
        assert house.store.get(TAG).card.version == "1.0.1"

    assert check_each(house, house.register, again) > 10


def test_validate(house: House) -> None:
    prepare(house, house.register)
    before = actions(house)

    def again() -> None:
        assert actions(house) in (before, [*before, Action.VALIDATED])
        house.validate()
        # Nothing that a killed one left is taken for a report.
        house.promote(Stage.STAGING)

    assert check_each(house, house.validate, again) > 8


@pytest.mark.parametrize("stage", [*Stage])
def test_promote(stage: Stage, house: House) -> None:
    to_staging = [lambda: house.promote(Stage.STAGING)] if stage is Stage.PRODUCTION else []
    prepare(house, house.register, house.validate, *to_staging)
    before = actions(house)

    def again() -> None:
        if actions(house) == before:
            house.promote(stage)
        else:
            # The audit log already has the entry, so nothing is left to do.
            with pytest.raises(PromotionRefused, match="already"):
                house.promote(stage)
        assert actions(house) == [*before, Action.PROMOTED]

    assert check_each(house, lambda: house.promote(stage), again) > 4


def test_rollback(house: House) -> None:
    promotions = [lambda: house.promote(Stage.STAGING), lambda: house.promote(Stage.PRODUCTION)]
    prepare(house, house.register, house.validate, *promotions)
    before = actions(house)

    def again() -> None:
        if actions(house) == before:
            house.rollback()
        assert actions(house) == [*before, Action.ROLLED_BACK]

    assert check_each(house, house.rollback, again) > 4
