"""Plain BentoML with its adaptive batching."""

import os

import bentoml
from torch_classifier import Classifier


@bentoml.service(workers=int(os.environ["INSTANCES"]), traffic={"timeout": 60})
class Peer:
    """One batchable endpoint; BentoML joins the lists of several requests."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @bentoml.api(
        batchable=True,
        max_batch_size=int(os.environ["BATCH"]),
        max_latency_ms=int(os.environ["LATENCY_MS"]),
    )
    def classify(self, texts: list[str]) -> list[str]:
        return self.classifier(texts)
