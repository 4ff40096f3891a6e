"""The database of predictions and labels: an SQLite file of one host, or a shared PostgreSQL."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

from kaiten.errors import DatabaseUnavailable, Detail, InvalidSettings, StateUnavailable
from kaiten.installation import extra_remedy
from kaiten.settings.models import StateSettings
from monitors.feedback.database_errors import (
    describe_fault,
    is_corrupt,
    is_locked,
    is_retryable,
    is_unavailable,
    lacks_tables,
)
from monitors.feedback.tables import HEAD, VERSION_TABLE

logger = structlog.get_logger(__name__)
FILE = "quality.sqlite"
RETRY_S = 2
_DRIVER = "postgresql+psycopg"
_MIGRATIONS = Path(__file__).parent / "migrations"
# In seconds; the least that libpq accepts for connecting is 2.
_CONNECT_S = 2
_STATEMENT_S = 5
# The timeout of SQLite's lock, which writers hold for milliseconds.
_LOCK_S = 2
_WAL_LIMIT_BYTES = 16 << 20
_POOL = 6
# The advisory lock of migrations, so that one of several starting processes migrates: "kaiten".
_LOCK = 0x6B616974656E
_READING = "kaiten_reading"
_MIGRATING = "kaiten_migrating"


class Database:
    """The connection pool of one process, with a circuit breaker and migrations.

    After a failure, DatabaseUnavailable is raised at once for RETRY_S seconds; then one caller
    tries again. The same holds for writers while another process keeps an SQLite file locked. If
    the tables are missing, because the file was deleted or a server restored, they are created
    again.
    """

    def __init__(self, url: URL, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._engine = _create_engine(url)
        self._migrating = threading.Lock()
        self._trying = threading.Lock()
        self._migrated = self._unavailable = self._locked = False
        self._failed_tries = 0
        self._file: int | None = None
        self._retry_at = clock()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Open a transaction, which is durable when the block ends.

        The first transaction creates or migrates the tables.

        Raises:
            DatabaseUnavailable: The database cannot be reached, or is locked.

        """
        with self._reporting_faults(writes=True):
            self._migrate_once()
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a read transaction, which sees a snapshot and waits for no writer.

        Raises:
            DatabaseUnavailable: The database cannot be reached.

        """
        with self._reporting_faults():
            self._migrate_once()
            with _reading_transaction(self._engine) as connection:
                yield connection

    def migrate(self) -> None:
        """Migrate the tables.

        Raises:
            DatabaseUnavailable: The database cannot be reached; trying again may help.
            StateUnavailable: The migration fails.

        """
        with self._reporting_faults(starts=True):
            self._migrate_once()

    def check_writable(self) -> None:
        """Check that a write transaction can be opened, without writing.

        Raises:
            DatabaseUnavailable: It cannot.

        """
        with self.writing():
            pass

    def mark_hung(self) -> None:
        """Treat the database as unavailable, because it has not answered for too long."""
        self._mark_unavailable("no answer")

    @property
    def wal_bytes(self) -> int:
        """The size of SQLite's write-ahead log, which grows while a reader stays open; else 0."""
        if self._url.get_backend_name() != "sqlite":
            return 0
        try:
            return Path(f"{self._url.database}-wal").stat().st_size
        except OSError:
            return 0

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _reporting_faults(self, *, writes: bool = False, starts: bool = False) -> Iterator[None]:
        self._check_circuit(writes=writes)
        try:
            yield
        except (DBAPIError, NoConnection) as error:
            if not self._is_temporary(error):
                raise
            raise DatabaseUnavailable(RETRY_S) from None
        except StateUnavailable as error:
            if starts:
                raise
            self._mark_unavailable(error.message)
            raise DatabaseUnavailable(RETRY_S) from None
        self._mark_available(writes=writes)

    def _is_temporary(self, error: SQLAlchemyError) -> bool:
        """Record what an error means; return whether waiting or another attempt may help."""
        if is_unavailable(error) or is_corrupt(error):
            self._migrated = self._migrated and not lacks_tables(error)
            self._mark_unavailable(describe_fault(error))
            return True
        if is_locked(error):
            self._mark_locked()
        return is_retryable(error)

    def _mark_available(self, *, writes: bool) -> None:
        if self._unavailable:
            self._unavailable = False
            logger.info("database_available")
        if self._locked and writes:
            self._locked = False
            logger.info("database_unlocked")

    def _check_circuit(self, *, writes: bool) -> None:
        if not (self._unavailable or (self._locked and writes)):
            return
        with self._trying:
            if self._clock() < self._retry_at:
                raise DatabaseUnavailable(RETRY_S)
            # This caller tries; the others fail at once until the next pause ends.
            self._retry_at = self._clock() + RETRY_S

    def _mark_unavailable(self, reason: str) -> None:
        self._retry_at = self._clock() + RETRY_S
        if not self._unavailable:
            self._unavailable = True
            logger.warning("database_unavailable", at=database_address(self._url), fault=reason)

    def _mark_locked(self) -> None:
        self._retry_at = self._clock() + RETRY_S
        if not self._locked:
            self._locked = True
            logger.warning("database_locked", at=database_address(self._url))

    def _migrate_once(self) -> None:
        tries = self._failed_tries
        with self._migrating:
            if self._migrated and _file_of(self._url) != self._file:
                # Open connections would write to the deleted file.
                self._engine.dispose()
                self._migrated = False
            if not self._migrated:
                # Another thread tried and failed while this one waited for the lock.
                if self._failed_tries != tries:
                    raise DatabaseUnavailable(RETRY_S)
                self._migrate()
                self._migrated = True

    def _migrate(self) -> None:
        try:
            migrate(self._engine)
        except DBAPIError as error:
            self._failed_tries += 1
            if is_unavailable(error) or is_retryable(error):
                raise
            raise StateUnavailable(database_address(self._url), describe_fault(error)) from None
        self._file = _file_of(self._url)


def database_url(state: StateSettings, home: Path) -> URL:
    """Return the URL of the database of the settings.

    Raises:
        InvalidSettings: The driver of PostgreSQL is not installed.

    """
    if state.database_url is None:
        return URL.create("sqlite", database=str(home.resolve() / FILE))
    url = make_url(state.database_url.get_secret_value()).set(drivername=_DRIVER)
    if find_spec("psycopg") is None:
        missing = "needs psycopg, the driver of PostgreSQL, which is not installed"
        reason = f"{missing}. {extra_remedy('postgres')}"
        raise InvalidSettings([Detail("state.database_url", reason)], "environment")
    return url


def database_address(url: URL) -> str:
    """Return the file, or the host, port and database, without user and password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.host}:{url.port or 5432}/{url.database}"


def database_fault(url: URL) -> str | None:
    """Return why the database cannot be used, None if it can; creates nothing."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return None
    engine = _create_engine(url)
    try:
        with _reading_transaction(engine) as connection:
            _revision(connection)
    except SQLAlchemyError as error:
        return describe_fault(error)
    finally:
        engine.dispose()
    return None


def migrate(engine: Engine) -> None:
    """Migrate the tables; of several processes, one migrates and the others wait."""
    place = database_address(engine.url)
    if engine.dialect.name == "sqlite":
        _create_file(Path(str(engine.url.database)))
    with _reading_transaction(engine) as connection:
        if _is_up_to_date(connection):
            return
    with engine.connect().execution_options(**{_MIGRATING: True}) as connection, connection.begin():
        # In SQLite, BEGIN IMMEDIATE has already locked out other writers.
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            # Migrating a large table takes long.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        if not _is_up_to_date(connection):
            _upgrade(connection, place)
            logger.info("database_migrated", at=place, revision=HEAD)


@contextmanager
def _reading_transaction(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that reads a snapshot and takes no lock."""
    options: dict[str, Any] = {_READING: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    with engine.connect() as connection:
        yield connection.execution_options(**options)


def _is_up_to_date(connection: Connection) -> bool:
    """Return whether the revision is current or newer: newer ones only add columns and tables."""
    return (_revision(connection) or "") >= HEAD


def _revision(connection: Connection) -> str | None:
    """Return the revision of the tables, None without tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    revision: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    return revision


def _file_of(url: URL) -> int | None:
    """Return the inode of an SQLite file, which tells it from a replacement; None without one."""
    if url.get_backend_name() != "sqlite":
        return None
    try:
        return Path(str(url.database)).stat().st_ino
    except OSError:
        return None


def _create_file(file: Path) -> None:
    """Create an empty database with mode 0600, which SQLite applies to its other files too."""
    # If this fails, connecting reports why.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)


def _upgrade(connection: Connection, place: str) -> None:
    # Loaded only to migrate.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        reason = (
            f"its table {VERSION_TABLE} names a revision that this Kaiten lacks; check whether "
            "another application uses the table"
        )
        raise StateUnavailable(place, reason) from None


def _create_engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        # Replaces connections that the server has closed, at the cost of one round trip each time.
        pool_pre_ping=not sqlite,
        pool_size=_POOL,
        max_overflow=0,
        pool_timeout=_CONNECT_S,
        # Errors must not quote values.
        hide_parameters=True,
        connect_args={"timeout": _STATEMENT_S} if sqlite else _POSTGRES,
    )
    if sqlite:
        event.listen(engine, "connect", _configure_connection)
        event.listen(engine, "begin", _begin_transaction)
    return engine


_POSTGRES: dict[str, Any] = {
    "connect_timeout": _CONNECT_S,
    "application_name": "kaiten",
    # The server enforces these; the other two detect a server that vanished silently.
    "options": f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_STATEMENT_S}s",
    "tcp_user_timeout": _STATEMENT_S * 1000,
    "keepalives_idle": _STATEMENT_S,
}


def _configure_connection(connection: sqlite3.Connection, _record: object) -> None:
    """Make commits survive a power loss: WAL, synced at each commit.

    With synchronous=NORMAL the last commits could be lost, and accepted labels with them.
    """
    # Autocommit: sqlite3 would begin a transaction late, when another may have written.
    connection.isolation_level = None
    # auto_vacuum takes effect only if it is set before the first table.
    for pragma in (
        "auto_vacuum=INCREMENTAL",
        "journal_mode=WAL",
        "synchronous=FULL",
        f"journal_size_limit={_WAL_LIMIT_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_transaction(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_READING, False):
        connection.exec_driver_sql("BEGIN")
        return
    # A migration of another process takes longer than any write.
    timeout_s = _STATEMENT_S if options.get(_MIGRATING, False) else _LOCK_S
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {timeout_s * 1000}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
