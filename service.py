"""The BentoML service: an adapter. The worker behind it is built in server/worker.py."""

import bentoml

from gateway.protocols.kaiten_v2 import PredictV2Response
from kaiten.settings.environment import settings_file
from server import bentoml_config, bentoml_patches, preflight
from server.asgi import WorkerApp
from server.worker import WorkerProcess, build_worker

app = WorkerApp()
settings = bentoml_patches.apply(lambda: app.worker)
# The one that was read: BentoML starts the service in another working directory.
file = settings_file()


@bentoml.service(**bentoml_config.service_options(settings))
class Kaiten:
    """Predictions by fine-tuned models: batched, authenticated, measured and profiled."""

    def __init__(self) -> None:
        app.attach(build_worker(settings, WorkerProcess.current(settings)))

    @bentoml.on_deployment
    @staticmethod
    def check_once() -> None:
        """Stop before any worker starts if a model, its engine or the secret is missing."""
        with bentoml_patches.setup_errors_for_bentoml():
            preflight.prepare(settings, file)

    @bentoml.on_startup
    async def start(self) -> None:
        """Warm up the models while probes are answered; readiness shows when they are warm."""
        await app.worker.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Reject waiting requests, and write pending events, labels and logs."""
        await app.worker.stop()

    async def __is_ready__(self) -> bool:
        return app.worker.ready

    @bentoml.api(route="/predict")
    async def predict(
        self, inputs: list[str], top_k: int = 1, model: str | None = None
    ) -> PredictV2Response:
        """Classify several texts: POST /api/v2/predict for BentoML's own clients.

        They learn the route from this declaration; the gateway answers it before BentoML's app.
        """
        raise NotImplementedError


# mypy passes over what a decorator makes of a class.
Kaiten.add_asgi_middleware(app.middleware)  # type: ignore[attr-defined]
