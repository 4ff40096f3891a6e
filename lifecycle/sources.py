"""Fetches a model to register from a folder, a hub, or an MLflow registry."""

import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import ModelRejected
from kaiten.installation import install_command
from kaiten.model_kinds import SERVES, kind_of_task

_HUB, _MLFLOW = "hf://", "models:/"
# A hub's repository may also hold the model in other formats.
_PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.model",
    "*.codes",
    "*.md",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A local folder with a model, and where it was downloaded from, if it was.

    ``source`` identifies a hub's model by its commit: hf://OWNER/NAME@COMMIT.
    """

    folder: Path
    source: str | None = None


def fetch_model(source: str, into: Path) -> FetchedModel:
    """Return the model of ``source`` in a local folder; downloads go to ``into``.

    ``hf://owner/name@revision`` is in a hub, ``models:/name/version`` in an MLflow registry, and
    any other source is the path of a folder.

    Raises:
        ModelRejected: It cannot be downloaded.

    """
    if source.startswith(_HUB):
        return _fetch_from_hub(source.removeprefix(_HUB), into)
    if source.startswith(_MLFLOW):
        return FetchedModel(_fetch_from_mlflow(source, into), source)
    return FetchedModel(Path(source))


def _fetch_from_hub(name: str, into: Path) -> FetchedModel:
    from huggingface_hub import HfApi, constants, snapshot_download  # noqa: PLC0415  half a second

    # Kaiten disables downloads everywhere else, because serving must never need a hub.
    constants.HF_HUB_OFFLINE = False
    repository, _, revision = name.partition("@")
    try:
        # By its commit, because a branch may move during the download.
        model = HfApi().model_info(repository, revision=revision or None)
        _check_pipeline(model.pipeline_tag)
        folder = snapshot_download(
            repository, revision=model.sha, local_dir=into, allow_patterns=[*_PATTERNS]
        )
    except ModelRejected:
        raise
    except Exception as error:  # noqa: BLE001
        # It raises errors of HTTP, of the network, its own, and plain ValueErrors.
        raise _unavailable(f"{_HUB}{name}", error) from None
    names = [file.rfilename for file in model.siblings or ()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        if pickles:
            raise ModelRejected(
                pickles[0],
                "is a pickle, which can run code when it is loaded, and the repository has no "
                "safetensors weights",
                f"Look for a pull request that adds them, and name it: {_HUB}{repository}"
                "@refs/pr/N; or download the repository and convert the weights.",
            )
    return FetchedModel(Path(folder), f"{_HUB}{repository}@{model.sha}")


def _check_pipeline(tag: str | None) -> None:
    """Reject a kind of model that is not served before it is downloaded."""
    if kind := kind_of_task(tag or ""):
        reason = f"the hub says pipeline_tag: {tag}"
        remedy = f"{kind.refusal}. If the hub is wrong, download the model and register its folder."
        raise ModelRejected("task", reason, remedy)


def _fetch_from_mlflow(source: str, into: Path) -> Path:
    """Download a model that mlflow.transformers has logged, and put its parts into one folder."""
    try:
        artifacts = import_module("mlflow.artifacts")
    except ModuleNotFoundError:
        remedy = f"Set MLFLOW_TRACKING_URI, and run: {install_command(['mlflow-skinny'])}"
        raise ModelRejected("folder", f"{source} needs mlflow", remedy) from None
    try:
        root = _copy_from_disk(source, into) or Path(
            artifacts.download_artifacts(artifact_uri=source, dst_path=str(into))
        )
    except UnsafeFile as error:
        raise ModelRejected(error.name, error.reason, error.remedy) from None
    except Exception as error:  # noqa: BLE001
        raise _unavailable(source, error) from None
    configs = sorted(root.rglob("config.json"))
    if not configs:
        raise ModelRejected(
            "folder",
            f"{source} holds no transformers model",
            "Log it with mlflow.transformers.log_model(transformers_model={'model': ..., "
            f"'tokenizer': ...}}). Kaiten takes no other flavour; {SERVES}.",
        )
    folder = configs[0].parent
    for part in sorted(root.glob("components/tokenizer/*")):
        if not (folder / part.name).exists():
            shutil.copyfile(part, folder / part.name)
    return folder


def _copy_from_disk(source: str, into: Path) -> Path | None:
    """Copy a model whose artifacts are on this machine; None if MLflow has to download them.

    MLflow's own copy follows links, which may point anywhere.
    """
    try:
        registry: Any = import_module("mlflow.store.artifact.artifact_repository_registry")
        models: Any = import_module("mlflow.store.artifact.models_artifact_repo")
    except ModuleNotFoundError:
        return None
    uri, path = models.ModelsArtifactRepository.split_models_uri(source)
    repository = registry.get_artifact_repository(uri)
    while hasattr(repository, "repo"):
        repository = repository.repo
    if not hasattr(repository, "artifact_dir"):
        return None
    with ConfinedFolder(Path(repository.artifact_dir, path)) as folder:
        for name in folder.names():
            folder.copy(name, into / name)
    return into


def _unavailable(source: str, error: Exception) -> ModelRejected:
    lines = str(error).strip().splitlines()
    reason = f"{source} cannot be downloaded ({type(error).__name__}: {lines[0] if lines else ''})"
    return ModelRejected("folder", reason, "Check its name, the network and your credentials.")
