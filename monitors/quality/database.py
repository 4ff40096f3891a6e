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
from monitors.quality.faults import (
    failed_once,
    fault,
    lacks_tables,
    means_away,
    means_locked,
    means_spoilt,
)
from monitors.quality.tables import HEAD, VERSION_TABLE

logger = structlog.get_logger(__name__)
FILE = "quality.sqlite"
RETRY_S = 2
_DRIVER = "postgresql+psycopg"
_MIGRATIONS = Path(__file__).parent / "migrations"
# Seconds; libpq waits no less than two for a connection.
_CONNECT_S = 2
_STATEMENT_S = 5
# For SQLite's lock, which writers hold for milliseconds.
_LOCK_S = 2
_WAL_LIMIT_BYTES = 16 << 20
_POOL = 6
# So that of those who start at once, one migrates: any number that nobody else takes.
_LOCK = 0x6B616974656E
_READING = "kaiten_reading"
_MIGRATING = "kaiten_migrating"


class Database:
    """One process's connections, made as they are needed.

    If it cannot be reached, callers do not wait for it in vain: for RETRY_S seconds after a failure
    it is not asked again, and DatabaseUnavailable is raised at once; then one of them tries. The
    same holds for writers while another process keeps an SQLite file locked. If its tables are
    gone, with the file or by a server that was restored, they are made again.
    """

    def __init__(self, url: URL, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._engine = _engine(url)
        self._migrating = threading.Lock()
        self._trying = threading.Lock()
        self._migrated = self._away = self._locked = False
        self._failed_tries = 0
        self._file: int | None = None
        self._retry_at = clock()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Give a transaction, which is on the disk when this returns; DatabaseUnavailable.

        The tables are made, or brought up to date, by whoever comes first.
        """
        with self._told(writes=True):
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
        with self._told(starts=True):
            self._migrate_once()

    def check_writable(self) -> None:
        """Raise DatabaseUnavailable if nothing can be written now; it writes nothing."""
        with self.writing():
            pass

    def hangs(self) -> None:
        """Note that it has not answered for longer than any that can be reached."""
        self._mark_away("no answer")

    @property
    def wal_bytes(self) -> int:
        """The size of SQLite's write-ahead log, which grows while a reader stays; 0 without one."""
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
    def _told(self, *, writes: bool = False, starts: bool = False) -> Iterator[None]:
        self._check(writes=writes)
        try:
            yield
        except (DBAPIError, NoConnection) as error:
            if not self._may_be_mended(error):
                raise
            raise DatabaseUnavailable(RETRY_S) from None
        except StateUnavailable as error:
            if starts:
                raise
            self._mark_away(error.message)
            raise DatabaseUnavailable(RETRY_S) from None
        self._worked(writes=writes)

    def _may_be_mended(self, error: SQLAlchemyError) -> bool:
        """Note what an error means, and tell whether waiting or another try may mend it."""
        if means_away(error) or means_spoilt(error):
            self._migrated = self._migrated and not lacks_tables(error)
            self._mark_away(fault(error))
            return True
        if means_locked(error):
            self._mark_locked()
        return failed_once(error)

    def _worked(self, *, writes: bool) -> None:
        if self._away:
            self._away = False
            logger.info("database_back")
        if self._locked and writes:
            self._locked = False
            logger.info("database_unlocked")

    def _check(self, *, writes: bool) -> None:
        if not (self._away or (self._locked and writes)):
            return
        with self._trying:
            if self._clock() < self._retry_at:
                raise DatabaseUnavailable(RETRY_S)
            # One tries; the others need not wait with it.
            self._retry_at = self._clock() + RETRY_S

    def _mark_away(self, reason: str) -> None:
        self._retry_at = self._clock() + RETRY_S
        if not self._away:
            self._away = True
            logger.warning("database_away", at=database_address(self._url), fault=reason)

    def _mark_locked(self) -> None:
        self._retry_at = self._clock() + RETRY_S
        if not self._locked:
            self._locked = True
            logger.warning("database_locked", at=database_address(self._url))

    def _migrate_once(self) -> None:
        tries = self._failed_tries
        with self._migrating:
            if self._migrated and _file_of(self._url) != self._file:
                # Who has the old one open would write into what nobody finds.
                self._engine.dispose()
                self._migrated = False
            if not self._migrated:
                # Whoever waited for the first to try need not find out for itself.
                if self._failed_tries != tries:
                    raise DatabaseUnavailable(RETRY_S)
                self._migrate()
                self._migrated = True

    def _migrate(self) -> None:
        try:
            migrate(self._engine)
        except DBAPIError as error:
            self._failed_tries += 1
            if means_away(error) or failed_once(error):
                raise
            raise StateUnavailable(database_address(self._url), fault(error)) from None
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


def database_address(url: URL) -> str:
    """Return where it is, without the user and the password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.host}:{url.port or 5432}/{url.database}"


def database_fault(url: URL) -> str | None:
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
    place = database_address(engine.url)
    if engine.dialect.name == "sqlite":
        _make(Path(str(engine.url.database)))
    with _looking(engine) as connection:
        if _is_up_to_date(connection):
            return
    with engine.connect().execution_options(**{_MIGRATING: True}) as connection, connection.begin():
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
    # A new file has to know before its first table that pruning gives pages back.
    for pragma in (
        "auto_vacuum=INCREMENTAL",
        "journal_mode=WAL",
        "synchronous=FULL",
        f"journal_size_limit={_WAL_LIMIT_BYTES}",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    if options.get(_READING, False):
        connection.exec_driver_sql("BEGIN")
        return
    # Another process may migrate for longer than any writer writes.
    patience_s = _STATEMENT_S if options.get(_MIGRATING, False) else _LOCK_S
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience_s * 1000}")
    connection.exec_driver_sql("BEGIN IMMEDIATE")
