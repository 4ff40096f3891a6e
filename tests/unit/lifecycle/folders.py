"""A model's folder as registration takes it, and ways to change it."""

import shutil
from collections.abc import Callable
from pathlib import Path

MODEL = {
    "config.json": '{"model_type": "bert"}',
    "model.safetensors": "weights",
    "tokenizer.json": "{}",
}
Change = Callable[[Path], object]


def smallest_folder(parent: Path) -> Path:
    """Make the smallest folder that is taken."""
    folder = parent / "model"
    folder.mkdir()
    for name, text in MODEL.items():
        (folder / name).write_text(text)
    return folder


def contents(home: Path) -> list[str]:
    return sorted(path.relative_to(home).as_posix() for path in home.rglob("*"))


def write(name: str, text: str = "") -> Change:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return change


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def rename(name: str, to: str) -> Change:
    return lambda folder: (folder / name).rename(folder / to)


def replace_by_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()
