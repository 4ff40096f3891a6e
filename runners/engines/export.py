"""Exports a network to ONNX at registration, if ONNX Runtime computes the same as torch."""

import io
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import structlog
import torch
from numpy.typing import NDArray

from kaiten.model_facts import EngineFacts
from kaiten.settings.models import RunnerSettings
from runners.engines import LIMIT_FILE, MAX_TOKENS, MODEL_FILE
from runners.engines.base import TokenBatch
from runners.engines.embedding import embedding_of
from runners.engines.onnx_engine import OnnxEngine
from runners.engines.pruning import prune
from runners.engines.torch_engine import TorchEngine

logger = structlog.get_logger(__name__)
# The largest difference between two logits that still counts as the same.
TOLERANCE = 1e-4
OPSET = 17
# Beside the graph, so that all sessions map the same weights; as Hugging Face names it.
_WEIGHTS = "model.onnx_data"
_FOLDER = Path(MODEL_FILE).parent
# A full disk says nothing about the network, and the choice of an engine is permanent.
_MACHINE_ERRORS = (OSError, MemoryError)
_AXES = {0: "texts", 1: "tokens"}
_OUTPUTS = ["logits", "embedding"]


def export(
    engine: TorchEngine,
    texts: TokenBatch,
    output: Path,
    *,
    together: bool = True,
    limited: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> EngineFacts:
    """Write the network to ``output``/onnx/ unless its logits differ from torch's.

    ``texts`` are sorted from short to long, none over MAX_TOKENS. Their logits are compared one
    text at a time and, if ``together``, in one padded batch of all but the longest, whose padding
    would take minutes. A pruned form of the network is tried first. ``limited`` means that the
    model also takes longer texts, which torch computes. The weights of ``engine`` are released to
    make room for those of the exported network, so it computes nothing afterwards.
    """
    versions = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    longer = _cut(texts.select([len(texts) - 1]), 2 * len(texts.token_ids[0]))
    example = texts.select([0]).concat(longer) if together else longer
    try:
        traced = trace(engine.network, example)
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  any error of the exporter: torch serves the model
        reason = f"it cannot be exported to ONNX: {type(error).__name__}"
        return EngineFacts("torch", reason, versions=versions)
    save(traced, output / MODEL_FILE)
    progress("Comparing the exported network with torch")
    batches = _comparison_batches(texts, together=together)
    logits = [engine.compute(batch).logits for batch in batches]
    engine.network.to("meta")
    compare = partial(_max_difference, output, batches, logits)
    reason, difference = _write_equal_form(traced, output, compare)
    if difference is None or not difference <= TOLERANCE:
        shutil.rmtree(output / _FOLDER, ignore_errors=True)
        return EngineFacts("torch", reason, len(texts), difference, versions)
    if limited:
        (output / LIMIT_FILE).write_text(f"{MAX_TOKENS}\n", encoding="utf-8")
        reason += f"; torch computes texts of over {MAX_TOKENS:,} tokens"
    return EngineFacts("onnx", reason, len(texts), difference, versions, OPSET)


def _comparison_batches(texts: TokenBatch, *, together: bool) -> list[TokenBatch]:
    """Return each text alone and, if ``together``, all but the longest in one padded batch."""
    batches = [texts.select([index]) for index in range(len(texts))]
    return [*batches, texts.select(range(len(texts) - 1))] if together else batches


def _write_equal_form(
    traced: onnx.ModelProto, output: Path, compare: Callable[[], float]
) -> tuple[str, float | None]:
    """Write the first form within the tolerance; return the result of the last one tried."""
    reason, difference = "", None
    for form, change in _FORMS.items():
        network = change(traced)
        if network is None:
            continue
        # Without its weights, which have their own file.
        (output / MODEL_FILE).write_bytes(network.SerializeToString())
        reason, difference = _try_form(form, compare)
        if difference is not None and difference <= TOLERANCE:
            break
    return reason, difference


def _cut(texts: TokenBatch, length: int) -> TokenBatch:
    """Return the texts, each cut to a length but for its last token, which some networks read."""
    inputs = {
        name: [[*row[: length - 1], row[-1]] if len(row) > length else row for row in rows]
        for name, rows in texts.inputs.items()
    }
    return replace(texts, inputs=inputs)


def _try_form(form: str, compare: Callable[[], float]) -> tuple[str, float | None]:
    """Return the result of a form in words, and its largest difference; None if it fails."""
    try:
        difference = compare()
    except _MACHINE_ERRORS:
        raise
    except Exception as error:  # noqa: BLE001  the next form may do
        return f"{form}, it fails: {type(error).__name__}", None
    verb = "agree with torch's within" if difference <= TOLERANCE else "differ by more than"
    return f"{form}, its logits {verb} {TOLERANCE:g}", difference


def _pruned(traced: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the network without the parts that no logit depends on; None without such parts."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(traced)
    try:
        return pruned if prune(pruned) else None
    except Exception as error:  # noqa: BLE001  the plain form may do
        logger.warning("not_pruned", error=type(error).__name__)
        return None


# The forms that may be served, the fastest first; None if a network has no such form.
_FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]] = {
    "exported to ONNX, with its last layer for the first token only": _pruned,
    "exported to ONNX": lambda traced: traced,
}


def _max_difference(
    output: Path, batches: Sequence[TokenBatch], logits: Sequence[NDArray[np.float32]]
) -> float:
    """Return the exported network's largest difference from torch's logits."""
    exported = OnnxEngine(output, RunnerSettings(threads=2))
    return max(
        _largest_absolute(exported.compute(batch, alone=alone).logits - expected)
        for batch, expected in zip(batches, logits, strict=True)
        # By both sessions of the engine.
        for alone in (False, True)
    )


def _largest_absolute(differences: NDArray[np.float32]) -> float:
    # NaN would compare as small.
    return float(np.nan_to_num(np.abs(differences), nan=np.inf).max())


def trace(
    network: Any,  # noqa: ANN401  transformers has no types
    example: TokenBatch,
) -> onnx.ModelProto:
    """Trace the network on an example with some padding, so that nothing is taken as constant.

    Its outputs are ``logits``, and ``embedding`` if the network is watched and has one.
    """
    implementation = network.config._attn_implementation  # noqa: SLF001  it has no public name
    # Plain matrix products: the other forms have branches that an export cannot follow.
    network.set_attn_implementation("eager")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with (
            TemporaryDirectory(prefix="kaiten-") as folder,
            warnings.catch_warnings(),
            torch.inference_mode(),
            _silenced_stdout(),
        ):
            warnings.simplefilter("ignore")
            file = Path(folder) / "traced.onnx"
            _trace_to_file(network, example, file)
            return onnx.load(file)
    finally:
        network.set_attn_implementation(implementation)


def _trace_to_file(network: Any, example: TokenBatch, file: Path) -> None:  # noqa: ANN401
    arrays = example.arrays()
    # In evaluation mode, which the exporter restores.
    plain = _Plain(network, [*arrays]).eval()
    inputs = tuple(map(torch.from_numpy, arrays.values()))
    names = _OUTPUTS[: len(plain(*inputs))]
    torch.onnx.export(
        plain,
        inputs,
        str(file),
        input_names=[*arrays],
        output_names=names,
        dynamic_axes={
            **dict.fromkeys(arrays, _AXES),
            **{name: {0: _AXES[0]} for name in names},
        },
        opset_version=OPSET,
        # The newer exporter takes several times as long, and needs another package.
        dynamo=False,
    )


@contextmanager
def _silenced_stdout() -> Iterator[None]:
    """Discard standard output, including that of libraries that write to its descriptor.

    The exporter prints the whole graph if it fails, and standard output is for a command's result.
    """
    sys.stdout.flush()
    stdout = os.dup(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 1)
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(devnull)


def save(network: onnx.ModelProto, target: Path) -> None:
    """Write a network, with its weights in a file beside it, and drop them from memory."""
    target.parent.mkdir(parents=True)
    onnx.save_model(network, target, save_as_external_data=True, location=_WEIGHTS)
    weights = target.parent / _WEIGHTS
    if weights.exists():
        # onnx writes it for its owner alone; the graph follows the umask.
        weights.chmod(target.stat().st_mode)


class _Plain(torch.nn.Module):
    """A network that takes its named inputs by position, and returns plain tensors."""

    def __init__(self, network: Any, names: Sequence[str]) -> None:  # noqa: ANN401
        super().__init__()
        self._network, self._names = network, names

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = self._network(**dict(zip(self._names, inputs, strict=True))).logits
        embedding = embedding_of(logits)
        return (logits,) if embedding is None else (logits, embedding)
