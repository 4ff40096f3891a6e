import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, event, func, insert, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from structlog.testing import capture_logs

from kaiten.errors import DatabaseUnavailable, StateUnavailable
from kaiten.settings.models import StateSettings
from monitors.feedback import database as module
from monitors.feedback.database import (
    RETRY_S,
    Database,
    database_address,
    database_fault,
    database_url,
)
from monitors.feedback.tables import HEAD, METADATA, VERSION_TABLE, predictions
from tests.postgres_server import PostgresServer, postgres_server
from tests.servers import free_port
from tests.unit.monitors.feedback.house import row
from tests.unit.monitors.feedback.process import ROWS, TIMES, write

HERE = Path(module.__file__).parent


def rows_in(database: Database) -> int:
    with database.reading() as connection:
        return connection.scalar(select(func.count()).select_from(predictions)) or 0


def test_migrations_come_to_the_tables(database: Database) -> None:
    database.migrate()
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []


def test_head_is_that_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(HERE / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_processes_that_start_at_once_migrate_once_and_all_that_they_write_is_there(
    url: URL,
) -> None:
    address = url.render_as_string(hide_password=False)
    with ProcessPoolExecutor(3, get_context("spawn")) as pool:
        list(pool.map(write, [address] * 3))
    database = Database(url)
    assert rows_in(database) == 3 * TIMES * ROWS
    assert database_fault(url) is None
    database.close()


def test_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.writing() as connection:
            connection.execute(insert(predictions), [row()])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert rows_in(database) == 0


def test_commit_outlasts_a_power_loss(database: Database) -> None:
    if database._url.get_backend_name() != "sqlite":
        pytest.skip("PostgreSQL syncs by default")
    with database.writing() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2


def test_file_is_its_owners_alone_and_so_are_those_beside_it(tmp_path: Path) -> None:
    database = Database(database_url(StateSettings(), tmp_path / "new"))
    with database.writing() as connection:
        connection.execute(insert(predictions), [row()])
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "new").iterdir()}
    assert modes == dict.fromkeys(
        ("quality.sqlite", "quality.sqlite-wal", "quality.sqlite-shm"), 0o600
    )
    database.close()


def test_place_where_no_file_can_be_is_away(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = Database(database_url(StateSettings(), tmp_path / "file"))
    with pytest.raises(DatabaseUnavailable):
        database.migrate()
    database.close()


def set_revision(database: Database, revision_id: str) -> None:
    with database.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision_id}'"))


def test_tables_of_a_newer_kaiten_are_used_and_left_alone(database: Database, url: URL) -> None:
    set_revision(database, "9999")
    older = Database(url)
    with older.writing() as connection:
        connection.execute(insert(predictions), [row()])
        assert connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}")) == "9999"
    older.close()
    assert database_fault(url) is None


def test_revision_that_no_kaiten_has_is_reported(database: Database, url: URL) -> None:
    set_revision(database, "0000-of-another")
    other_database = Database(url)
    with pytest.raises(StateUnavailable, match=VERSION_TABLE):
        other_database.migrate()
    other_database.close()


def test_another_user_of_alembic_and_its_tables_are_left_alone(url: URL) -> None:
    engine = create_engine(url)
    statements = (
        "CREATE TABLE alembic_version (version_num VARCHAR(32))",
        "INSERT INTO alembic_version VALUES ('theirs')",
        "CREATE TABLE feedback (id INTEGER)",
    )
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    database = Database(url)
    with database.writing() as connection:
        connection.execute(insert(predictions), [row()])
    database.close()
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "theirs"
        assert connection.execute(text("SELECT * FROM feedback")).all() == []
    engine.dispose()


def test_tables_that_are_gone_are_made_again(url: URL) -> None:
    now = 100.0
    database = Database(url, lambda: now)
    assert rows_in(database) == 0
    engine = create_engine(url)
    with engine.begin() as connection:
        METADATA.drop_all(connection)
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    engine.dispose()
    with capture_logs() as logs, pytest.raises(DatabaseUnavailable):
        rows_in(database)
    assert [line["event"] for line in logs] == ["database_unavailable"]
    now += RETRY_S
    assert rows_in(database) == 0
    database.close()


@pytest.mark.parametrize("recreate", [False, True])
def test_file_that_is_gone_is_made_again(tmp_path: Path, *, recreate: bool) -> None:
    url = database_url(StateSettings(), tmp_path)
    database = Database(url)
    assert rows_in(database) == 0
    for path in tmp_path.iterdir():
        path.unlink()
    if recreate:
        other_database = Database(url)
        other_database.migrate()
        other_database.close()
    with database.writing() as connection:
        connection.execute(insert(predictions), [row()])
    database.close()
    reopened_database = Database(url)
    assert rows_in(reopened_database) == 1
    reopened_database.close()
    assert (tmp_path / "quality.sqlite").stat().st_mode & 0o777 == 0o600


RAISE = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize("code", ["25006", "25P03", "25P04", "53100"])
def test_server_that_can_not_now_is_away(postgres: PostgresServer, code: str) -> None:
    database = Database(make_url(postgres.url))
    with (
        capture_logs() as logs,
        pytest.raises(DatabaseUnavailable),
        database.reading() as connection,
    ):
        connection.execute(text(RAISE.format(code)))
    assert code in logs[-1]["fault"]
    with pytest.raises(DatabaseUnavailable):
        rows_in(database)
    database.close()


@pytest.mark.parametrize("code", ["57014", "40P01", "55P03"])
def test_try_that_failed_is_no_reason_to_wait(postgres: PostgresServer, code: str) -> None:
    database = Database(make_url(postgres.url))
    with (
        capture_logs() as logs,
        pytest.raises(DatabaseUnavailable),
        database.reading() as connection,
    ):
        connection.execute(text(RAISE.format(code)))
    assert "database_unavailable" not in str(logs)
    database.migrate()
    database.close()


def test_fault_of_our_own_is_raised_as_it_is(database: Database) -> None:
    with pytest.raises(DBAPIError), database.reading() as connection:
        connection.execute(text("SELECT nothing"))


def test_reading_sees_one_state(database: Database) -> None:
    count = select(func.count()).select_from(predictions)
    database.migrate()
    with database.reading() as connection:
        before = connection.scalar(count)
        with database.writing() as writer:
            writer.execute(insert(predictions), [row()])
        assert connection.scalar(count) == before
    assert rows_in(database) == 1


def test_those_who_wait_for_the_first_to_try_need_not_try() -> None:
    database = Database(make_url(f"postgresql+psycopg://x:x@127.0.0.1:{free_port()}/x"), lambda: 0)
    tries: list[str] = []

    def submit_writer(*_: object) -> None:
        # The next writer waits for the lock of this one.
        tries.append("tried")
        pool.submit(write_nothing)

    def write_nothing() -> None:
        with pytest.raises(DatabaseUnavailable), database.writing():
            pass

    event.listen(database._engine, "do_connect", submit_writer)
    with ThreadPoolExecutor(1) as pool:
        write_nothing()
    assert tries == ["tried"]
    database.close()


def test_default_is_a_file_at_home(tmp_path: Path) -> None:
    url = database_url(StateSettings(), tmp_path)
    assert database_address(url) == str(tmp_path / "quality.sqlite")
    assert database_fault(url) is None
    assert not (tmp_path / "quality.sqlite").exists()


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_address_of_a_postgresql_names_no_secret(scheme: str, tmp_path: Path) -> None:
    state = StateSettings.model_validate(
        {"database_url": f"{scheme}://me:canary@host:5433/quality"}
    )
    url = database_url(state, tmp_path)
    assert url.drivername == "postgresql+psycopg"
    assert database_address(url) == "host:5433/quality"


def test_database_that_is_away_is_asked_again_after_a_while() -> None:
    now = 100.0
    url = make_url(f"postgresql+psycopg://kaiten:canary@127.0.0.1:{free_port()}/postgres")
    database = Database(url, lambda: now)
    assert "OperationalError" in (database_fault(url) or "")
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable) as raised, database.writing():
                pass
    assert raised.value.retry_after_s == RETRY_S
    assert [line["event"] for line in logs] == ["database_unavailable"]
    assert "canary" not in str(logs)
    database.close()


def test_postgresql_that_restarts_is_found_again_and_has_what_was_written() -> None:
    now = 100.0
    with postgres_server() as server:
        database = Database(make_url(server.url), lambda: now)
        with database.writing() as connection:
            connection.execute(insert(predictions), [row()])
        server.stop()
        with pytest.raises(DatabaseUnavailable):
            rows_in(database)
        server.start()
        with pytest.raises(DatabaseUnavailable):
            rows_in(database)
        now += RETRY_S
        with capture_logs() as logs:
            assert rows_in(database) == 1
        assert [line["event"] for line in logs] == ["database_available"]
        database.close()


def test_wrong_password_is_told_without_it(postgres: PostgresServer) -> None:
    url = make_url(postgres.url).set(password="wrong-canary")
    database = Database(url)
    with capture_logs() as logs, pytest.raises(DatabaseUnavailable):
        database.migrate()
    assert "canary" not in str(logs)
    assert "canary" not in (database_fault(url) or "")
    database.close()


def test_writers_wait_for_each_other(database: Database) -> None:
    def write_row(_: int) -> None:
        with database.writing() as connection:
            connection.execute(insert(predictions), [row()])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_row, range(64)))
    assert rows_in(database) == 64


def test_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "quality.sqlite"
    file.write_bytes(b"nothing of the kind" * 1000)
    database = Database(URL.create("sqlite", database=str(file)))
    with pytest.raises(StateUnavailable, match="SQLITE_NOTADB"):
        database.migrate()
    database.close()


@contextmanager
def hold_lock(file: Path) -> Iterator[sqlite3.Connection]:
    """Hold the lock of an SQLite file, as a backup or an open shell does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        yield shell
        shell.rollback()


def test_locked_file_is_reported_and_writers_wait_for_it_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitors.feedback.database._LOCK_S", 0.05)
    now = 100.0
    database = Database(make_url(f"sqlite:///{tmp_path / 'quality.sqlite'}"), lambda: now)
    tries: list[str] = []
    database.migrate()
    event.listen(database._engine, "checkout", lambda *_: tries.append("tried"))
    with capture_logs() as logs, hold_lock(tmp_path / "quality.sqlite"):
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable) as raised:
                database.check_writable()
        # Readers are not held up.
        assert rows_in(database) == 0
        now += RETRY_S
        for _ in range(5):
            with pytest.raises(DatabaseUnavailable):
                database.check_writable()
    assert raised.value.retry_after_s == RETRY_S
    assert len(tries) == 3
    assert [line["event"] for line in logs] == ["database_locked"]
    now += RETRY_S
    with capture_logs() as logs:
        database.check_writable()
    assert [line["event"] for line in logs] == ["database_unlocked"]
    database.close()


def test_database_that_hangs_is_not_asked_again_for_a_while(database: Database) -> None:
    database.migrate()
    with capture_logs() as logs:
        database.mark_hung()
    assert logs[0]["event"] == "database_unavailable"
    with pytest.raises(DatabaseUnavailable):
        database.check_writable()


@pytest.mark.parametrize("spoilt", ["overwritten", "replaced"])
def test_file_that_is_spoilt_while_it_is_in_use_is_away(tmp_path: Path, spoilt: str) -> None:
    now = 100.0
    file = tmp_path / "quality.sqlite"
    database = Database(make_url(f"sqlite:///{file}"), lambda: now)
    with database.writing() as connection:
        connection.execute(insert(predictions), [row() for _ in range(1000)])
    if spoilt == "replaced":
        file.unlink()
    else:
        database.close()
    for name in ("", "-wal", "-shm"):
        Path(f"{file}{name}").unlink(missing_ok=True)
    file.write_bytes(b"nothing of the kind" * 1000)
    for _ in range(2):
        now += RETRY_S
        with pytest.raises(DatabaseUnavailable), database.writing() as connection:
            connection.execute(insert(predictions), [row()])
    file.unlink()
    now += RETRY_S
    with database.writing() as connection:
        connection.execute(insert(predictions), [row()])
    assert rows_in(database) == 1
    database.close()


def test_read_only_file_is_away(tmp_path: Path) -> None:
    database = Database(make_url(f"sqlite:///{tmp_path / 'quality.sqlite'}"))
    database.migrate()

    def write_read_only() -> None:
        with database.writing() as connection:
            connection.execute(text("PRAGMA query_only = 1"))
            connection.execute(insert(predictions), [row()])

    with capture_logs() as logs, pytest.raises(DatabaseUnavailable):
        write_read_only()
    assert "SQLITE_READONLY" in logs[0]["fault"]
    database.close()
