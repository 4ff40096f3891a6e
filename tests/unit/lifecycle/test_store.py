import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import bentoml
import pytest

from kaiten.errors import ModelLost, ModelNotFound, ModelRejected, ModelUnusable
from lifecycle.audit_log import Action, AuditLogEvent
from lifecycle.card import CARD_FILE, EngineCard, ModelCard, sha256
from lifecycle.store import ModelStore, StoredModel

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "extra/notes.txt": b"notes"}


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    for name, content in FILES.items():
        path = tmp_path / "sources" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: tmp_path / "sources" / name for name in FILES}


@pytest.fixture
def store(model_store: Path) -> ModelStore:
    return ModelStore()


def card_of(tag: str, sources: dict[str, Path]) -> ModelCard:
    name, _, version = tag.partition(":")
    return ModelCard(
        name=name,
        version=version,
        task="text-classification",
        labels=("no", "yes"),
        max_length=128,
        architecture="BertForSequenceClassification",
        framework_versions={"torch": "2.11.0"},
        engine=EngineCard(name="torch", reason="for a test"),
        files={path: sha256(source) for path, source in sources.items()},
    )


def add(store: ModelStore, tag: str, sources: dict[str, Path]) -> StoredModel:
    return store.add(card_of(tag, sources), sources)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_added_version_can_be_got(store: ModelStore, sources: dict[str, Path]) -> None:
    card = card_of("ours:1.0.0", sources)
    stored = store.add(card, sources)
    assert stored.card == card
    assert store.get("ours:1.0.0") == stored
    assert list(store) == [stored]
    assert {name: (stored.folder / name).read_bytes() for name in FILES} == FILES


def test_bentoml_sees_the_version_too(store: ModelStore, sources: dict[str, Path]) -> None:
    stored = add(store, "ours:1.0.0", sources)
    model = bentoml.models.get("ours:1.0.0")
    assert Path(model.path) == stored.folder
    assert model.info.labels == {"task": "text-classification", "made-by": "kaiten"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", [flip_a_byte, cut_off, Path.unlink])
def test_changed_file_is_named(
    change: Callable[[Path], None], name: str, store: ModelStore, sources: dict[str, Path]
) -> None:
    stored = add(store, "ours:1.0.0", sources)
    change(stored.folder / name)
    with pytest.raises(ModelRejected, match="is missing, or was changed after ours:") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == [name]


def test_link_to_a_folder_of_files_is_named(store: ModelStore, sources: dict[str, Path]) -> None:
    folder = add(store, "ours:1.0.0", sources).folder
    # Where no report is looked at, and where an engine is chosen by what lies there.
    (folder / "reports" / "x").mkdir(parents=True)
    (folder / "reports" / "x" / "model.onnx").touch()
    (folder / "onnx").symlink_to(folder / "reports" / "x")
    with pytest.raises(ModelRejected, match="links to a folder") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == ["onnx"]


def test_link_in_a_version_that_was_imported_is_named(
    store: ModelStore, sources: dict[str, Path]
) -> None:
    folder = add(store, "ours:1.0.0", sources).folder
    (folder / "reports").mkdir()
    (folder / "reports" / "report.json").symlink_to("/etc/passwd")
    with pytest.raises(ModelRejected, match="leaves the folder, to /etc/passwd") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == ["reports/report.json"]


def test_fifo_in_a_version_is_named_and_not_waited_for(
    store: ModelStore, sources: dict[str, Path]
) -> None:
    folder = add(store, "ours:1.0.0", sources).folder
    os.mkfifo(folder / "model.sig")
    with pytest.raises(ModelRejected, match="is a FIFO"):
        store.get("ours:1.0.0")


@pytest.mark.parametrize("name", ["onnx/model.onnx", "model.safetensors.index.json"])
def test_added_file_is_named(name: str, store: ModelStore, sources: dict[str, Path]) -> None:
    added = add(store, "ours:1.0.0", sources).folder / name
    added.parent.mkdir(exist_ok=True)
    added.touch()
    with pytest.raises(ModelRejected, match="was added after ours:") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == [name]


@pytest.mark.parametrize("change", [cut_off, Path.unlink, lambda path: path.write_text("{}")])
def test_missing_or_broken_card_is_refused(
    change: Callable[[Path], object], store: ModelStore, sources: dict[str, Path]
) -> None:
    stored = add(store, "ours:1.0.0", sources)
    # Without its last byte the card is whole still: that is the end of its line.
    change(stored.folder / CARD_FILE)
    if change is cut_off:
        cut_off(stored.folder / CARD_FILE)
    with pytest.raises(ModelRejected, match="is missing or corrupt") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == [CARD_FILE]


def test_card_of_another_version_is_refused(store: ModelStore, sources: dict[str, Path]) -> None:
    stored = add(store, "ours:1.0.0", sources)
    card_of("ours:2.0.0", sources).write(stored.folder)
    with pytest.raises(ModelRejected, match=r"belongs to ours:2\.0\.0, not to ours:1") as caught:
        store.get("ours:1.0.0")
    assert [detail.field for detail in caught.value.details] == [CARD_FILE]


def test_not_found_lists_what_there_is(store: ModelStore, sources: dict[str, Path]) -> None:
    for tag in ("ours:1.0.0", "another:2.0.0"):
        add(store, tag, sources)
    with pytest.raises(ModelNotFound) as caught:
        store.get("theirs:1.0.0")
    assert "theirs:1.0.0 is not in the model store" in caught.value.message
    assert "(there: another:2.0.0, ours:1.0.0)" in caught.value.message
    assert "kaiten register" in caught.value.message


def test_not_found_in_an_empty_store_says_none(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match=r"\(there: none\)"):
        store.get("ours:1.0.0")


@pytest.mark.parametrize("whole_folder", [True, False])
def test_version_whose_files_are_gone_is_to_be_restored_and_not_registered(
    whole_folder: bool,  # noqa: FBT001  a case's own
    store: ModelStore,
    sources: dict[str, Path],
) -> None:
    stored = add(store, "ours:1.0.0", sources)
    with store.audit_log("ours").transaction() as transaction:
        transaction.add(
            AuditLogEvent(action=Action.REGISTERED, version="1.0.0", who="me", card=stored.digest)
        )
    missing = stored.folder if whole_folder else stored.folder / "model.yaml"
    shutil.rmtree(missing) if whole_folder else missing.unlink()
    with pytest.raises(ModelLost) as caught:
        store.get("ours:1.0.0")
    assert caught.value.message.startswith(
        f"ours:1.0.0 was registered in this store, but {missing} is missing. First move "
    )
    assert "Then restore ours:1.0.0 from a copy" in caught.value.message
    assert "bentoml models delete" not in caught.value.message
    assert "kaiten register" not in caught.value.message


def link_to_another_file(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a changed byte": lambda folder: flip_a_byte(folder / "model.safetensors"),
    "a missing file": lambda folder: (folder / "config.json").unlink(),
    "a link": lambda folder: link_to_another_file(folder / "config.json"),
    "a changed card": lambda folder: flip_a_byte(folder / CARD_FILE),
    "a missing card": lambda folder: (folder / CARD_FILE).unlink(),
    "no model.yaml": lambda folder: (folder / "model.yaml").unlink(),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("copy", ["backup", "export"])
def test_remedy_of_a_damaged_version_works_when_it_is_followed(
    copy: str, damage: str, store: ModelStore, sources: dict[str, Path], tmp_path: Path
) -> None:
    stored = add(store, "ours:1.0.0", sources)
    digest = stored.digest
    with store.audit_log("ours").transaction() as transaction:
        transaction.add(
            AuditLogEvent(action=Action.REGISTERED, version="1.0.0", who="me", card=digest)
        )
    if copy == "backup":
        shutil.copytree(stored.folder, tmp_path / "backup")
    else:
        bentoml.models.export_model("ours:1.0.0", str(tmp_path / "export.tar"))
    DAMAGE[damage](stored.folder)
    with pytest.raises((ModelRejected, ModelLost)) as caught:
        store.get("ours:1.0.0")
    assert f"First move {stored.folder}, if it exists, out of the store" in caught.value.message

    if stored.folder.exists():
        shutil.move(stored.folder, tmp_path / "aside")
    if copy == "backup":
        shutil.copytree(tmp_path / "backup", stored.folder)
    else:
        bentoml.models.import_model(str(tmp_path / "export.tar"))
    assert store.get("ours:1.0.0").digest == digest


def test_unreadable_file_is_no_damage(
    store: ModelStore, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = add(store, "ours:1.0.0", sources)

    # Permissions do not bind root, which may run the tests.
    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("lifecycle.card.sha256", refuse)
    with pytest.raises(ModelRejected, match="cannot be read: Permission denied") as caught:
        store.get("ours:1.0.0")
    assert not isinstance(caught.value, ModelUnusable)
    # A registration under the number does not replace it.
    assert not store.is_unfinished("ours:1.0.0")
    assert stored.folder.is_dir()


def test_version_of_another_store_is_to_be_registered_here(
    store: ModelStore, sources: dict[str, Path]
) -> None:
    add(store, "ours:1.0.0", sources)
    imported = add(store, "ours:2.0.0", sources)
    with store.audit_log("ours").transaction() as transaction:
        transaction.add(
            AuditLogEvent(action=Action.REGISTERED, version="1.0.0", who="me", card="0" * 64)
        )
    with pytest.raises(ModelRejected, match="is not in the audit log") as caught:
        store.get("ours:2.0.0")
    # A copy of the folder would be refused in the same way.
    assert "Register the model here under a new version" in caught.value.message
    assert str(store.audit_log("ours").path) in caught.value.message
    assert str(imported.folder) not in caught.value.message


def test_empty_store_may_be_a_volume_that_is_not_mounted(store: ModelStore) -> None:
    with pytest.raises(ModelNotFound, match="check that it is mounted") as caught:
        store.get("ours:1.0.0")
    assert str(store.folder) in caught.value.message


def test_contains_reports_existing_versions(store: ModelStore, sources: dict[str, Path]) -> None:
    add(store, "ours:1.0.0", sources)
    assert "ours:1.0.0" in store
    assert "ours:1.1.0" not in store
    assert "theirs:1.0.0" not in store


@pytest.mark.parametrize("versions", [["1.0.0-rc.1"], ["1.0.0-rc.1", "1.0.0-rc.2"]])
def test_beginning_of_a_version_is_not_the_version(
    versions: list[str], store: ModelStore, sources: dict[str, Path]
) -> None:
    for version in versions:
        add(store, f"ours:{version}", sources)
    assert "ours:1.0.0" not in store
    with pytest.raises(ModelNotFound):
        store.get("ours:1.0.0")


def test_models_without_a_card_are_passed_over(store: ModelStore, sources: dict[str, Path]) -> None:
    with bentoml.models.create("theirs:1.0.0"):
        pass
    assert list(store) == []
    ours = add(store, "ours:1.0.0", sources)
    assert list(store) == [ours]
    with pytest.raises(ModelRejected, match="is missing or corrupt"):
        store.get("theirs:1.0.0")


def test_versions_come_by_name_then_newest_first(
    store: ModelStore, sources: dict[str, Path]
) -> None:
    for tag in ("b:1.0.0-rc.1", "b:1.0.0", "b:1.9.0", "b:1.10.0", "a:1.0.0"):
        add(store, tag, sources)
    assert [model.card.tag for model in store] == [
        "a:1.0.0",
        "b:1.10.0",
        "b:1.9.0",
        "b:1.0.0",
        "b:1.0.0-rc.1",
    ]


@pytest.mark.parametrize(
    ("failure", "change"),
    [(ModelRejected, flip_a_byte), (ModelRejected, cut_off), (FileNotFoundError, Path.unlink)],
)
def test_failed_add_leaves_nothing(
    failure: type[Exception],
    change: Callable[[Path], None],
    model_store: Path,
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(copies))
    card = card_of("ours:1.0.0", sources)
    before = sorted(model_store.rglob("*"))
    # Read when the card was made, changed when it is copied.
    change(sources["model.safetensors"])
    with pytest.raises(failure):
        ModelStore().add(card, sources)
    assert sorted(model_store.rglob("*")) == before
    assert list(copies.iterdir()) == []
    assert "ours:1.0.0" not in ModelStore()


def test_add_of_less_than_the_card_says_leaves_nothing(
    model_store: Path, sources: dict[str, Path]
) -> None:
    card = card_of("ours:1.0.0", sources)
    before = sorted(model_store.rglob("*"))
    del sources["config.json"]
    with pytest.raises(ModelRejected) as caught:
        ModelStore().add(card, sources)
    assert [detail.field for detail in caught.value.details] == ["config.json"]
    assert sorted(model_store.rglob("*")) == before
