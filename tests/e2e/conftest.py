"""The real quickstart model, made once for each version of its sources, and one shared server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.bentos import Bento, build
from tests.servers import (
    Server,
    environment,
    quickstart_store,
    quickstart_texts,
    serving,
    until_all_ready,
)


@pytest.fixture(scope="session")
def bentoml_home() -> Path:
    return quickstart_store()


@pytest.fixture(scope="session")
def server(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as `make serve` starts it, with two workers."""
    home = tmp_path_factory.mktemp("home")
    env = environment(
        bentoml_home,
        home,
        BENTOML_CONFIG_OPTIONS="services.kaiten_service.workers=2",
        # A test looks for the line of its own request, whatever the others send meanwhile.
        KAITEN_LOGGING__MAX_REQUEST_LINES_PER_S="1000000",
    )
    with serving(env) as server:
        until_all_ready(server.url)
        yield server


@pytest.fixture(scope="session")
def token(server: Server) -> str:
    return server.token()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return quickstart_texts()


@pytest.fixture(scope="session")
def bento(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Bento:
    """Return a bento of the quickstart model."""
    return build(bentoml_home, tmp_path_factory.mktemp("built"))
