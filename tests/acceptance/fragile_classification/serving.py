"""Text classification that fails on one text and has a bug for another."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kaiten.settings.models import RunnerSettings
from runners.engines import open_engine
from runners.tasks.base import Task
from runners.tasks.text_classification import serving
from runners.tokenization import TokenisedText, TokenizationSettings, load_tokenizer

POISON = "xanthophyll"
BUG = "quercitron"
HANG = "ytterbium"


@dataclass(frozen=True, slots=True)
class FragileText(TokenisedText):
    """A text that may fail its batch, or end the batcher: by its price, once it is queued."""

    text: str = ""
    cost_calls: list[None] = field(default_factory=list)

    @property
    def cost(self) -> int:
        self.cost_calls.append(None)
        if BUG in self.text and len(self.cost_calls) > 1:
            raise ZeroDivisionError
        return len(self.ids)


class FragileProcessor(serving.TextProcessor):
    """A processor whose items know their text."""

    def prepare(self, inputs: Sequence[str]) -> list[TokenisedText]:
        items = super().prepare(inputs)
        return [FragileText(item.ids, text=text) for item, text in zip(items, inputs, strict=True)]


class FragileClassifier(serving.TextClassifier):
    """A classifier that cannot compute a batch with POISON in it."""

    def infer(self, batch: Sequence[TokenisedText], *, alone: bool = False) -> serving.Raw:
        for item in batch:
            if isinstance(item, FragileText) and POISON in item.text:
                # As libraries do, it names the text.
                raise ValueError(f"can not compute {item.text!r}")
            if isinstance(item, FragileText) and HANG in item.text:
                # As a driver does: no exception, no end.
                threading.Event().wait()
        return super().infer(batch, alone=alone)


class FragileCodec:
    """The quickstart's codec, with the text beside its ids."""

    def encode_items(self, items: Sequence[FragileText]) -> list[bytes]:
        return [json.dumps([[*item.ids], item.text]).encode() for item in items]

    def decode_items(self, parts: Sequence[bytes]) -> list[FragileText]:
        return [FragileText(ids, text=text) for ids, text in (json.loads(part) for part in parts)]

    def encode_raw(self, raw: serving.Raw) -> list[bytes]:
        return serving.codec.encode_raw(raw)

    def decode_raw(self, parts: Sequence[bytes]) -> serving.Raw:
        return serving.codec.decode_raw(parts)


codec = FragileCodec()


def load_processor(folder: Path, max_length: int) -> FragileProcessor:
    settings = TokenizationSettings.read(folder)
    return FragileProcessor(load_tokenizer(folder, settings, max_length), settings, max_length)


def load(
    folder: Path,
    max_length: int,
    settings: RunnerSettings,
    reference: Path | None = None,
) -> Task[str, TokenisedText, serving.Raw, serving.Classification]:
    processor = load_processor(folder, max_length)
    # Of plain texts: they are computed before any is asked for.
    plain = serving.load_processor(folder, max_length)
    engine = open_engine(folder, settings, plain.samples())
    return Task(processor, FragileClassifier(engine, plain, plain.probes()))
