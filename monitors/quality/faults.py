"""What a database's errors mean: whether to wait, to try again, or neither."""

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

# SQLSTATEs, and the names of SQLite's. Of a server that takes no writes for now, or ended what
# idled too long; and of tables that are gone, which are made again.
_AWAY = {"25006", "25P03", "25P04"}
_GONE = {"42P01"}
# One try that failed, where the next may not: cancelled, a deadlock, a lock that was not to be had.
_TRY = {"57014", "40P01", "55P03"}
# SQLite's, with what may follow it: another holds the lock, or the file is no database any more.
_LOCKED = "SQLITE_BUSY"
_SPOILT = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def fault(error: SQLAlchemyError) -> str:
    """Return what went wrong, in words that hold no value, and no password."""
    cause = getattr(error, "orig", None) or error
    found = code(error)
    return f"{type(cause).__name__} ({found})" if found else type(cause).__name__


def means_away(error: SQLAlchemyError) -> bool:
    """Tell whether waiting may mend it: no connection, one that was lost, or no tables or room."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, NoConnection)
    if error.connection_invalidated or code(error) in _AWAY or lacks_tables(error):
        return True
    kinds = (each.__name__ for each in type(error.orig).__mro__)
    # SQLite has that kind for what it does not understand, too.
    ours = code(error) == "SQLITE_ERROR"
    return "OperationalError" in kinds and not failed_once(error) and not ours


def failed_once(error: SQLAlchemyError) -> bool:
    """Tell whether it was a try that failed, where the next one may not."""
    return code(error) in _TRY or means_locked(error)


def means_locked(error: SQLAlchemyError) -> bool:
    """Tell whether another process has held SQLite's lock for as long as we wait for it."""
    return (code(error) or "").startswith(_LOCKED)


def means_spoilt(error: SQLAlchemyError) -> bool:
    """Tell whether SQLite's file is damaged, or no database."""
    return (code(error) or "").startswith(_SPOILT)


def code(error: SQLAlchemyError) -> str | None:
    """Return the database's own code of it, where it has one."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)


def lacks_tables(error: SQLAlchemyError) -> bool:
    """Tell whether the tables are gone."""
    # SQLite has no code of its own for it.
    cause = str(getattr(error, "orig", ""))
    return code(error) in _GONE or cause.startswith("no such table")
