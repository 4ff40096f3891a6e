"""Writes the Dockerfile that the image is made by: of a bento built from this checkout.

It runs with a BENTOML_HOME of its own.
"""

import shutil
import sys
from pathlib import Path

import bentoml
from bentoml._internal.container import construct_containerfile

from kaiten.settings import ROOT


def write(target: Path) -> None:
    """Build a bento, and write what BentoML makes the image by to ``target``."""
    bento = bentoml.bentos.build_bentofile(version="0.0.0", build_ctx=str(ROOT))
    with construct_containerfile(bento) as (_, path):
        shutil.copyfile(path, target)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
