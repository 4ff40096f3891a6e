"""Where a model to be registered comes from: a folder, a hub, or an MLflow registry."""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

from kaiten.confinement import ConfinedFolder, UnsafeFile
from kaiten.errors import ModelRejected

_HUB, _MLFLOW = "hf://", "models:/"
# What a hub's repository may hold besides, in other forms or languages.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.md", "*.jinja", "LICENSE", "NOTICE")


def fetch(source: str, into: Path) -> Path:
    """Return a local folder with the model of ``source``; what is downloaded goes to ``into``.

    ``hf://owner/name@revision`` is a hub's, ``models:/name/version`` an MLflow registry's, and all
    else the path of a folder. ModelRejected where it can not be had.
    """
    if source.startswith(_HUB):
        return _from_hub(source.removeprefix(_HUB), into)
    if source.startswith(_MLFLOW):
        return _from_mlflow(source, into)
    return Path(source)


def _from_hub(name: str, into: Path) -> Path:
    from huggingface_hub import constants, snapshot_download  # noqa: PLC0415  takes half a second

    # Serving never asks a hub, and is kept from it; here somebody has asked to.
    constants.HF_HUB_OFFLINE = False
    repository, _, revision = name.partition("@")
    try:
        found = snapshot_download(
            repository, revision=revision or None, local_dir=into, allow_patterns=[*_WANTED]
        )
    except Exception as error:  # noqa: BLE001
        # Its errors are of many kinds: HTTP's, the network's, its own and plain ValueErrors.
        raise _unavailable(f"{_HUB}{name}", error) from None
    return Path(found)


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
