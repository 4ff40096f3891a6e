"""Writes the Dockerfiles that an image is made by: BentoML's, of this checkout, and what follows.

It runs with a BENTOML_HOME of its own.
"""

import shutil
import sys
from pathlib import Path

import bentoml
from bentoml._internal.container import construct_containerfile

from kaiten.settings.environment import ROOT
from lifecycle.packaging.image import finishing_dockerfile


def write(target: Path, finish: Path) -> None:
    """Build a bento, and write what BentoML makes an image by, and what finishes that image."""
    bento = bentoml.bentos.build_bentofile(version="0.0.0", build_ctx=str(ROOT))
    with construct_containerfile(bento) as (_, path):
        shutil.copyfile(path, target)
    labels = {"kaiten.variant": "cuda", "kaiten.bento": str(bento.tag)}
    finish.write_text(
        finishing_dockerfile("registry.example.com/kaiten:1-base", labels), encoding="utf-8"
    )


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
