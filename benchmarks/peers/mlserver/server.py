"""MLServer with its Hugging Face runtime and its adaptive batching."""

import json
import os
import socket
import sys
import tempfile
from pathlib import Path


def free_port() -> int:
    """Return a port that nothing has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Write the two settings files and become MLServer."""
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))
    settings = {
        "host": "127.0.0.1",
        "http_port": int(os.environ["PORT"]),
        "grpc_port": free_port(),
        "metrics_port": free_port(),
        "parallel_workers": int(os.environ["INSTANCES"]),
    }
    extra = {
        "task": "text-classification",
        "pretrained_model": os.environ["MODEL"],
        "optimum_model": False,
    }
    model = {
        "name": "classifier",
        "implementation": "mlserver_huggingface.HuggingFaceRuntime",
        "max_batch_size": int(os.environ["BATCH"]),
        "max_batch_time": int(os.environ["DELAY_MS"]) / 1000,
        "parameters": {"extra": extra},
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    program = str(Path(sys.executable).parent / "mlserver")
    os.execv(program, [program, "start", str(folder)])


if __name__ == "__main__":
    main()
