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
from monitors.quality.tables import HEAD

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
    is not asked again, and DatabaseUnavailable is raised at once.
    """

    def __init__(self, url: URL, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._engine = _engine(url)
        self._migrating = threading.Lock()
        self._migrated = self._away = False
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
        if self._away and self._clock() < self._retry_at:
            raise DatabaseUnavailable(RETRY_S)
        try:
            yield
        except (DBAPIError, NoConnection) as error:
            if not means_away(error):
                raise
            self._lost(error)
            raise DatabaseUnavailable(RETRY_S) from None
        if self._away:
            self._away = False
            logger.info("database_back")

    def _lost(self, error: SQLAlchemyError) -> None:
        self._retry_at = self._clock() + RETRY_S
        if not self._away:
            self._away = True
            logger.warning("database_away", at=place_of(self._url), fault=fault(error))

    def _migrate_once(self) -> None:
        with self._migrating:
            if not self._migrated:
                try:
                    migrate(self._engine)
                except DBAPIError as error:
                    if means_away(error):
                        raise
                    raise StateUnavailable(place_of(self._url), fault(error)) from None
                self._migrated = True


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
            _revision(connection, place_of(url))
    except SQLAlchemyError as error:
        return fault(error)
    except StateUnavailable as error:
        return error.message
    finally:
        engine.dispose()
    return None


def fault(error: SQLAlchemyError) -> str:
    """Return what went wrong, in words that hold no value, and no password."""
    cause = getattr(error, "orig", None) or error
    code = getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)
    return f"{type(cause).__name__} ({code})" if code else type(cause).__name__


def means_away(error: SQLAlchemyError) -> bool:
    """Tell whether waiting may mend it: no connection, or one that was lost, locked or full."""
    if isinstance(error, DBAPIError):
        kind = type(error.orig).__mro__
        return error.connection_invalidated or any(
            each.__name__ == "OperationalError" for each in kind
        )
    return isinstance(error, NoConnection)


def migrate(engine: Engine) -> None:
    """Bring the tables up to date, once over all who try: the others find them so."""
    place = place_of(engine.url)
    if engine.dialect.name == "sqlite":
        _make(Path(str(engine.url.database)))
    with _looking(engine) as connection:
        if _revision(connection, place) == HEAD:
            return
    with engine.begin() as connection:
        # SQLite's transaction has the only lock there is.
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _revision(connection, place) != HEAD:
            _upgrade(connection)
            logger.info("database_migrated", at=place, revision=HEAD)


@contextmanager
def _looking(engine: Engine) -> Iterator[Connection]:
    """Give a transaction that only reads, and so takes no lock."""
    with engine.connect() as connection:
        yield connection.execution_options(**{_READING: True})


def _revision(connection: Connection, place: str) -> str | None:
    """Return the revision of its tables, None where it has none; StateUnavailable for a newer."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    if found is not None and found > HEAD:
        reason = f"its tables are of revision {found}, and this Kaiten knows {HEAD}; take the newer"
        raise StateUnavailable(place, reason)
    return found


def _make(file: Path) -> None:
    """Make an empty database that its owner alone may read; SQLite's other files are like it."""
    # Where there is no place for it, connecting says so.
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)


def _upgrade(connection: Connection) -> None:
    # Only whoever migrates loads it.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


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
