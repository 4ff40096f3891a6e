"""Where a model to be registered comes from: a folder, a hub, or an MLflow registry."""

import shutil
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import ModelRejected

_HUB, _MLFLOW = "hf://", "models:/"
# What a hub's repository may hold besides, in other forms or languages.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.md", "LICENSE*", "NOTICE*")


@dataclass(frozen=True, slots=True)
class FetchedModel:
    """A local folder with a model, and where it comes from, if that is no folder.

    ``source`` names a hub's model by its commit: hf://OWNER/NAME@COMMIT.
    """

    folder: Path
    source: str | None = None


def fetch(source: str, into: Path) -> FetchedModel:
    """Return the model of ``source`` in a local folder; downloads go to ``into``.

    ``hf://owner/name@revision`` is a hub's, ``models:/name/version`` an MLflow registry's, and
    anything else the path of a folder.

    Raises:
        ModelRejected: It cannot be downloaded.

    """
    if source.startswith(_HUB):
        return _from_hub(source.removeprefix(_HUB), into)
    if source.startswith(_MLFLOW):
        return FetchedModel(_from_mlflow(source, into), source)
    return FetchedModel(Path(source))


def _from_hub(name: str, into: Path) -> FetchedModel:
    from huggingface_hub import HfApi, constants, snapshot_download  # noqa: PLC0415  half a second

    # Serving never asks a hub, and is kept from it; here somebody has asked to.
    constants.HF_HUB_OFFLINE = False
    repository, _, revision = name.partition("@")
    try:
        # By its commit: the branch may move while its files are downloaded.
        model = HfApi().model_info(repository, revision=revision or None)
        folder = snapshot_download(
            repository, revision=model.sha, local_dir=into, allow_patterns=[*_WANTED]
        )
    except Exception as error:  # noqa: BLE001
        # Its errors are of many kinds: HTTP's, the network's, its own and plain ValueErrors.
        raise _unavailable(f"{_HUB}{name}", error) from None
    names = [each.rfilename for each in model.siblings or ()]
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
        if pickles:
            raise ModelRejected(
                pickles[0],
                "is a pickle, which can run code when it is loaded, and the repository has no "
                "weights as safetensors",
                f"Look for a pull request that adds them, and name it: {_HUB}{repository}"
                "@refs/pr/N; or download the repository and convert it (see the guide).",
            )
    return FetchedModel(Path(folder), f"{_HUB}{repository}@{model.sha}")


def _from_mlflow(source: str, into: Path) -> Path:
    """Download a model that was logged by mlflow.transformers, and lay its parts side by side."""
    try:
        artifacts = import_module("mlflow.artifacts")
    except ModuleNotFoundError:
        remedy = "pip install mlflow (mlflow-skinny will do), and set MLFLOW_TRACKING_URI"
        raise ModelRejected("folder", f"{source} needs mlflow", f"First: {remedy}.") from None
    try:
        root = _copied_from_disk(source, into) or Path(
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
            "Log it by mlflow.transformers.log_model(transformers_model={'model': ..., "
            "'tokenizer': ...}).",
        )
    folder = configs[0].parent
    for part in sorted(root.glob("components/tokenizer/*")):
        if not (folder / part.name).exists():
            shutil.copyfile(part, folder / part.name)
    return folder


def _copied_from_disk(source: str, into: Path) -> Path | None:
    """Copy a model whose artifacts lie on this machine; None for those that MLflow downloads.

    MLflow's own copy follows links, wherever the person who logged the model has pointed them.
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
    told = str(error).strip().splitlines()
    reason = f"{source} can not be had ({type(error).__name__}: {told[0] if told else ''})"
    return ModelRejected("folder", reason, "Check its name, the network and your credentials.")
