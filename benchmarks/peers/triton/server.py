"""Triton by PyTriton: it batches; the infer function tokenises and runs ONNX Runtime."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from tokenizers import Tokenizer

MODEL = Path(os.environ["MODEL"])
MAX_LENGTH = 512
LABELS = json.loads((MODEL / "config.json").read_text())["id2label"]


def instance() -> Callable[..., dict[str, np.ndarray]]:
    """Return an infer function with a session of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["THREADS"])
    session = onnxruntime.InferenceSession(
        os.environ["ONNX"], options, providers=["CPUExecutionProvider"]
    )
    input_names = {model_input.name for model_input in session.get_inputs()}
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.enable_padding()

    @batch
    def classify(text: np.ndarray) -> dict[str, np.ndarray]:
        encoded = tokenizer.encode_batch([row[0].decode() for row in text])
        tensors = {
            "input_ids": np.array([row.ids for row in encoded], dtype=np.int64),
            "attention_mask": np.array([row.attention_mask for row in encoded], dtype=np.int64),
            "token_type_ids": np.array([row.type_ids for row in encoded], dtype=np.int64),
        }
        (logits,) = session.run(["logits"], {k: v for k, v in tensors.items() if k in input_names})
        labels = [[LABELS[str(index)].encode()] for index in logits.argmax(axis=1)]
        return {"label": np.array(labels, dtype=object)}

    return classify


def free_port() -> int:
    """Return a port that nothing has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Serve until a signal."""
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(os.environ["PORT"]),
        grpc_address="127.0.0.1",
        grpc_port=free_port(),
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classifier",
            infer_func=[instance() for _ in range(int(os.environ["INSTANCES"]))],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="label", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=int(os.environ["BATCH"]),
                batcher=DynamicBatcher(
                    max_queue_delay_microseconds=1000 * int(os.environ["DELAY_MS"])
                ),
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main()
