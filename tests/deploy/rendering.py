"""The manifests as they would be applied: overlays, the component keda, KServe's example."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from kaiten.settings.environment import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
KUBECTL_MISSING = (
    "kubectl is not here; get it from https://kubernetes.io/docs/tasks/tools (1.30 or later)"
)

Manifest = dict[str, Any]


class NotRendered(Exception):
    """A folder that kubectl cannot render; the message is that of kubectl."""


def kustomizations(scratch: Path) -> dict[str, Path]:
    """Return the folders to render, by name; what a user would write is written to ``scratch``."""
    folders = {name: KUBERNETES / "overlays" / name for name in OVERLAYS}
    scaled = {f"{name}-keda": _with_keda(folders[name], scratch) for name in ("production", "gpu")}
    return {**folders, **scaled, "kserve": KUBERNETES / "kserve"}


def _with_keda(overlay: Path, scratch: Path) -> Path:
    folder = scratch / f"{overlay.name}-keda"
    folder.mkdir(parents=True)
    named = {"resources": overlay, "components": KUBERNETES / "components" / "keda"}
    # kustomize takes no absolute paths.
    lists = {key: [os.path.relpath(path, folder.resolve())] for key, path in named.items()}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lists), encoding="utf-8")
    return folder


def render(folder: Path) -> str:
    """Return the manifests of a kustomization as YAML.

    Raises:
        NotRendered: kubectl refuses the kustomization.

    """
    if not shutil.which("kubectl"):
        raise NotRendered(KUBECTL_MISSING)
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotRendered(done.stderr.strip())
    return done.stdout


def manifests(rendered: str) -> list[Manifest]:
    """Return the documents of a rendered kustomization."""
    return [document for document in yaml.safe_load_all(rendered) if document]
