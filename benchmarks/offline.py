"""What the hardware does without HTTP: ONNX Runtime over windows of texts, as a lasting process.

It is started with the model, the tokenizer and a file of texts, reads one JSON request a line and
answers each with one JSON line. It shares no code with Kaiten's runners, on purpose.
"""

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

MAX_LENGTH = 512
Ids = Sequence[int]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a window is computed: bounds of a micro-batch, and its streams.

    ``spread`` is "window" where the streams share a window's micro-batches, and "halves" where each
    stream has its own smaller windows and waits for no other.
    """

    threads: int = 2
    streams: int = 1
    spread: str = "window"
    max_size: int = 16
    max_tokens: int = 4096
    max_waste: float = 0.1


def micro_batches(window: Sequence[Ids], plan: Plan) -> list[list[Ids]]:
    """Sort by length, longest first, and cut where a bound would be passed."""
    batches: list[list[Ids]] = []
    real = 0
    for ids in sorted(window, key=len, reverse=True):
        if batches:
            padded = len(batches[-1][0]) * (len(batches[-1]) + 1)
            fits = len(batches[-1]) < plan.max_size and padded <= plan.max_tokens
            if fits and 1 - (real + len(ids)) / padded <= plan.max_waste:
                batches[-1].append(ids)
                real += len(ids)
                continue
        batches.append([ids])
        real = len(ids)
    return batches


class Engine:
    """One ONNX Runtime session for each stream."""

    def __init__(self, model: Path, threads: int, streams: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self._sessions = [
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            for _ in range(streams)
        ]
        self._input_names = {model_input.name for model_input in self._sessions[0].get_inputs()}

    def logits(self, batch: Sequence[Ids], stream: int) -> Any:
        """Return the logits of one padded batch."""
        ids = np.zeros((len(batch), max(map(len, batch))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, tokens in enumerate(batch):
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: value for name, value in tensors.items() if name in self._input_names}
        return self._sessions[stream].run(None, feed)[0].argmax(axis=1)


class Offline:
    """Measures windows of some texts; ``engines`` are made when first asked for, and kept."""

    def __init__(
        self,
        model: Path,
        tokenizer: Path,
        texts: Sequence[str],
        engines: dict[tuple[int, int], Engine],
    ) -> None:
        self._model, self._texts, self._engines = model, texts, engines
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_LENGTH)

    def measure(self, plan: Plan, window: int, seconds: float, first: int) -> dict[str, float]:
        """Return texts/s, tokens/s and the median time of a window in ms."""
        key = plan.threads, plan.streams
        if key not in self._engines:
            self._engines[key] = Engine(self._model, *key)
        engine = self._engines[key]
        if plan.spread == "halves":
            return self._apart(engine, plan, window, seconds, first)
        return self._timed(self._windows(window, first), seconds, engine, plan, range(plan.streams))

    def _apart(
        self, engine: Engine, plan: Plan, window: int, seconds: float, first: int
    ) -> dict[str, float]:
        """Let each stream go through smaller windows of its own, and add up what they did."""
        size, stream_figures = (
            max(1, window // plan.streams),
            [dict[str, float]() for _ in range(plan.streams)],
        )

        def work(stream: int) -> None:
            windows = self._windows(size, first + stream * len(self._texts) // plan.streams)
            stream_figures[stream] = self._timed(windows, seconds, engine, plan, [stream])

        _run_all(work, plan.streams)
        added = {key: sum(part[key] for part in stream_figures) for key in ("texts_s", "tokens_s")}
        return {**added, "p50_ms": median(part["p50_ms"] for part in stream_figures)}

    def _windows(self, size: int, first: int) -> Iterator[list[str]]:
        texts = cycle(
            [*self._texts[first % len(self._texts) :], *self._texts[: first % len(self._texts)]]
        )
        while True:
            yield [next(texts) for _ in range(size)]

    def _timed(
        self,
        windows: Iterator[list[str]],
        seconds: float,
        engine: Engine,
        plan: Plan,
        streams: Sequence[int],
    ) -> dict[str, float]:
        times: list[float] = []
        texts = tokens = 0
        start = now = time.perf_counter()
        while now - start < seconds:
            window = next(windows)
            encoded = [row.ids for row in self._tokenizer.encode_batch_fast(window)]
            _compute(micro_batches(encoded, plan), engine, streams)
            before, now = now, time.perf_counter()
            times.append((now - before) * 1000)
            texts, tokens = texts + len(window), tokens + sum(map(len, encoded))
        spent = now - start
        return {"texts_s": texts / spent, "tokens_s": tokens / spent, "p50_ms": median(times)}


def _compute(batches: Sequence[Sequence[Ids]], engine: Engine, streams: Sequence[int]) -> None:
    """Compute the micro-batches, each by the stream that is free first."""
    waiting = deque(batches)

    def work(index: int) -> None:
        while waiting:
            try:
                batch = waiting.popleft()
            except IndexError:
                return
            engine.logits(batch, streams[index])

    if len(streams) == 1:
        work(0)
    else:
        _run_all(work, len(streams))


def _run_all(work: Any, count: int) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Answer requests until standard input ends."""
    model, tokenizer, texts = map(Path, sys.argv[1:4])
    kinds = json.loads(texts.read_text(encoding="utf-8"))
    engines: dict[tuple[int, int], Engine] = {}
    offline_by_kind = {
        kind: Offline(model, tokenizer, rows, engines) for kind, rows in kinds.items()
    }
    for line in sys.stdin:
        request = json.loads(line)
        offline, plan = offline_by_kind[request.pop("kind")], Plan(**request.pop("plan"))
        sys.stdout.write(json.dumps(offline.measure(plan, **request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
