"""Ray Serve with @serve.batch."""

import os
import signal

import ray
from ray import serve
from starlette.requests import Request
from torch_classifier import Classifier


@serve.deployment(num_replicas=1, max_ongoing_requests=256, ray_actor_options={"num_cpus": 1})
class Api:
    """A request is a list of texts; requests that came together share a batch."""

    def __init__(self) -> None:
        self.classifier = Classifier()

    @serve.batch(
        max_batch_size=int(os.environ["BATCH"]),
        batch_wait_timeout_s=int(os.environ["DELAY_MS"]) / 1000,
    )
    async def classify(self, requests: list[list[str]]) -> list[list[str]]:
        labels = iter(self.classifier([text for texts in requests for text in texts]))
        return [[next(labels) for _ in texts] for texts in requests]

    async def __call__(self, request: Request) -> dict[str, list[str]]:
        return {"labels": await self.classify((await request.json())["texts"])}


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Api.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
