"""What processes beside a test do with its database; they load no more than they need."""

from sqlalchemy import insert
from sqlalchemy.engine import make_url

from monitors.feedback.database import Database
from monitors.feedback.tables import predictions
from tests.unit.monitors.feedback.house import row

TIMES, ROWS = 20, 10


def write(url: str) -> None:
    """Create the tables if they are missing, and write."""
    database = Database(make_url(url))
    for _ in range(TIMES):
        with database.writing() as connection:
            connection.execute(insert(predictions), [row()] * ROWS)
    database.close()
