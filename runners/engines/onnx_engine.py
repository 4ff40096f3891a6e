"""The ONNX Runtime engine: the network that registration exported, on the CPU."""

from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state

from kaiten.cpus import available_cores
from kaiten.settings.models import RunnerSettings
from runners.engines import MODEL_FILE
from runners.engines.base import Computed, TokenBatch


class OnnxEngine:
    """Computes a batch on one thread in each lane, or a single batch on all threads.

    Several runs of one thread are faster than one run of several: they need no worker threads,
    which would spin on the server's cores.
    """

    batch_tokens = 512
    batch_items = 64
    packed = False
    # The operating system shares the cores, and each lane is a little slower for milliseconds.
    express = True

    def __init__(self, folder: Path, settings: RunnerSettings) -> None:
        self.lanes = settings.threads or available_cores()
        self._narrow = self._wide = _session(folder / MODEL_FILE, 1)
        if self.lanes > 1:
            self._wide = _session(folder / MODEL_FILE, self.lanes)

    def reserve(self, tokens: int, items: int) -> None:
        """Reserve nothing: a CPU's memory is the machine's."""

    def compute(self, batch: TokenBatch, *, alone: bool = False) -> Computed:
        """Return the logits and embeddings of a batch; may be called from every lane.

        A version that an older Kaiten registered gives no embeddings.
        """
        session = self._wide if alone else self._narrow
        # In the order of the export: logits, and the embedding if there is one.
        return Computed(*session.run(None, batch.arrays()))


def newest_opset() -> int:
    """Return the newest version of ONNX's operators that the installed ONNX Runtime knows."""
    schemas = onnxruntime_pybind11_state.get_all_operator_schema()
    # The operators of ONNX itself have no domain.
    newest: int = max(schema.since_version for schema in schemas if not schema.domain)
    return newest


def _session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that keep spinning after a run take the core of the server's event loop.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
