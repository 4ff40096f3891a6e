import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from kaiten.errors import ModelLost, ModelNotFound, ModelRejected
from kaiten.model_facts import EngineFacts, ModelFacts
from kaiten.settings.models import VersioningSettings
from lifecycle.audit_log import Action, Stage
from lifecycle.card import CARD_FILE, Provenance, sha256
from lifecycle.promotion import PromotionGate, PromotionRequest
from lifecycle.registration import Submission, check_name, check_version, register_model
from lifecycle.store import ModelStore, StoredModel
from tests.unit.lifecycle.cards import save_report
from tests.unit.lifecycle.folders import MODEL, contents, smallest_folder, write

TASK = "text-classification"
RULES = VersioningSettings()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return smallest_folder(tmp_path)


FACTS = ModelFacts(
    ("no", "yes"),
    128,
    "BertForSequenceClassification",
    {"torch": "2.11.0"},
    EngineFacts("onnx", "they agree", 9, 1e-6, {"onnxruntime": "1.22.0"}),
)


def inspect(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
    """Tell of any folder that it is a classifier, and make a file for it."""
    (output / "onnx").mkdir()
    (output / "onnx" / "model.onnx").write_text("network")
    return FACTS


def submission(folder: Path, tag: str, **provenance: Any) -> Submission:  # noqa: ANN401
    name, _, version = tag.partition(":")
    return Submission(folder, name, version, TASK, Provenance(**provenance))


def diverged(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
    (output / "half").write_text("written")
    raise ModelRejected("weights", "are not finite", "Train again.")


BAD_NAMES = ["", "Ours", "a/b", "a b", "-a", "a-", ".a", "ä", "a" * 64, "..", "a\n"]
BAD_VERSIONS = [
    "",
    "1",
    "1.0",
    "v1.0",
    "v1.0.0",
    "01.0.0",
    "1.0.0.0",
    "1.0.0+build",
    "1.0.0-RC.1",
    "1.0.0-rc_1",
    "1.0.0-",
    "1.0.0\n",
    "latest",
    f"1.0.0-{'a' * 58}",
    "1.0.0-rc-",
]


@pytest.mark.parametrize(
    ("tag", "field"),
    [
        *((f"{name}:1.0.0", "name") for name in BAD_NAMES),
        ("ours", "version"),
        ("ours:1.0.0:2.0.0", "version"),
        ("ours:1.0.0+build", "version"),
        ("ours:v1.0", "version"),
    ],
)
def test_bad_tag_is_refused(tag: str, field: str, folder: Path, model_store: Path) -> None:
    before = contents(model_store)
    with pytest.raises(ModelRejected) as caught:
        register_model(
            submission(folder, tag), "tester", RULES, store=ModelStore(), inspect=inspect
        )
    assert [detail.field for detail in caught.value.details] == [field]
    assert contents(model_store) == before


@pytest.mark.parametrize("name", BAD_NAMES)
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ModelRejected, match="letter or digit at both ends") as caught:
        check_name(name)
    assert caught.value.details[0].field == "name"


@pytest.mark.parametrize("name", ["a", "7", "all-minilm_l6.v2", "a" * 63])
def test_name_that_bentoml_allows_is_taken(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("version", BAD_VERSIONS)
def test_bad_version_is_refused(version: str) -> None:
    with pytest.raises(ModelRejected, match=r"1\.2\.3 or 1\.2\.3-rc\.1") as caught:
        check_version(version)
    assert caught.value.details[0].field == "version"


@pytest.mark.parametrize("version", ["0.0.0", "1.2.3", "10.20.30-rc.1", f"1.0.0-{'a' * 57}"])
def test_semver_is_taken(version: str) -> None:
    check_version(version)


def test_existing_version_never_changes(folder: Path, model_store: Path) -> None:
    store = ModelStore()
    first = register_model(
        submission(folder, "ours:1.0.0"), "tester", RULES, store=store, inspect=inspect
    )
    before = contents(model_store)
    write("model.safetensors", "other weights")(folder)
    with pytest.raises(ModelRejected, match="A version never changes") as caught:
        register_model(
            submission(folder, "ours:1.0.0"), "tester", RULES, store=store, inspect=inspect
        )
    assert [detail.field for detail in caught.value.details] == ["version"]
    assert contents(model_store) == before
    assert store.get("ours:1.0.0") == first


def test_model_that_inspection_refuses_leaves_nothing(folder: Path, model_store: Path) -> None:
    before = contents(model_store)
    with pytest.raises(ModelRejected, match="are not finite"):
        register_model(
            submission(folder, "ours:1.0.0"), "tester", RULES, store=ModelStore(), inspect=diverged
        )
    assert contents(model_store) == before


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.0.0", "1.0.1"),
        ("1.0.0", "1.0.0-rc.1"),
        ("1.0.0-rc.1", "1.0.0"),
        ("1.0.10", "1.0.1"),
    ],
)
def test_versions_live_side_by_side(older: str, newer: str, folder: Path) -> None:
    store = ModelStore()
    for version in (older, newer):
        register_model(
            submission(folder, f"ours:{version}"), "tester", RULES, store=store, inspect=inspect
        )
    assert {model.card.version for model in store} == {older, newer}


@pytest.mark.usefixtures("model_store")
def test_number_of_a_promoted_version_is_not_used_again_when_its_files_are_lost(
    folder: Path,
) -> None:
    store = ModelStore()

    def register(tag: str) -> StoredModel:
        return register_model(
            submission(folder, tag), "tester", RULES, store=store, inspect=inspect
        )

    stored = register("ours:1.0.0")
    save_report(store, stored)
    shutil.rmtree(stored.folder)
    # In development, a version that serves nowhere may be replaced.
    stored = register("ours:1.0.0")
    save_report(store, stored)
    request = PromotionRequest(Stage.STAGING, "tester", "for a test", {})
    PromotionGate(store, RULES).promote("ours:1.0.0", request)
    shutil.rmtree(stored.folder)
    with pytest.raises(ModelLost, match=r"restore ours:1\.0\.0 from a copy"):
        register("ours:1.0.0")
    assert register("ours:1.0.1").card.version == "1.0.1"


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("first", ["present", "lost", "with an unreadable card"])
def test_automatic_version_skips_the_numbers_of_lost_versions(first: str, folder: Path) -> None:
    store = ModelStore()

    def register(*, promoted: bool) -> StoredModel:
        model = register_model(
            Submission(folder, "ours", None, TASK), "t", RULES, store=store, inspect=inspect
        )
        if promoted:
            save_report(store, model)
            request = PromotionRequest(Stage.STAGING, "tester", "for a test", {})
            PromotionGate(store, RULES).promote(model.card.tag, request)
        return model

    models = [register(promoted=True) for _ in range(2)]
    assert [model.card.version for model in models] == ["1.0.0", "1.0.1"]
    shutil.rmtree(models[1].folder)
    if first == "present":
        expected = "1.0.2"
    else:
        # Nothing is left to compare with.
        expected = "2.0.0"
        if first == "lost":
            shutil.rmtree(models[0].folder)
        else:
            (models[0].folder / CARD_FILE).write_text("{")
    assert register(promoted=False).card.version == expected


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("damaged", ["ours:1.0.0", "another:1.0.0"])
def test_damaged_card_hinders_no_new_version(damaged: str, folder: Path) -> None:
    store = ModelStore()

    def register(tag: str) -> StoredModel:
        return register_model(submission(folder, tag), "t", RULES, store=store, inspect=inspect)

    models = [register(tag) for tag in ("ours:1.0.0", "another:1.0.0")]
    for model in models:
        save_report(store, model)
        if model.card.tag == damaged:
            (model.folder / CARD_FILE).write_text("{")
    parent = register("ours:1.0.1").card.provenance.parent
    assert parent == (None if damaged == "ours:1.0.0" else "ours:1.0.0")


@pytest.mark.usefixtures("model_store")
def test_card_describes_the_version(folder: Path) -> None:
    for name in ("README.md", "LICENSE", "merges.txt"):
        write(name, name)(folder)
    stored = register_model(
        submission(folder, "ours:1.0.0-rc.1"), "tester", RULES, store=ModelStore(), inspect=inspect
    )
    card = stored.card
    facts = FACTS
    assert card.engine is not None
    assert card.engine.model_dump() == dataclasses.asdict(FACTS.engine)
    assert (stored.folder / "onnx/model.onnx").read_text() == "network"
    assert (card.name, card.version, card.tag) == ("ours", "1.0.0-rc.1", "ours:1.0.0-rc.1")
    assert (card.task, card.architecture) == (TASK, facts.architecture)
    assert (card.labels, card.max_length) == (facts.labels, facts.max_length)
    assert card.framework_versions == facts.framework_versions
    assert card.registered_at.utcoffset() is not None
    sources = {
        path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()
    }
    sources["onnx/model.onnx"] = stored.folder / "onnx/model.onnx"
    # Its own gives way to the card's, and stays beside it.
    sources["README.original.md"] = sources.pop("README.md")
    sources["README.md"] = stored.folder / "README.md"
    assert card.files == {name: sha256(path) for name, path in sources.items()}
    for name, source in sources.items():
        assert (stored.folder / name).read_bytes() == source.read_bytes()
    assert json.loads((stored.folder / CARD_FILE).read_text()) == card.model_dump(mode="json")
    assert [model.card for model in ModelStore()] == [card]


@pytest.mark.usefixtures("model_store")
def test_source_may_go_once_it_is_registered(folder: Path) -> None:
    stored = register_model(
        submission(folder, "ours:1.0.0"), "tester", RULES, store=ModelStore(), inspect=inspect
    )
    shutil.rmtree(folder)
    assert ModelStore().get("ours:1.0.0") == stored


@pytest.mark.usefixtures("model_store")
def test_link_to_a_file_of_the_folder_is_followed(folder: Path) -> None:
    (folder / "checkpoint-9").mkdir()
    (folder / "model.safetensors").rename(folder / "checkpoint-9" / "weights")
    (folder / "model.safetensors").symlink_to("checkpoint-9/weights")
    stored = register_model(
        submission(folder, "ours:1.0.0"), "tester", RULES, store=ModelStore(), inspect=inspect
    )
    assert not (stored.folder / "model.safetensors").is_symlink()
    assert (stored.folder / "model.safetensors").read_text() == "weights"


def test_snapshot_of_a_hubs_cache_is_taken(folder: Path, tmp_path: Path, model_store: Path) -> None:
    repository = tmp_path / "models--them--theirs"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(MODEL):
        (folder / name).rename(blobs / f"{number:064x}")
        (snapshot / name).symlink_to(f"../../blobs/{number:064x}")
    stored = register_model(
        submission(snapshot, "ours:1.0.0"), "tester", RULES, store=ModelStore(), inspect=inspect
    )
    assert {name: (stored.folder / name).read_text() for name in MODEL} == MODEL
    assert not [path for path in model_store.rglob("*") if path.is_symlink()]


@pytest.mark.usefixtures("model_store")
def test_inspection_sees_nothing_but_what_is_stored(folder: Path) -> None:
    write("plot.png")(folder)
    write(".cache/token", "secret")(folder)
    files: list[str] = []
    handed_over = folder

    def look(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
        files.extend(contents(folder))
        # Another program changes the folder meanwhile.
        write("model.safetensors", "other weights")(handed_over)
        return inspect(folder, output)

    stored = register_model(
        submission(folder, "ours:1.0.0"), "tester", RULES, store=ModelStore(), inspect=look
    )
    assert files == sorted(MODEL)
    assert (stored.folder / "model.safetensors").read_text() == "weights"


@pytest.mark.usefixtures("model_store")
def test_audit_log_records_who_registered_a_version(folder: Path) -> None:
    stored = register_model(
        submission(folder, "ours:1.0.0"), "someone", RULES, store=ModelStore(), inspect=inspect
    )
    (entry,) = ModelStore().audit_log("ours").entries()
    assert (entry.action, entry.version, entry.who) == (Action.REGISTERED, "1.0.0", "someone")
    assert entry.card == stored.digest


@pytest.mark.usefixtures("model_store")
def test_version_that_is_left_open_follows_its_parent(folder: Path) -> None:
    def wider(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
        inspect(folder, output)
        return dataclasses.replace(FACTS, max_length=256)

    def relabelled(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
        inspect(folder, output)
        return dataclasses.replace(FACTS, labels=("yes", "no"))

    versions = []
    for inspector in (inspect, inspect, wider, relabelled, inspect):
        open_ended = Submission(folder, "ours", None, TASK)
        model = register_model(open_ended, "tester", RULES, store=ModelStore(), inspect=inspector)
        versions.append((model.card.version, model.card.provenance.parent))
    assert versions == [
        ("1.0.0", None),
        ("1.0.1", "ours:1.0.0"),
        ("1.1.0", "ours:1.0.1"),
        ("2.0.0", "ours:1.1.0"),
        # Other labels again, and a shorter maximum than the first had.
        ("3.0.0", "ours:2.0.0"),
    ]


@pytest.mark.usefixtures("model_store")
def test_version_too_near_to_its_parent_is_refused(folder: Path) -> None:
    store = ModelStore()
    register_model(submission(folder, "ours:1.0.0"), "tester", RULES, store=store, inspect=inspect)

    def relabelled(folder: Path, output: Path, **options: Any) -> ModelFacts:  # noqa: ANN401
        inspect(folder, output)
        return dataclasses.replace(FACTS, labels=("yes", "no"))

    for version in ("1.0.1", "1.1.0"):
        with pytest.raises(ModelRejected, match=r"the labels \(MAJOR\).* 2\.0\.0 or later"):
            register_model(
                submission(folder, f"ours:{version}"),
                "tester",
                RULES,
                store=store,
                inspect=relabelled,
            )
    assert [model.card.version for model in store] == ["1.0.0"]
    # It descends from none of ours that is named so.
    with pytest.raises(ModelNotFound):
        register_model(
            submission(folder, "ours:1.0.1", parent="ours:0.9.0"),
            "tester",
            RULES,
            store=store,
            inspect=inspect,
        )


@pytest.mark.usefixtures("model_store")
def test_readme_says_what_the_card_says(folder: Path) -> None:
    write("README.md", "---\nlicense: mit\n---\n# Our description\n")(folder)
    submitted = submission(
        folder,
        "ours:1.0.0",
        licence="apache-2.0",
        limits="Not for advice on money.",
        metrics={"accuracy": 0.91},
        training_data="d" * 64,
    )
    stored = register_model(submitted, "tester", RULES, store=ModelStore(), inspect=inspect)
    readme = (stored.folder / "README.md").read_text()
    metadata: Any = huggingface_hub.ModelCard(readme).data
    assert (metadata.license, metadata.pipeline_tag) == ("apache-2.0", TASK)
    assert metadata.eval_results is not None
    assert [(result.metric_type, result.metric_value) for result in metadata.eval_results] == [
        ("accuracy", 0.91)
    ]
    for part in ("# ours:1.0.0", "Not for advice on money.", "SHA-256 dddd", "# Our description"):
        assert part in readme
    assert "license: mit" not in readme


STEPS = {
    "checksums": "lifecycle.registration.sha256",
    "the README": "lifecycle.readme.render_readme",
    "the audit log": "lifecycle.audit_log.replace_file",
    "the files": "lifecycle.store.shutil.copyfile",
    "the card": "lifecycle.card.ModelCard.write",
    "the last look": "lifecycle.card.ModelCard.verify",
}


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", STEPS)
def test_next_try_works_wherever_one_was_interrupted(
    step: str,
    error: BaseException | type[BaseException],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = ModelStore()
    first = register_model(
        submission(folder, "ours:1.0.0"), "t", RULES, store=store, inspect=inspect
    )

    def fails(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(STEPS[step], fails)
        with pytest.raises((KeyboardInterrupt, OSError)):
            register_model(
                submission(folder, "ours:1.0.1"), "t", RULES, store=store, inspect=inspect
            )
    assert store.get("ours:1.0.0") == first
    assert [model.card.version for model in store] == ["1.0.0"]
    register_model(submission(folder, "ours:1.0.1"), "t", RULES, store=store, inspect=inspect)
    assert store.get("ours:1.0.1").card.version == "1.0.1"


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize("remains", ["nothing", "a card", "all but BentoML's file", "no weights"])
def test_what_a_killed_process_left_in_the_store_gives_way(remains: str, folder: Path) -> None:
    store = ModelStore()
    first = register_model(
        submission(folder, "ours:1.0.0"), "t", RULES, store=store, inspect=inspect
    )
    # BentoML copies a version into its place file by file.
    half = store.folder / "ours" / "1.0.1"
    if remains == "nothing":
        half.mkdir()
    elif remains == "a card":
        half.mkdir()
        shutil.copyfile(first.folder / CARD_FILE, half / CARD_FILE)
    else:
        absent = "model.safetensors" if remains == "no weights" else "model.yaml"
        shutil.copytree(first.folder, half, ignore=shutil.ignore_patterns(absent))
    assert store.get("ours:1.0.0") == first
    if remains != "no weights":
        assert [model.card.version for model in store] == ["1.0.0"]
    register_model(submission(folder, "ours:1.0.1"), "t", RULES, store=store, inspect=inspect)
    assert store.get("ours:1.0.1").card.version == "1.0.1"


@pytest.mark.usefixtures("model_store")
def test_version_that_was_spoilt_later_is_not_replaced(folder: Path) -> None:
    store = ModelStore()
    first = register_model(
        submission(folder, "ours:1.0.0"), "t", RULES, store=store, inspect=inspect
    )
    save_report(store, first)
    (first.folder / "model.safetensors").write_text("spoilt")
    with pytest.raises(ModelRejected, match="exists already"):
        register_model(submission(folder, "ours:1.0.0"), "t", RULES, store=store, inspect=inspect)


@pytest.mark.usefixtures("model_store")
def test_versions_of_before_the_trail_go_on_loading(folder: Path) -> None:
    store = ModelStore()
    first = register_model(
        submission(folder, "ours:1.0.0"), "t", RULES, store=store, inspect=inspect
    )
    for file in (store.folder.parent / "kaiten").iterdir():
        file.unlink()
    register_model(submission(folder, "ours:1.0.1"), "t", RULES, store=store, inspect=inspect)
    assert store.get("ours:1.0.0") == first
    assert [entry.who for entry in store.audit_log("ours").entries()] == ["found", "t"]
