"""Where a model comes from; hubs and registries are stood in for by folders."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from kaiten.errors import ModelRejected
from lifecycle.sources import FetchedModel, fetch_model


def test_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch_model(str(tmp_path / "model"), tmp_path / "into") == FetchedModel(
        tmp_path / "model"
    )


COMMIT = "c0ffee" * 6 + "c0ff"


def hub(
    monkeypatch: pytest.MonkeyPatch, *names: str, pipeline_tag: str | None = "text-classification"
) -> None:
    """Let the hub have a repository of these files."""

    def model_info(_: object, repository: str, revision: str | None) -> SimpleNamespace:
        assert (repository, revision) == ("owner/name", "refs/pr/1")
        files = [SimpleNamespace(rfilename=name) for name in names]
        return SimpleNamespace(sha=COMMIT, siblings=files, pipeline_tag=pipeline_tag)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)


def test_repository_that_has_pickles_only_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    hub(monkeypatch, "config.json", "pytorch_model.bin")
    with pytest.raises(ModelRejected, match=r"hf://owner/name@refs/pr/N") as caught:
        fetch_model("hf://owner/name@refs/pr/1", tmp_path)
    assert caught.value.details[0].field == "pytorch_model.bin"


def test_hub_is_asked_for_a_revision_and_for_no_code(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:  # noqa: ANN401
        request.update(options, name=name, offline=huggingface_hub.constants.HF_HUB_OFFLINE)
        return str(shutil.copytree(tiny_classifier, options["local_dir"]))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub(monkeypatch, "config.json", "model.safetensors", "pytorch_model.bin")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = fetch_model("hf://owner/name@refs/pr/1", tmp_path / "into")
    assert (model.folder / "config.json").is_file()
    # By the commit, which the card names.
    assert model.source == f"hf://owner/name@{COMMIT}"
    assert (request["name"], request["revision"]) == ("owner/name", COMMIT)
    assert not request["offline"]
    assert not [
        pattern for pattern in request["allow_patterns"] if pattern.endswith((".py", ".bin"))
    ]


@pytest.mark.parametrize(
    ("pipeline_tag", "kind"),
    [
        ("feature-extraction", "embedding models"),
        ("image-classification", "image models"),
        ("text-generation", "text generation models"),
        ("text-ranking", "rerankers"),
        ("token-classification", "token classifiers"),
    ],
)
def test_repository_of_a_kind_that_is_not_served_is_refused_before_its_download(
    pipeline_tag: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[object] = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *_, **options: downloads.append(options)
    )
    hub(monkeypatch, "config.json", "model.safetensors", pipeline_tag=pipeline_tag)
    with pytest.raises(ModelRejected, match=f"does not serve {kind} yet; it serves text") as caught:
        fetch_model("hf://owner/name@refs/pr/1", tmp_path)
    assert [detail.field for detail in caught.value.details] == ["task"]
    assert not downloads


def test_hub_that_can_not_be_reached_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fails)
    with pytest.raises(ModelRejected) as caught:
        fetch_model("hf://owner/name", tmp_path)
    assert "hf://owner/name cannot be downloaded (ConnectionError: no route" in caught.value.message


def registry(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let MLflow's client download a folder."""

    def download_artifacts(artifact_uri: str, dst_path: str) -> str:
        assert artifact_uri == "models:/intent/3"
        return str(shutil.copytree(folder, Path(dst_path) / "downloaded"))

    artifacts = SimpleNamespace(download_artifacts=download_artifacts)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(artifacts=artifacts))
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", artifacts)


def test_model_that_mlflow_logged_is_laid_side_by_side(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As mlflow.transformers writes it: the tokenizer apart from the network.
    logged = tmp_path / "logged"
    parts = {"model": ("config.json", "model.safetensors"), "components/tokenizer": ("token",)}
    for target, names in parts.items():
        (logged / target).mkdir(parents=True)
        for file in tiny_classifier.iterdir():
            if file.name.startswith(names):
                shutil.copyfile(file, logged / target / file.name)
    registry(monkeypatch, logged)
    folder = fetch_model("models:/intent/3", tmp_path / "into").folder
    expected_names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == expected_names


def local_registry(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let MLflow's registry keep its artifacts in a folder of this machine."""
    registry(monkeypatch, folder)
    version = SimpleNamespace(repo=SimpleNamespace(artifact_dir=str(folder)))
    models = SimpleNamespace(
        ModelsArtifactRepository=SimpleNamespace(split_models_uri=lambda uri: (uri, ""))
    )
    registry_module = SimpleNamespace(get_artifact_repository=lambda _: version)
    place = "mlflow.store.artifact"
    monkeypatch.setitem(sys.modules, f"{place}.models_artifact_repo", models)
    monkeypatch.setitem(sys.modules, f"{place}.artifact_repository_registry", registry_module)


def test_model_of_a_registry_on_this_machine_is_copied(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_registry(monkeypatch, shutil.copytree(tiny_classifier, tmp_path / "logged" / "model"))
    folder = fetch_model("models:/intent/3", tmp_path / "into").folder
    assert folder == tmp_path / "into"
    assert (folder / "config.json").read_bytes() == (tiny_classifier / "config.json").read_bytes()


def test_link_in_a_registry_on_this_machine_is_refused(
    tiny_classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = shutil.copytree(tiny_classifier, tmp_path / "logged")
    (logged / "LICENSE").symlink_to("/etc/passwd")
    local_registry(monkeypatch, logged)
    with pytest.raises(ModelRejected, match="LICENSE: is a link that leaves the folder"):
        fetch_model("models:/intent/3", tmp_path / "into")
    assert not (tmp_path / "into" / "LICENSE").exists()


def test_other_mlflow_models_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logged").mkdir()
    registry(monkeypatch, tmp_path / "logged")
    with pytest.raises(ModelRejected, match="holds no transformers model"):
        fetch_model("models:/intent/3", tmp_path / "into")


def test_without_mlflow_the_remedy_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.artifacts", None)
    with pytest.raises(ModelRejected, match="pip install mlflow"):
        fetch_model("models:/intent/3", tmp_path)
