"""A worker without models: its parts start, answer through its middleware, and stop."""

import gc
import threading
from collections.abc import Iterator

import httpx
import pytest
from starlette.responses import PlainTextResponse

from gateway.auth.signing_secret import SigningSecret, find_pseudonyms
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.models import ServingSettings
from kaiten.settings.secrets import DatedSecret
from server.worker import Worker, WorkerProcess

SECRET = SigningSecret("a-secret-of-the-test-that-is-long-enough", development=True)


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    """Restore the garbage collector, which a worker tunes."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.fixture
def settings() -> Settings:
    serving = ServingSettings.model_construct(models=())
    return load_settings().model_copy(update={"serving": serving})


@pytest.fixture
def worker(settings: Settings) -> Worker:
    process = WorkerProcess(0, "not available", lambda: None)
    return Worker(settings, process, SECRET, find_pseudonyms(settings, SECRET), [])


async def statuses(worker: Worker, *paths: str) -> list[int]:
    transport = httpx.ASGITransport(worker.wrap(PlainTextResponse("bentoml")))
    async with httpx.AsyncClient(transport=transport, base_url="http://kaiten") as client:
        return [(await client.get(path)).status_code for path in paths]


async def test_nothing_runs_before_the_start_nor_after_the_end(worker: Worker) -> None:
    before = {thread.name for thread in threading.enumerate()}
    await worker.start()
    running = {thread.name for thread in threading.enumerate()} - before
    assert {"profiler", "file-watch"} <= running
    assert worker.ready
    await worker.stop()
    assert "profiler" not in {thread.name for thread in threading.enumerate()}


async def test_requests_pass_the_gateway(worker: Worker) -> None:
    # Before the start it has no revocation list, and is not healthy.
    paths = "/health", "/schema.json", "/elsewhere", "/ops/stats"
    assert await statuses(worker, *paths) == [503, 200, 404, 401]


async def test_pseudonyms_need_a_key(settings: Settings) -> None:
    pseudonyms = find_pseudonyms(settings, SECRET)
    assert pseudonyms is not None
    assert find_pseudonyms(settings, None) is None


async def test_rotation_leaves_the_pseudonyms_as_they_are(settings: Settings) -> None:
    rotated = SigningSecret("a-newer-one", development=True, older=(DatedSecret(SECRET.value, 0),))
    before, after = find_pseudonyms(settings, SECRET), find_pseudonyms(settings, rotated)
    assert before is not None
    assert after is not None
    assert before.of("kaiten|alice") == after.of("kaiten|alice")
