"""Makes an image of a bento: BentoML's own containerize, and steps that its Dockerfile lacks."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Literal

from kaiten import model_tags
from kaiten.errors import BuildRefused
from lifecycle.commands import run_command
from lifecycle.packaging.bento import (
    SERVICE,
    bento_folder,
    check_bento,
    check_models,
    read_labels,
)
from lifecycle.store import ModelStore

Backend = Literal["docker", "podman", "buildah"]
_OCI = "org.opencontainers.image"
# Runs in the container itself, which has no curl.
_HEALTH_CHECK = (
    "import urllib.request as r; "
    # Without the proxy that docker may put into a container's environment.
    "r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:3000/readyz', timeout=5)"
)
# Writable paths are to be mounted, because everything else may be read-only.
ENVIRONMENT = {
    "KAITEN_HOME": "/var/lib/kaiten",
    "KAITEN_SECRETS": "/run/secrets",
    "KAITEN_SERVING__DRAIN_S": "5",
    "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108  a container's own
    "BENTOML_CONFIG": "/home/bentoml/bento/src/configuration.yaml",
    "BENTOML_DO_NOT_TRACK": "True",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_VARIANT_ENVIRONMENT = {
    "cpu": {"KAITEN_RUNNERS__DEVICE": "cpu"},
    # For NVIDIA's container runtime: torch brings CUDA's libraries, the host the driver.
    "cuda": {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
}


@dataclass(frozen=True, slots=True)
class ContainerImage:
    """An image in the backend's store; ``size`` in bytes, unpacked, if the backend reports it."""

    tag: str
    id: str
    size: int | None
    labels: dict[str, str]


def containerize_bento(
    bento: str, store: ModelStore, backend: Backend, tag: str | None, options: Sequence[str],
    environment: Mapping[str, str],
) -> ContainerImage:  # fmt: skip
    """Make an image of a bento in the store beside the models.

    ``options`` (key=value) go to the backend's build; ``environment`` is that of the backend.

    Raises:
        BuildRefused: The bento or its models have changed since the build, or the backend fails.

    """
    digest, labels = check_bento(bento, store), read_labels(bento_folder(bento, store))
    check_models(labels, store)
    if shutil.which(backend) is None:
        raise BuildRefused(f"{backend} is not installed. Install it, or choose another --backend.")
    tag = tag or bento
    # A name that only this build uses, and that no registry can resolve to another image.
    base = f"localhost/kaiten-build:{token_hex(8)}"
    command = [sys.executable, "-m", "bentoml", "containerize", bento, "--backend", backend]
    backend_options = [part for option in options for part in ("--opt", option)]
    _run([*command, "--image-tag", base, *backend_options], environment)
    # OCI's format has no health check; docker makes only its own format.
    format_options = [] if backend == "docker" else ["--format", "docker"]
    # The base image is local, so most options, such as a platform, do not apply.
    network = [f"--{option}" for option in options if option.startswith("network=")]
    with TemporaryDirectory(prefix="kaiten-") as context:
        dockerfile = Path(context) / "Dockerfile"
        text = finishing_dockerfile(base, _image_labels(bento, digest, labels))
        dockerfile.write_text(text, encoding="utf-8")
        build = [backend, "build", *format_options, *network, "--tag", tag]
        try:
            _run([*build, "--file", str(dockerfile), context], environment)
        finally:
            _run([backend, "rmi", base], environment)
    return _inspect(backend, tag, environment)


def _image_labels(bento: str, digest: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of an image, from those of its bento."""
    return {
        f"{_OCI}.title": SERVICE,
        f"{_OCI}.version": model_tags.split(bento)[1],
        f"{_OCI}.revision": labels["revision"],
        "kaiten.bento": bento,
        "kaiten.bento_digest": digest,
        **{f"kaiten.{key}": value for key, value in labels.items() if key != "revision"},
    }


def finishing_dockerfile(base: str, labels: Mapping[str, str]) -> str:
    """Return the Dockerfile of the steps that follow BentoML's own image."""
    return f"""\
FROM {base}
# One variable names the folder of the secrets, and holds no secret.
# hadolint ignore=DL3064
ENV {_pairs(ENVIRONMENT | _VARIANT_ENVIRONMENT[labels["kaiten.variant"]])}
USER root
# Compiled files start faster, and a read-only file system allows no later compilation.
RUN python -m compileall -q -f --invalidation-mode checked-hash "$BENTO_PATH/src" \\
    && printf '#!/bin/sh\\nPYTHONPATH=%s/src exec python -m cli "$@"\\n' "$BENTO_PATH" \\
        > /app/.venv/bin/kaiten && chmod 755 /app/.venv/bin/kaiten \\
    && mkdir -p "$KAITEN_HOME" && chown bentoml:bentoml "$KAITEN_HOME"
USER 1034:1034
LABEL {_pairs(labels)}
HEALTHCHECK --interval=15s --timeout=6s --start-period=2m --retries=3 \\
    CMD ["python", "-c", "{_HEALTH_CHECK}"]
"""


def _pairs(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def _inspect(backend: Backend, tag: str, environment: Mapping[str, str]) -> ContainerImage:
    if backend == "buildah":
        image = json.loads(_run([backend, "inspect", "--type", "image", tag], environment))
        labels = image["Docker"]["config"]["Labels"]
        return ContainerImage(tag, image["FromImageID"], None, labels)
    image = json.loads(_run([backend, "image", "inspect", tag], environment))[0]
    return ContainerImage(tag, image["Id"], image["Size"], image["Config"]["Labels"])


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    return run_command(command, f"{' '.join(command[:3])} failed", environment)
