"""The database of predictions and labels: an SQLite file of the host, or a PostgreSQL of all."""

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
from kaiten.sections import State
from monitors.quality.faults import failed_once, fault, lacks_tables, means_away
from monitors.quality.tables import HEAD, VERSION_TABLE

logger = structlog.get_logger(__name__)
FILE = "quality.sqlite"
RETRY_S = 2
_DRIVER = "postgresql+psycopg"
_MIGRATIONS = Path(__file__).parent / "migrations"
# Seconds; libpq waits no less than two for a connection.
_CONNECT_S = 2
_STATEMENT_S = 5
_POOL = 6
# So that of those who start at once, one migrates: any number that nobody else takes.
_LOCK = 0x6B616974656E
_READING = "kaiten_reading"


class Database:
    """One process's connections, made as they are needed.

    Where it can not be reached, nobody waits for it in vain: for RETRY_S seconds after a failure it
    is not asked again, and DatabaseUnavailable is raised at once. Where its tables are gone, with
    the file or by a server that was restored, they are made again.
    """

    def __init__(self, url: URL, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._engine = _engine(url)
        self._migrating = threading.Lock()
        self._migrated = self._away = False
        self._file: int | None = None
        self._retry_at = clock()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a transaction, which is on the disk when this returns; DatabaseUnavailable.

        The tables are made, or brought up to date, by whoever comes first.
        """
        with self._told():
            self._migrate_once()
            with self._engine.begin() as connection:
                yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a transaction that sees one state, and waits for no writer; DatabaseUnavailable."""
        with self._told():
            self._migrate_once()
            with _looking(self._engine) as connection:
                yield connection

    def migrate(self) -> None:
        """Bring the tables up to date; DatabaseUnavailable, StateUnavailable where it can not."""
        with self._told():
            self._migrate_once()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        self._check()
        try:
            yield
        except (DBAPIError, NoConnection) as error:
            if means_away(error):
                self._lost(error)
            elif not failed_once(error):
                raise
            raise DatabaseUnavailable(RETRY_S) from None
        if self._away:
            self._away = False
            logger.info("database_back")

    def _check(self) -> None:
        if self._away and self._clock() < self._retry_at:
            raise DatabaseUnavailable(RETRY_S)

    def _lost(self, error: SQLAlchemyError) -> None:
        self._migrated = self._migrated and not lacks_tables(error)
        self._retry_at = self._clock() + RETRY_S
        if not self._away:
            self._away = True
            logger.warning("database_away", at=place_of(self._url), fault=fault(error))

    def _migrate_once(self) -> None:
        with self._migrating:
            if self._migrated and _file_of(self._url) != self._file:
                # Who has the old one open would write into what nobody finds.
                self._engine.dispose()
                self._migrated = False
            if not self._migrated:
                # Whoever waited for the first to try need not find out for itself.
                self._check()
                self._migrate()
                self._migrated = True

    def _migrate(self) -> None:
        try:
            migrate(self._engine)
        except DBAPIError as error:
            if means_away(error) or failed_once(error):
                raise
            raise StateUnavailable(place_of(self._url), fault(error)) from None
        self._file = _file_of(self._url)


def database_url(state: State, home: Path) -> URL:
    """Return where predictions and labels are kept; InvalidSettings where its driver is missing."""
    if state.database_url is None:
        return URL.create("sqlite", database=str(home.resolve() / FILE))
    url = make_url(state.database_url.get_secret_value()).set(drivername=_DRIVER)
    if find_spec("psycopg") is None:
        reason = "names a PostgreSQL, whose driver is missing; pip install 'kaiten[postgres]'"
        raise InvalidSettings([Detail("state.database_url", reason)], "environment")
    return url


def place_of(url: URL) -> str:
    """Return where it is, without the user and the password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.host}:{url.port or 5432}/{url.database}"


def fault_of(url: URL) -> str | None:
    """Return why it can not be used, None where it can; nothing is made."""
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return None
    engine = _engine(url)
    try:
        with _looking(engine) as connection:
            _revision(connection)
    except SQLAlchemyError as error:
        return fault(error)
    finally:
        engine.dispose()
    return None


def migrate(engine: Engine) -> None:
    """Bring the tables up to date, once over all who try: the others find them so."""
    place = place_of(engine.url)
    if engine.dialect.name == "sqlite":
        _make(Path(str(engine.url.database)))
    with _looking(engine) as connection:
        if _is_up_to_date(connection):
            return
    with engine.begin() as connection:
        # SQLite's transaction has the only lock there is.
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            # What it changes may be large.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        if not _is_up_to_date(connection):
            _upgrade(connection, place)
            logger.info("database_migrated", at=place, revision=HEAD)


@contextmanager
def _looking(engine: Engine) -> Iterator[Connection]:
    """Give a transaction that only reads one state, and so takes no lock."""
    options: dict[str, Any] = {_READING: True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    with engine.connect() as connection:
        yield connection.execution_options(**options)


def _is_up_to_date(connection: Connection) -> bool:
    """Tell whether nothing is to be done: a newer revision only adds to what this one uses."""
    return (_revision(connection) or "") >= HEAD


def _revision(connection: Connection) -> str | None:
    """Return the revision of its tables, None where it has none."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
    return found


def _file_of(url: URL) -> int | None:
    """Return what tells an SQLite file from one that takes its name later."""
    if url.get_backend_name() != "sqlite":
        return None
    try:
        return Path(str(url.database)).stat().st_ino
    except OSError:
        return None


def _make(file: Path) -> None:
    """Make an empty database that its owner alone may read; SQLite's other files are like it."""
    # Where there is no place for it, connecting says so.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)


def _upgrade(connection: Connection, place: str) -> None:
    # Only whoever migrates loads it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415
    from alembic.util import CommandError  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        reason = f"{VERSION_TABLE} names a revision that no Kaiten has; see who else uses it"
        raise StateUnavailable(place, reason) from None


def _engine(url: URL) -> Engine:
    sqlite = url.get_backend_name() == "sqlite"
    engine = create_engine(
        url,
        # A connection that the server has ended meanwhile is replaced, at a round trip each time.
        pool_pre_ping=not sqlite,
        pool_size=_POOL,
        max_overflow=0,
        pool_timeout=_CONNECT_S,
        # Values are not told in errors.
        hide_parameters=True,
        connect_args={"timeout": _STATEMENT_S} if sqlite else _POSTGRES,
    )
    if sqlite:
        event.listen(engine, "connect", _set_up)
        event.listen(engine, "begin", _begin)
    return engine


_POSTGRES: dict[str, Any] = {
    "connect_timeout": _CONNECT_S,
    "application_name": "kaiten",
    # Ends a statement there; a server that is gone without a word is noticed by the other two.
    "options": f"-c statement_timeout={_STATEMENT_S}s -c lock_timeout={_STATEMENT_S}s",
    "tcp_user_timeout": _STATEMENT_S * 1000,
    "keepalives_idle": _STATEMENT_S,
}


def _set_up(connection: sqlite3.Connection, _record: object) -> None:
    """Make a commit last through a power loss: WAL, and synced each time.

    Under synchronous=NORMAL the last commits could be lost, and accepted labels with them.
    """
    # Its own way would begin a transaction late, where it may find that another has written.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
