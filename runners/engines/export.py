"""Exporting a network to ONNX at registration, where that computes what torch computes."""

import io
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from kaiten.settings import Runners
from runners.engines import MODEL_FILE
from runners.engines.base import Engine, pad
from runners.engines.onnx_engine import OnnxEngine
from runners.engines.pruning import prune
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import EngineFacts

# The largest difference between two logits that still counts as the same.
TOLERANCE = 1e-4
_OPSET = 17
# An export by plain matrix products holds all of a text's attention at once: 3 GB for 8,192 tokens
# in a small model. torch's own attention does not.
MAX_TOKENS = 1024
# Beside the graph, so that all sessions map the same weights; as Hugging Face names it.
_WEIGHTS = "model.onnx_data"
_FOLDER = Path(MODEL_FILE).parent
_AXES = {0: "texts", 1: "tokens"}

# What people write to a support desk, a bank or a shop, from one word to a paragraph.
SENTENCES = (
    "Hello",
    "Refund please!",
    "Where is my parcel?",
    "I was charged twice for the same order, can you check?",
    "The app crashes every time I open the settings page on my phone.",
    "Wie lange dauert die Lieferung nach Österreich, und was kostet sie?",
    "¿Puedo cambiar la dirección de entrega después de hacer el pedido?",
    "My card was declined at the supermarket although there is enough money in the account; why?",
    """I ordered two pairs of shoes on the 3rd of May (order no. 48-22913), one of size 42, one of
    43. Only one pair arrived, in the wrong colour, and the invoice in the box is for somebody
    else. I have written to you three times and got no answer but an automatic one. Please send the
    right shoes, or give me my money back, and tell me what to do with the pair that I have.""",
)


def export(
    engine: TorchEngine, pad_id: int, texts: Sequence[Sequence[int]], made: Path
) -> EngineFacts:
    """Write the network to ``made``/onnx/, unless it does not agree with torch.

    ``texts`` are token ids, from short to the longest; their logits are compared alone and in one
    padded batch. What no answer depends on is left out, where that agrees too.
    """
    versions = {name: version(name) for name in ("torch", "onnx", "onnxruntime")}
    longest = max(map(len, texts))
    if longest > MAX_TOKENS:
        reason = f"texts of up to {longest} tokens take less memory by torch's attention"
        return EngineFacts("torch", reason, versions=versions)
    try:
        traced = trace(engine.network, pad([texts[0], texts[-1][: 2 * len(texts[0])]], pad_id))
        for form, network in _forms(traced):
            difference = _saved_difference(network, made, engine, pad_id, texts)
            if difference <= TOLERANCE:
                reason = f"{form}, its logits agree with torch's within {TOLERANCE:g}"
                return EngineFacts("onnx", reason, len(texts), difference, versions)
            shutil.rmtree(made / _FOLDER)
    except (OSError, MemoryError):
        # A full disk says nothing about the network, and an engine is chosen for good.
        raise
    except Exception as error:  # noqa: BLE001  whatever an exporter trips over: torch serves it
        shutil.rmtree(made / _FOLDER, ignore_errors=True)
        reason = f"it can not be exported to ONNX: {type(error).__name__}"
        return EngineFacts("torch", reason, versions=versions)
    reason = f"{form}, its logits differ by more than {TOLERANCE:g}"
    return EngineFacts("torch", reason, len(texts), difference, versions)


def _forms(traced: onnx.ModelProto) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield what may be served, the fastest first, and what to call it."""
    pruned = onnx.ModelProto()
    pruned.CopyFrom(traced)
    if prune(pruned):
        yield "exported to ONNX, with its last layer for the first token only", pruned
    yield "exported to ONNX", traced


def _saved_difference(
    network: onnx.ModelProto,
    made: Path,
    engine: TorchEngine,
    pad_id: int,
    texts: Sequence[Sequence[int]],
) -> float:
    """Save a network and return its largest difference from torch's logits."""
    save(network, made / MODEL_FILE)
    return _difference(engine, OnnxEngine(made, Runners(threads=2)), pad_id, texts)


def _difference(
    engine: Engine, exported: Engine, pad_id: int, texts: Sequence[Sequence[int]]
) -> float:
    """Return the largest difference of a logit, by both sessions of the exported engine."""
    largest = 0.0
    for batch in [*([text] for text in texts), texts]:
        expected = engine.logits(batch, pad_id)
        for alone in (False, True):
            found = exported.logits(batch, pad_id, alone=alone)
            largest = max(largest, _largest(found - expected))
    return largest


def _largest(differences: NDArray[np.float32]) -> float:
    # What is no number would compare as small.
    return float(np.nan_to_num(np.abs(differences), nan=np.inf).max())


def trace(
    network: Any,  # noqa: ANN401  transformers has no types
    example: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> onnx.ModelProto:
    """Trace the network on an example with some padding, so that nothing is seen as constant."""
    implementation = network.config._attn_implementation  # noqa: SLF001  it has no public name
    # Plain matrix products: the other forms hold branches that an export can not follow.
    network.set_attn_implementation("eager")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with (
            TemporaryDirectory(prefix="kaiten-") as folder,
            warnings.catch_warnings(),
            torch.inference_mode(),
            # The exporter prints the whole graph where it fails.
            redirect_stdout(io.StringIO()),
        ):
            traced = Path(folder) / "traced.onnx"
            warnings.simplefilter("ignore")
            torch.onnx.export(
                # In evaluation as the network is: the exporter puts it back into what this is in.
                _Logits(network).eval(),
                tuple(map(torch.from_numpy, example)),
                str(traced),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                dynamic_axes={
                    "input_ids": _AXES,
                    "attention_mask": _AXES,
                    "logits": {0: _AXES[0]},
                },
                opset_version=_OPSET,
                # The newer exporter takes several times as long, and needs one package more.
                dynamo=False,
            )
            return onnx.load(traced)
    finally:
        network.set_attn_implementation(implementation)


def save(network: onnx.ModelProto, target: Path) -> None:
    """Write a network, with its weights in a file beside it; the network has none afterwards."""
    target.parent.mkdir(parents=True)
    onnx.save_model(network, target, save_as_external_data=True, location=_WEIGHTS)
    weights = target.parent / _WEIGHTS
    if weights.exists():
        # Written for its owner alone, where the graph follows the umask.
        weights.chmod(target.stat().st_mode)


class _Logits(torch.nn.Module):
    """A network that takes and gives plain tensors."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401  transformers has no types
        super().__init__()
        self._network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self._network(
            input_ids=input_ids, attention_mask=attention_mask
        ).logits
        return logits
