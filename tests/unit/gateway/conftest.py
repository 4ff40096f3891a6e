import logging
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from gateway import security_log


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """Keep log lines; left to itself, structlog paints each traceback for about a second."""
    kaiten = logging.getLogger("kaiten")
    level = kaiten.level
    kaiten.setLevel(logging.DEBUG)
    with capture_logs() as events:
        yield events
    kaiten.setLevel(level)


@pytest.fixture(autouse=True)
def fresh_security_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test count on from another's events."""
    monkeypatch.setattr(security_log, "security_log", security_log.SecurityLog())
