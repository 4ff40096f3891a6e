"""What a run needs before the first server starts: model, texts, right labels and a token."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from benchmarks import model, places, texts
from benchmarks.catalogue import kaiten
from benchmarks.limit import write_texts
from benchmarks.reference import questions
from benchmarks.results import Record
from benchmarks.rounds import Material
from benchmarks.texts import Shape

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The material, the files that the offline process is started with, and what to report."""

    material: Material
    onnx: Path
    tokenizer: Path
    texts: Path
    conditions: Record


def prepare(banking77: Path, shapes: Sequence[Shape], workers: Sequence[int]) -> Prepared:
    """Make the model unless it exists, register it, and build the requests for every server."""
    places.HOME.mkdir(parents=True, exist_ok=True)
    data = model.read_data(banking77)
    facts = model.ensure_model(data)
    console.print(f"Model: {facts.source}, {facts.labels} labels, test accuracy {facts.accuracy}")
    onnx = model.register()
    tokenizer = _tokenizer(places.MODEL / "tokenizer.json")
    short = texts.short_texts([row.text for row in data.test])
    mixed = texts.mixed_texts(short, tokenizer)
    file = places.HOME / "texts.json"
    write_texts(file, {"short": short, "mixed": mixed})
    servers = [kaiten(model.TAG, count) for count in workers]
    count = texts.counter(tokenizer)
    material = Material(
        values={"model": str(places.MODEL), "onnx": str(model.export_plainly())},
        requests={shape.name: texts.requests(shape, short, mixed, count) for shape in shapes},
        questions=questions(places.MODEL, short, mixed),
        kaiten=servers,
        headers={"Authorization": f"Bearer {model.token()}"} if servers else {},
    )
    conditions = {
        "texts": facts.source,
        "labels": facts.labels,
        "test_accuracy": facts.accuracy,
        "tokens_mean": round(sum(map(count, short)) / len(short), 1),
        "tokens_mean_mixed": round(sum(map(count, mixed)) / len(mixed), 1),
    }
    return Prepared(material, onnx, places.MODEL / "tokenizer.json", file, conditions)


def _tokenizer(path: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
