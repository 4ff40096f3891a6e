from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url

from monitors.feedback.database import Database
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """Return the address of an empty database, of either kind."""
    if request.param == "sqlite":
        return URL.create("sqlite", database=str(tmp_path / "quality.sqlite"))
    server: PostgresServer = request.getfixturevalue("postgres")
    server_url = make_url(server.url)
    empty = Database(server_url)
    with empty._engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    empty.close()
    return server_url


@pytest.fixture
def database(url: URL) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()
