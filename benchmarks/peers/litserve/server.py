"""LitServe with its dynamic batching."""

import os

import litserve
from torch_classifier import Classifier


class Api(litserve.LitAPI):
    """A request is a list of texts; requests that came together share a batch."""

    def setup(self, device: str) -> None:
        self.classifier = Classifier()

    def decode_request(self, request: dict[str, list[str]]) -> list[str]:
        return request["texts"]

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        return inputs

    def predict(self, requests: list[list[str]]) -> list[list[str]]:
        labels = iter(self.classifier([text for texts in requests for text in texts]))
        return [[next(labels) for _ in texts] for texts in requests]

    def unbatch(self, output: list[list[str]]) -> list[list[str]]:
        return output

    def encode_response(self, output: list[str]) -> dict[str, list[str]]:
        return {"labels": output}


if __name__ == "__main__":
    api = Api(
        max_batch_size=int(os.environ["BATCH"]),
        batch_timeout=int(os.environ["DELAY_MS"]) / 1000,
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ["INSTANCES"])
    )
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False)
