"""Classifies a database's errors: unavailable, locked, retryable, or a fault of our own."""

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

# SQLSTATEs, and SQLite's names of errors. A server that is read-only for now, or that ended an idle
# connection; and missing tables, which are created again.
_UNAVAILABLE = {"25006", "25P03", "25P04"}
_MISSING_TABLE = {"42P01"}
# Retryable: a statement was cancelled, a deadlock, a lock that was not available.
_RETRYABLE = {"57014", "40P01", "55P03"}
# Prefixes of SQLite's names: another process holds the lock, or the file is damaged.
_LOCKED = "SQLITE_BUSY"
_CORRUPT = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


def describe_fault(error: SQLAlchemyError) -> str:
    """Return the error's class and code, without its text, which may hold values or a password."""
    cause = getattr(error, "orig", None) or error
    code = error_code(error)
    return f"{type(cause).__name__} ({code})" if code else type(cause).__name__


def is_unavailable(error: SQLAlchemyError) -> bool:
    """Return whether waiting may help: no connection, a lost one, missing tables, a full disk."""
    if not isinstance(error, DBAPIError):
        return isinstance(error, NoConnection)
    if error.connection_invalidated or error_code(error) in _UNAVAILABLE or lacks_tables(error):
        return True
    names = (cls.__name__ for cls in type(error.orig).__mro__)
    # sqlite3 raises an OperationalError for wrong SQL, too.
    is_wrong_sql = error_code(error) == "SQLITE_ERROR"
    return "OperationalError" in names and not is_retryable(error) and not is_wrong_sql


def is_retryable(error: SQLAlchemyError) -> bool:
    """Return whether the next attempt may succeed at once."""
    return error_code(error) in _RETRYABLE or is_locked(error)


def is_locked(error: SQLAlchemyError) -> bool:
    """Return whether another process held SQLite's lock until our timeout."""
    return (error_code(error) or "").startswith(_LOCKED)


def is_corrupt(error: SQLAlchemyError) -> bool:
    """Return whether SQLite's file is damaged or not a database."""
    return (error_code(error) or "").startswith(_CORRUPT)


def error_code(error: SQLAlchemyError) -> str | None:
    """Return the SQLSTATE or SQLite's name of the error, None without one."""
    cause = getattr(error, "orig", None)
    return getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", None)


def lacks_tables(error: SQLAlchemyError) -> bool:
    """Return whether the tables are missing."""
    # SQLite has no code for this.
    cause = str(getattr(error, "orig", ""))
    return error_code(error) in _MISSING_TABLE or cause.startswith("no such table")
