"""Tokenizers as transformers 4.57 saves them: an environment that has it, and an archive.

The suite saves them anew in the environment, ``.kaiten/transformers-4``. The tests unpack the
archive, which ``python -m tests.acceptance.zoo.transformers_4`` writes.
"""

import json
import lzma
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from runners.probe_texts import PROBE_TEXTS
from tests.acceptance.zoo.specimens import MAX_LENGTH
from tests.acceptance.zoo.tokenizers import KINDS, Kind, Vocabularies
from tests.servers import BIN, ROOT, environment

ARCHIVE = Path(__file__).with_name("saved.tar.xz")
# The ids that 4.57 itself gives for PROBE_TEXTS, in each saved folder.
IDS_FILE = "ids.json"
_ENVIRONMENT = ROOT / ".kaiten" / "transformers-4"
_REQUIREMENTS = Path(__file__).with_name("requirements.txt")
_SCRIPT = Path(__file__).with_name("save.py")
OWN_NORMALISER = "bert-own"
_NAMES = (
    *("albert", "bart", "barthez", "bert", "big_bird", "camembert", "deberta", "deberta-v2"),
    *("deberta-v2-punct", "distilbert", "electra", "fnet", "funnel", "gemma", "gpt2", "layoutlm"),
    *(
        "llama",
        "llama-legacy",
        "mbart",
        "mbart50",
        "mpnet",
        "nllb",
        "own-wordpiece",
        "qwen2",
        "reformer",
    ),
    *("rembert", "roberta", "t5", "xlm-roberta", "xlnet"),
)


def kinds() -> Mapping[str, Kind]:
    """Return the tokenizers that are saved, by name."""
    return {name: KINDS[name] for name in _NAMES} | {OWN_NORMALISER: replace(KINDS["bert"])}


def save(vocabularies: Vocabularies, target: Path) -> None:
    """Save the tokenizers by transformers 4.57, with the ids that it gives for the probe texts."""
    order = {
        "kinds": {
            name: {
                "cls": kind.cls,
                "files": str(
                    vocabularies.files(kind.vocabulary)
                    if kind.vocabulary
                    else vocabularies.tokenizer(name)
                ),
                "options": {"model_max_length": MAX_LENGTH, **kind.options},
                "own_normaliser": name == OWN_NORMALISER,
            }
            for name, kind in kinds().items()
        },
        "texts": PROBE_TEXTS,
    }
    target.mkdir(parents=True, exist_ok=True)
    file = target / "order.json"
    file.write_text(json.dumps(order), encoding="utf-8")
    _run([str(_python()), str(_SCRIPT), str(file), str(target)])
    file.unlink()


def unpack(target: Path) -> None:
    """Unpack the archive."""
    with lzma.open(ARCHIVE) as content, tarfile.open(fileobj=content) as archive:
        archive.extractall(target, filter="data")


def pack(folder: Path) -> None:
    """Write the archive from a folder of saved tokenizers; the same files give the same bytes."""
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(file.relative_to(folder).as_posix())
            entry.size = file.stat().st_size
            with file.open("rb") as content:
                archive.addfile(entry, content)
    ARCHIVE.write_bytes(lzma.compress(packed.getvalue(), preset=9))


def _python() -> Path:
    """Return the environment's Python, installed unless it is there."""
    python, marker = _ENVIRONMENT / "bin" / "python", _ENVIRONMENT / "installed.txt"
    requirements = _REQUIREMENTS.read_text(encoding="utf-8")
    if not (marker.is_file() and marker.read_text(encoding="utf-8") == requirements):
        shutil.rmtree(_ENVIRONMENT, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(_ENVIRONMENT)])
        install = ("pip", "install", "--quiet", "--python", str(python), "-r", str(_REQUIREMENTS))
        _run([str(BIN / "uv"), *install])
        marker.write_text(requirements, encoding="utf-8")
    return python


def _run(command: list[str]) -> None:
    # Without this environment's settings; the texts are not English alone.
    env = environment(_ENVIRONMENT, _ENVIRONMENT, PYTHONUTF8="1", TRANSFORMERS_VERBOSITY="error")
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")
