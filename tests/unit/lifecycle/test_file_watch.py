"""Files of a version that are lost or changed while it serves."""

import os
import shutil
from pathlib import Path

import pytest

from lifecycle.card import CARD_FILE
from lifecycle.file_watch import FileWatch
from lifecycle.store import ModelStore, StoredModel
from tests.unit.lifecycle.cards import store_model

TAG = "ours:1.0.0"


@pytest.fixture
def model(tmp_path: Path, model_store: Path) -> StoredModel:
    return store_model(ModelStore(), TAG, tmp_path)


def count_damaged(watch: FileWatch) -> int:
    watch.step()
    return watch.damaged[TAG]


def test_intact_version_is_not_reported(model: StoredModel) -> None:
    watch = FileWatch([model], {TAG: None})
    assert watch.damaged == {TAG: 0}
    assert count_damaged(watch) == 0


@pytest.mark.parametrize("name", ["model.safetensors", CARD_FILE, "model.yaml"])
def test_file_that_goes_is_counted_and_one_that_comes_back_is_not(
    name: str, model: StoredModel, tmp_path: Path
) -> None:
    watch = FileWatch([model], {})
    shutil.move(model.folder / name, tmp_path / "aside")
    assert count_damaged(watch) == 1
    shutil.copyfile(tmp_path / "aside", model.folder / name)
    assert count_damaged(watch) == 0


def test_changed_file_is_counted_though_it_keeps_its_size_and_time(model: StoredModel) -> None:
    file = model.folder / "model.safetensors"
    watch = FileWatch([model], {})
    before, content = file.stat(), file.read_bytes()
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert count_damaged(watch) == 1
    assert count_damaged(watch) == 1
    file.write_bytes(content)
    assert count_damaged(watch) == 0


def test_touched_file_is_as_it_was(model: StoredModel) -> None:
    watch = FileWatch([model], {})
    (model.folder / CARD_FILE).touch()
    assert count_damaged(watch) == 0


def test_report_that_drift_is_measured_from_counts(model: StoredModel) -> None:
    digest = model.add_report("{}", {"reference.bin": b"profile"})
    watch = FileWatch([model], {TAG: model.reports(digest)})
    assert count_damaged(watch) == 0
    shutil.rmtree(model.reports(digest))
    assert count_damaged(watch) == 2


def test_lost_folder_counts_every_file(model: StoredModel) -> None:
    watch = FileWatch([model], {})
    shutil.rmtree(model.folder)
    assert count_damaged(watch) == len(model.card.files) + 2
