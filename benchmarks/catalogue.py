"""The servers that are measured: how each is started, asked and read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import places

Body = Callable[[Sequence[str]], object]
Labels = Callable[[Any], list[str]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One setting of batch size, threads and instances; ``name`` says it in the report."""

    name: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A route: its path, the body for some texts, and the labels in its answer."""

    path: str
    body: Body
    labels: Labels


@dataclass(frozen=True, slots=True)
class Server:
    """A server: {port}, {model}, {onnx} and {BATCH} and the like are filled in at its start."""

    name: str
    title: str
    command: Sequence[str]
    ready: str
    single_call: Call
    batch_call: Call
    configurations: Sequence[Configuration]
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = "python3"
    folder: str = "{home}"

    def call(self, texts: int) -> Call:
        """Return the route that so many texts a request go to."""
        return self.single_call if texts == 1 else self.batch_call


def tuned(batch: int, threads: int, instances: int = 1, delay_ms: int = 0) -> Configuration:
    """Return a configuration; threads are those of one instance.

    ``delay_ms`` is how long a batch that is not full waits for more, where a peer has such a wait.
    """
    wait = f", waits {delay_ms} ms" if delay_ms else ""
    name = f"batch {batch}, {instances} x {threads} threads{wait}"
    values = {
        "BATCH": batch,
        "THREADS": threads,
        "INSTANCES": instances,
        "DELAY_MS": delay_ms,
    }
    env = {key: str(value) for key, value in values.items()}
    return Configuration(name, {**env, "OMP_NUM_THREADS": str(threads)})


def _latency(configuration: Configuration, latency_ms: int) -> Configuration:
    """Add the latency that BentoML's dispatcher aims to stay under."""
    env = {**configuration.env, "LATENCY_MS": str(latency_ms)}
    return Configuration(f"{configuration.name}, {latency_ms} ms", env)


def _texts(texts: Sequence[str]) -> object:
    return {"texts": list(texts)}


def _labels(answer: Any) -> list[str]:
    return list(answer["labels"])


def _server_command(name: str) -> list[str]:
    return ["{venv}/python", str(places.PEERS / name / "server.py")]


def _tensor(name: str) -> Body:
    """Return the body of the Open Inference Protocol, which Triton and MLServer speak."""

    def body(texts: Sequence[str]) -> object:
        column = {"shape": [len(texts), 1], "datatype": "BYTES", "data": list(texts)}
        return {"inputs": [{"name": name, **column}]}

    return body


def _tensor_labels(answer: Any) -> list[str]:
    return list(answer["outputs"][0]["data"])


def _mlserver_labels(answer: Any) -> list[str]:
    return [json.loads(row)["label"] for row in answer["outputs"][0]["data"]]


def _infinity(texts: Sequence[str]) -> object:
    return {"model": "classifier", "input": list(texts)}


def _infinity_labels(answer: Any) -> list[str]:
    return [max(row, key=lambda prediction: prediction["score"])["label"] for row in answer["data"]]


# What the peers' scripts read.
_PEER_ENV = {
    "MODEL": "{model}",
    "ONNX": "{onnx}",
    "PORT": "{port}",
    "PYTHONPATH": str(places.PEERS / "shared"),
    "HF_HUB_OFFLINE": "1",
}
_list_call = Call("/predict", _texts, _labels)
_triton = Call("/v2/models/classifier/infer", _tensor("text"), _tensor_labels)
# Its documented input, "args", fails where requests are batched; this one is read as a list.
_mlserver = Call("/v2/models/classifier/infer", _tensor("array_inputs"), _mlserver_labels)
_infinity_call = Call("/classify", _infinity, _infinity_labels)
_bentoml = Call("/classify", _texts, list)
PEERS = (
    Server(
        name="triton",
        title="Triton (PyTriton, ONNX Runtime)",
        command=_server_command("triton"),
        ready="/v2/models/classifier/ready",
        single_call=_triton,
        batch_call=_triton,
        # A batch under 32 refuses the shape of 32 texts a request, and may win at the others.
        configurations=(
            *(tuned(32, 2), tuned(32, 1, 2), tuned(8, 1, 2)),
            *(tuned(32, 2, delay_ms=1), tuned(8, 1, 2, delay_ms=1)),
        ),
        # Its Python backend is built for Debian's own Python.
        python="/usr/bin/python3",
        env=_PEER_ENV,
    ),
    Server(
        name="litserve",
        title="LitServe",
        command=_server_command("litserve"),
        ready="/health",
        single_call=_list_call,
        batch_call=_list_call,
        configurations=(
            # Without any wait its workers poll for requests, and never rest.
            *(tuned(32, 2), tuned(4, 1, 2), tuned(4, 1, 2, delay_ms=1)),
            *(tuned(32, 2, delay_ms=5), tuned(4, 1, 2, delay_ms=5)),
        ),
        env=_PEER_ENV,
    ),
    Server(
        name="infinity",
        title="infinity-emb (torch)",
        command=(
            *("{venv}/infinity_emb", "v2", "--model-id", "{model}", "--engine", "torch"),
            *("--served-model-name", "classifier", "--device", "cpu", "--dtype", "float32"),
            *("--batch-size", "{BATCH}", "--host", "127.0.0.1", "--port", "{port}"),
            "--no-bettertransformer",
        ),
        ready="/health",
        single_call=_infinity_call,
        batch_call=_infinity_call,
        configurations=(tuned(32, 2), tuned(8, 2), tuned(32, 1)),
        env=_PEER_ENV | {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
    ),
    Server(
        name="mlserver",
        title="MLServer",
        command=_server_command("mlserver"),
        ready="/v2/models/classifier/ready",
        single_call=_mlserver,
        batch_call=_mlserver,
        configurations=(tuned(8, 1, 2, delay_ms=5), tuned(8, 1, 2), tuned(0, 2)),
        env=_PEER_ENV,
    ),
    Server(
        name="rayserve",
        title="Ray Serve",
        command=_server_command("rayserve"),
        ready="/-/healthz",
        single_call=_list_call,
        batch_call=_list_call,
        configurations=(tuned(32, 2, delay_ms=5), tuned(8, 2, delay_ms=5), tuned(8, 2)),
        # It writes below its home, and reports usage unless disabled.
        env=_PEER_ENV | {"HOME": "{home}", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"},
    ),
    Server(
        name="bentoml",
        title="BentoML (batchable)",
        command=(
            *("{venv}/python", "-m", "bentoml", "serve", "server:Peer"),
            *("--working-dir", str(places.PEERS / "bentoml")),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        ready="/readyz",
        single_call=_bentoml,
        batch_call=_bentoml,
        # It may wait for as long as its latency allows, and refuses what it thinks will miss it.
        configurations=(
            *(_latency(tuned(batch, 2), 30_000) for batch in (32, 8)),
            _latency(tuned(8, 2), 1000),
            _latency(tuned(8, 2), 100),
        ),
        env=_PEER_ENV | {"BENTOML_HOME": "{home}", "BENTOML_DO_NOT_TRACK": "True"},
    ),
    Server(
        name="fastapi",
        title="FastAPI + pipeline",
        command=(
            *("{venv}/uvicorn", "server:app", "--app-dir", str(places.PEERS / "fastapi")),
            *("--host", "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
        ),
        ready="/health",
        single_call=_list_call,
        batch_call=_list_call,
        configurations=(Configuration("as it comes, batch 32", {"BATCH": "32"}), tuned(8, 1)),
        env=_PEER_ENV,
    ),
)


def kaiten(tag: str, workers: int = 1) -> Server:
    """Return Kaiten as it is shipped, serving the model of this tag."""
    single_call = Call(
        "/api/v1/predict", lambda texts: {"text": texts[0]}, lambda answer: [answer["label"]]
    )
    batch_call = Call("/api/v2/predict", lambda texts: {"inputs": list(texts)}, _kaiten_labels)
    env = {
        "BENTOML_CONFIG": str(places.ROOT / "configuration.yaml"),
        **places.KAITEN,
        "KAITEN_SERVING__MODELS": tag,
    }
    if workers > 1:
        env["BENTOML_CONFIG_OPTIONS"] = f"services.kaiten_service.workers={workers}"
    return Server(
        name="kaiten" if workers == 1 else f"kaiten-{workers}-workers",
        title="Kaiten" if workers == 1 else f"Kaiten, {workers} workers",
        command=(
            *(str(places.PYTHON), "-m", "bentoml", "serve", str(places.ROOT)),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        ready="/readyz",
        single_call=single_call,
        batch_call=batch_call,
        configurations=(Configuration("as shipped"),),
        env=env,
        folder=str(places.ROOT),
    )


def _kaiten_labels(answer: Any) -> list[str]:
    return [prediction["label"] for prediction in answer["predictions"]]
