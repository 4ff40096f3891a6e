"""`make check-deploy`: check deploy/ and the workflows, without a cluster or a network."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from kaiten.settings.environment import ROOT, environment_for
from tests.deploy.rendering import NotRendered, kustomizations, manifests, render
from tests.deploy.tools import ToolFailed, Tools
from tests.deploy.verdict import BROKEN, Check, judge


def main(folder: str) -> int:
    """Say what each check has found, and return the exit code."""
    with TemporaryDirectory() as scratch, ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(judge, checks(Tools(Path(folder)), Path(scratch).resolve())))
    sys.stdout.write("".join(f"{line}\n" for verdict in verdicts for line in verdict.lines))
    return int(any(verdict.failed for verdict in verdicts))


def checks(tools: Tools, scratch: Path) -> Iterator[Check]:
    """Yield all checks; what they look at is made in ``scratch``."""
    folders = kustomizations(scratch / "kustomizations")
    rendered = list(_render_kustomizations(folders, scratch))
    deploy = ROOT / "deploy"
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
    dockerfiles = _dockerfiles(scratch)
    rules = sorted((deploy / "prometheus").glob("*.rules*.yaml"))
    paths_by_look = {
        tools.checkov: [*rendered, *_pods(rendered, scratch)],
        tools.schemas: rendered,
        tools.kustomize: list(folders.values()),
        tools.promtool: rules,
        tools.hadolint: dockerfiles,
        tools.systemd: sorted((deploy / "systemd").glob("*.service")),
        tools.shellcheck: sorted(deploy.rglob("*.sh")),
        tools.actionlint: workflows,
        tools.zizmor: workflows,
        tools.yamllint: [*sorted(deploy.rglob("*.yaml")), *workflows],
    }
    for look, paths in paths_by_look.items():
        name = look.__name__
        broken = sorted((BROKEN / name).iterdir()) if name != "kustomize" else [BROKEN / name]
        yield Check(name, look, paths, broken)


def _render_kustomizations(folders: dict[str, Path], scratch: Path) -> Iterator[Path]:
    for name, folder in folders.items():
        try:
            text = render(folder)
        except NotRendered:
            continue  # The check kustomize tells.
        path = scratch / f"{name}.yaml"
        path.write_text(text, encoding="utf-8")
        yield path


def _pods(rendered: list[Path], scratch: Path) -> Iterator[Path]:
    """Yield a pod for each InferenceService, of which checkov knows nothing."""
    for path in rendered:
        for manifest in manifests(path.read_text(encoding="utf-8")):
            if manifest["kind"] == "InferenceService":
                target = scratch / f"{path.stem}-pod.yaml"
                target.write_text(yaml.safe_dump(_pod_of(manifest)), encoding="utf-8")
                yield target


def _pod_of(service: dict[str, Any]) -> dict[str, Any]:
    metadata, spec = service["metadata"], service["spec"]["predictor"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _dockerfiles(scratch: Path) -> list[Path]:
    targets = [scratch / "Dockerfile", scratch / "Dockerfile.finishing"]
    environment = environment_for({"BENTOML_HOME": str(scratch / "bentoml")})
    command = [sys.executable, "-m", "tests.deploy.containerfile", *map(str, targets)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ToolFailed(f"no Dockerfile could be made: {done.stderr[-1000:]}")
    return targets


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
