"""From a bento to an image: BentoML's own containerize, and what its Dockerfile can not say."""

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
from lifecycle.packaging.build import SERVICE, check, check_models, labels_of
from lifecycle.packaging.commands import run
from lifecycle.store import ModelStore

Backend = Literal["docker", "podman", "buildah"]
_OCI = "org.opencontainers.image"
# Asked in the container itself, where there is no curl.
_PROBE = (
    "import urllib.request as r; "
    # Not by a proxy, which docker may put into a container's environment.
    "r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:3000/readyz', timeout=5)"
)
# What is writable is to be mounted, as all else may be read-only.
ENVIRONMENT = {
    "KAITEN_HOME": "/var/lib/kaiten",
    "KAITEN_SECRETS": "/run/secrets",
    "KAITEN_SERVING__DRAIN_S": "5",
    "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108  a container's own
    "BENTOML_CONFIG": "/home/bentoml/bento/src/configuration.yaml",
    "BENTOML_DO_NOT_TRACK": "True",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_ON = {
    "cpu": {"KAITEN_RUNNERS__DEVICE": "cpu"},
    # Read by NVIDIA's container runtime: torch brings CUDA's libraries, the host the driver.
    "cuda": {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"},
}


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the backend's store; ``size`` in bytes, unpacked, if the backend tells it."""

    tag: str
    id: str
    size: int | None
    labels: dict[str, str]


def containerize(
    bento: str, store: ModelStore, backend: Backend, tag: str | None, options: Sequence[str],
    environment: Mapping[str, str],
) -> Image:  # fmt: skip
    """Make an image of a bento in the store beside the models'.

    ``options`` (key=value) go to the backend's build; ``environment`` is that of the backend.
    BuildRefused where the bento or its models are not as they were built, or the backend fails.
    """
    digest, told = check(bento, store), labels_of(bento, store)
    check_models(told, store)
    if shutil.which(backend) is None:
        raise BuildRefused(f"{backend} is not installed. Install it, or choose --backend.")
    tag = tag or bento
    # Of this build alone, and in no registry, whose image might be taken in its place.
    base = f"localhost/kaiten-build:{token_hex(8)}"
    command = [sys.executable, "-m", "bentoml", "containerize", bento, "--backend", backend]
    passed_on = [part for option in options for part in ("--opt", option)]
    _run([*command, "--image-tag", base, *passed_on], environment)
    # Docker's format, as OCI's has no health check; docker makes no other.
    form = [] if backend == "docker" else ["--format", "docker"]
    # The base is here, and in no registry, so that most options would be amiss.
    more = [f"--{option}" for option in options if option.startswith("network=")]
    with TemporaryDirectory(prefix="kaiten-") as context:
        dockerfile = Path(context) / "Dockerfile"
        dockerfile.write_text(finishing(base, _labels(bento, digest, told)), encoding="utf-8")
        build = [backend, "build", *form, *more, "--tag", tag, "--file", str(dockerfile), context]
        try:
            _run(build, environment)
        finally:
            _run([backend, "rmi", base], environment)
    return _inspect(backend, tag, environment)


def _labels(bento: str, digest: str, told: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of an image, by what its bento says of itself."""
    return {
        f"{_OCI}.title": SERVICE,
        f"{_OCI}.version": model_tags.split(bento)[1],
        f"{_OCI}.revision": told["revision"],
        "kaiten.bento": bento,
        "kaiten.bento_digest": digest,
        **{f"kaiten.{key}": value for key, value in told.items() if key != "revision"},
    }


def finishing(base: str, labels: Mapping[str, str]) -> str:
    """Return the Dockerfile of what is done to the image that BentoML has made."""
    return f"""\
FROM {base}
# One of them names the folder where secrets will be, and no secret.
# hadolint ignore=DL3064
ENV {_pairs(ENVIRONMENT | _ON[labels["kaiten.variant"]])}
USER root
# A file that has been compiled costs a start nothing, and where all is read-only nobody can later.
RUN python -m compileall -q --invalidation-mode checked-hash "$BENTO_PATH/src" \\
    && printf '#!/bin/sh\\nPYTHONPATH=%s/src exec python -m cli "$@"\\n' "$BENTO_PATH" \\
        > /app/.venv/bin/kaiten && chmod 755 /app/.venv/bin/kaiten \\
    && mkdir -p "$KAITEN_HOME" && chown bentoml:bentoml "$KAITEN_HOME"
USER 1034:1034
LABEL {_pairs(labels)}
HEALTHCHECK --interval=15s --timeout=6s --start-period=2m --retries=3 \\
    CMD ["python", "-c", "{_PROBE}"]
"""


def _pairs(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())


def _inspect(backend: Backend, tag: str, environment: Mapping[str, str]) -> Image:
    if backend == "buildah":
        told = json.loads(_run([backend, "inspect", "--type", "image", tag], environment))
        return Image(tag, told["FromImageID"], None, told["Docker"]["config"]["Labels"])
    told = json.loads(_run([backend, "image", "inspect", tag], environment))[0]
    return Image(tag, told["Id"], told["Size"], told["Config"]["Labels"])


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    return run(command, f"{' '.join(command[:3])} failed", environment)
