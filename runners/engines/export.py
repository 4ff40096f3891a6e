"""Exporting a network to ONNX at registration, where that computes what torch computes."""

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
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

from kaiten.sections import Runners
from runners.engines import MODEL_FILE
from runners.engines.base import Engine, pad
from runners.engines.embedding import embedding_of
from runners.engines.onnx_engine import OnnxEngine
from runners.engines.pruning import prune
from runners.engines.torch_engine import TorchEngine
from runners.tasks.base import EngineFacts

logger = structlog.get_logger(__name__)
# The largest difference between two logits that still counts as the same.
TOLERANCE = 1e-4
OPSET = 17
# An export by plain matrix products holds all of a text's attention at once: 3 GB for 8,192 tokens
# in a small model. torch's own attention does not.
MAX_TOKENS = 1024
# Beside the graph, so that all sessions map the same weights; as Hugging Face names it.
_WEIGHTS = "model.onnx_data"
_FOLDER = Path(MODEL_FILE).parent
# A full disk says nothing about the network, and an engine is chosen for good.
_NOT_THE_NETWORKS = (OSError, MemoryError)
_AXES = {0: "texts", 1: "tokens"}
_INPUTS, _OUTPUTS = ["input_ids", "attention_mask"], ["logits", "embedding"]


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
    except _NOT_THE_NETWORKS:
        raise
    except Exception as error:  # noqa: BLE001  whatever an exporter trips over: torch serves it
        reason = f"it can not be exported to ONNX: {type(error).__name__}"
        return EngineFacts("torch", reason, versions=versions)
    compare = partial(_saved_difference, made=made, engine=engine, pad_id=pad_id, texts=texts)
    for form, change in _FORMS.items():
        network = change(traced)
        if network is None:
            continue
        reason, difference = _tried(form, network, compare)
        if difference is not None and difference <= TOLERANCE:
            return EngineFacts("onnx", reason, len(texts), difference, versions, OPSET)
        shutil.rmtree(made / _FOLDER, ignore_errors=True)
    return EngineFacts("torch", reason, len(texts), difference, versions)


def _tried(
    form: str, network: onnx.ModelProto, compare: Callable[[onnx.ModelProto], float]
) -> tuple[str, float | None]:
    """Return what came of a form, in words and as its largest difference; None where it fails."""
    try:
        difference = compare(network)
    except _NOT_THE_NETWORKS:
        raise
    except Exception as error:  # noqa: BLE001  the next form may do
        return f"{form}, it fails: {type(error).__name__}", None
    verb = "agree with torch's within" if difference <= TOLERANCE else "differ by more than"
    return f"{form}, its logits {verb} {TOLERANCE:g}", difference


def _pruned(traced: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return the network without what no answer depends on; None where all of it counts."""
    found = onnx.ModelProto()
    found.CopyFrom(traced)
    try:
        return found if prune(found) else None
    except Exception as error:  # noqa: BLE001  the plain form may do; over 2 GB onnx infers no shapes
        logger.warning("not_pruned", error=type(error).__name__)
        return None


# What may be served, the fastest first; None where there is no such form of a network.
_FORMS: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto | None]] = {
    "exported to ONNX, with its last layer for the first token only": _pruned,
    "exported to ONNX": lambda traced: traced,
}


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
        expected = engine.compute(batch, pad_id).logits
        for alone in (False, True):
            found = exported.compute(batch, pad_id, alone=alone).logits
            largest = max(largest, _largest(found - expected))
    return largest


def _largest(differences: NDArray[np.float32]) -> float:
    # What is no number would compare as small.
    return float(np.nan_to_num(np.abs(differences), nan=np.inf).max())


def trace(
    network: Any,  # noqa: ANN401  transformers has no types
    example: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> onnx.ModelProto:
    """Trace the network on an example with some padding, so that nothing is seen as constant.

    It gives ``logits``, and ``embedding`` where the network is watched and has one.
    """
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
            # In evaluation as the network is: the exporter puts it back into what this is in.
            plain, given = _Plain(network).eval(), tuple(map(torch.from_numpy, example))
            names = _OUTPUTS[: len(plain(*given))]
            torch.onnx.export(
                plain,
                given,
                str(traced),
                input_names=_INPUTS,
                output_names=names,
                dynamic_axes={
                    **dict.fromkeys(_INPUTS, _AXES),
                    **{name: {0: _AXES[0]} for name in names},
                },
                opset_version=OPSET,
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


class _Plain(torch.nn.Module):
    """A network that takes and gives plain tensors."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401  transformers has no types
        super().__init__()
        self._network = network

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        logits = self._network(input_ids=input_ids, attention_mask=attention_mask).logits
        embedding = embedding_of(logits)
        return (logits,) if embedding is None else (logits, embedding)
