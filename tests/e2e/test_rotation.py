"""The signing secret is rotated under load, over two workers that are not restarted."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex

import httpx
import pytest

from gateway.auth.minting import mint
from kaiten.settings.models import AuthSettings
from tests.acceptance.watch import Watch
from tests.servers import TLS, Server, environment, serving, until_all_ready

WORKERS = 2
OLD, NEW = token_hex(32), token_hex(32)
STARTED = "Completed async startup hook"
# Requests of a caller under load, and of a round that is repeated until every worker has answered.
ENOUGH = 24
# The kernel may give one worker most of the connections, but not all of so many at once.
LANES = 8
MAX_ROUNDS = 100
# The workers have read the file long before the old secret ends.
VALID_S = 5.0
LIMIT_S = 120


def token(secret: str, subject: str) -> str:
    return mint(subject, ["predict"], timedelta(hours=1), AuthSettings(), secret)


def status(url: str, bearer: str, request_id: str = "") -> int:
    """Return the status of a prediction over a connection of its own."""
    headers = {"Authorization": f"Bearer {bearer}", "Connection": "close"}
    headers |= {"X-Request-ID": request_id} if request_id else {}
    body = {"text": "Where is my parcel?"}
    return httpx.post(
        f"{url}/api/v1/predict", json=body, headers=headers, timeout=60, verify=TLS
    ).status_code


class Caller(threading.Thread):
    """Sends one request after the other until ``ends``, or until one is refused."""

    def __init__(self, url: str, next_token: Callable[[], str], ends: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._next_token, self._ends = url, next_token, ends
        self.accepted = 0
        self.refusal: int | None = None
        self.refused_at = 0.0

    def run(self) -> None:
        while not self._ends.is_set():
            answer = status(self._url, self._next_token())
            if answer != 200:
                self.refusal, self.refused_at = answer, time.time()
                return
            self.accepted += 1


@dataclass
class Rotation:
    """A server while its secret is rotated, and what its callers met."""

    server: Server
    ends_at: float = 0.0
    callers: dict[str, Caller] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return Path(self.server.env["KAITEN_SECRETS"]) / "kaiten_auth__secret"

    def statuses_of_every_worker(self, bearer: str) -> set[int]:
        """Return the statuses of predictions, as many as it takes until every worker answers."""
        batch, statuses = token_hex(8), set[int]()
        with ThreadPoolExecutor(LANES) as lanes:
            for number in range(MAX_ROUNDS):
                request_ids = [f"{batch}-{number}-{request}" for request in range(ENOUGH)]
                statuses.update(lanes.map(partial(status, self.server.url, bearer), request_ids))
                if self._workers_that_answered(batch) == WORKERS:
                    return statuses
        raise AssertionError("one worker answered all requests")

    def _workers_that_answered(self, batch: str) -> int:
        """Count the workers whose log file has a request with an id of this batch."""
        files = Path(self.server.env["KAITEN_LOGGING__FOLDER"]).glob("requests-*.log")
        return sum(batch in file.read_text("utf-8") for file in files)

    def run(self) -> None:
        """Rotate under load, until the old secret has ended."""
        url, ends, process = self.server.url, threading.Event(), self.server.process
        cached_token = token(OLD, "cached")
        next_tokens = {
            # One token, which the workers remember.
            "cached": lambda: cached_token,
            # Tokens of the old secret, each of which must be verified.
            "old": lambda: token(OLD, "old"),
            # Tokens of the first secret in the file, as `kaiten token create` makes them.
            "newest": lambda: self.server.token("newest"),
        }
        self.callers = {name: Caller(url, make, ends) for name, make in next_tokens.items()}
        for caller in self.callers.values():
            caller.start()
        self.ends_at = time.time() + VALID_S
        end = datetime.fromtimestamp(self.ends_at, UTC).isoformat()
        rotated = self.file.with_name("rotated")
        rotated.write_text(f"{NEW}\n{OLD} until {end}\n")
        rotated.replace(self.file)
        # The parent process reads it too, for workers that replace others.
        process.wait_for('"auth_secrets_changed"', count=1 + WORKERS)
        process.wait_for('"auth_secret_ended"', count=WORKERS)
        for name in ("cached", "old"):
            self.callers[name].join(LIMIT_S)
        ends.set()
        self.callers["newest"].join(LIMIT_S)
        self.log = list(process.lines)


@pytest.fixture(scope="module")
def rotation(bentoml_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rotation]:
    folder = tmp_path_factory.mktemp("rotation")
    (folder / "keys").mkdir()
    (folder / "keys" / "kaiten_auth__secret").write_text(f"{OLD}\n")
    env = environment(
        bentoml_home,
        folder / "home",
        KAITEN_SECRETS=str(folder / "keys"),
        KAITEN_AUTH__CREDENTIALS_POLL_S="0.2",
        KAITEN_LOGGING__FOLDER=str(folder / "logs"),
        KAITEN_LOGGING__MAX_REQUEST_LINES_PER_S="1000000",
        BENTOML_CONFIG_OPTIONS=f"services.kaiten_service.workers={WORKERS}",
    )
    with serving(env) as server:
        server.process.wait_for(STARTED, count=WORKERS)
        until_all_ready(server.url)
        rotation = Rotation(server)
        rotation.run()
        yield rotation


def test_no_valid_token_is_refused(rotation: Rotation) -> None:
    newest = rotation.callers["newest"]
    assert (newest.refusal, newest.accepted > ENOUGH) == (None, True)
    for name in ("cached", "old"):
        caller = rotation.callers[name]
        assert caller.accepted > ENOUGH
        assert caller.refusal == 401
        assert caller.refused_at >= rotation.ends_at


def test_old_secret_is_refused_after_its_time_by_both_workers(rotation: Rotation) -> None:
    assert rotation.statuses_of_every_worker(token(OLD, "cached")) == {401}
    assert rotation.statuses_of_every_worker(token(NEW, "cached")) == {200}


def test_no_worker_was_restarted(rotation: Rotation) -> None:
    log = "\n".join(rotation.log)
    assert log.count(STARTED) == WORKERS
    assert "worker_ended" not in log


def test_worker_that_replaces_another_knows_the_rotation_without_the_file(
    rotation: Rotation,
) -> None:
    process = rotation.server.process
    rotation.file.unlink()
    process.wait_for('"auth_secrets_not_read"', count=1 + WORKERS)
    victim = Watch(process.popen.pid).workers()[0]
    os.kill(victim.pid, signal.SIGKILL)
    process.wait_for(STARTED, count=WORKERS + 1)
    until_all_ready(rotation.server.url)
    assert rotation.statuses_of_every_worker(token(OLD, "cached")) == {401}
    assert rotation.statuses_of_every_worker(token(NEW, "newest")) == {200}


def test_pseudonyms_did_not_change(rotation: Rotation) -> None:
    lines = [json.loads(line) for line in rotation.server.process.lines if '"request"' in line]
    accepted = [line for line in lines if line.get("event") == "request" and "subject" in line]
    assert len({line["subject"] for line in accepted}) == len(rotation.callers)


def test_no_secret_was_logged(rotation: Rotation) -> None:
    assert not [secret for secret in (OLD, NEW) if secret in rotation.server.process.log]
