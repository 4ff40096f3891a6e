"""Start a Prometheus and an Alertmanager with the shipped files, a metrics page and a webhook."""

import json
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.exposition import Exposition
from tests.servers import READY_LIMIT_S, ROOT, TLS, environment, free_port, running

DEPLOY = ROOT / "deploy"


@dataclass
class Page:
    """A server's /metrics and /readyz, as a test has them, counting as it is looked at."""

    exposition: Exposition = field(default_factory=Exposition)
    # Requests that are answered between two looks, by status.
    answers: Mapping[int, int] = field(default_factory=dict)
    _look_counted: threading.Condition = field(default_factory=threading.Condition)
    _looks: int = 0

    def look(self) -> bytes:
        for status, count in self.answers.items():
            self.exposition.answer(status, count)
        page = self.exposition.page().encode()
        with self._look_counted:
            self._looks += 1
            self._look_counted.notify_all()
        return page

    def wait_for_looks(self, count: int) -> None:
        with self._look_counted:
            until = self._looks + count
            assert self._look_counted.wait_for(lambda: self._looks >= until, READY_LIMIT_S)


@dataclass
class Webhook:
    """What takes alerts, as Slack does."""

    messages: queue.Queue[tuple[str, Any]] = field(default_factory=queue.Queue)

    def next(self) -> tuple[str, str, str]:
        """Return the path, the title and the text of the next message."""
        path, message = self.messages.get(timeout=READY_LIMIT_S)
        (attachment,) = message["attachments"]
        return path, attachment["title"], attachment["text"]


@contextmanager
def listening(page: Page, webhook: Webhook) -> Iterator[int]:
    """Answer for both, on the port that is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(page.look() if self.path == "/metrics" else b"\n")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            webhook.messages.put((self.path, json.loads(body)))
            self._answer(b"ok")

        def _answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Watcher:
    """A Prometheus or an Alertmanager that answers."""

    port: int

    def get(self, path: str, **params: str) -> Any:  # noqa: ANN401  JSON
        answer = httpx.get(
            f"http://127.0.0.1:{self.port}{path}", params=params, timeout=60, verify=TLS
        )
        assert answer.is_success, answer.text
        return answer.json()

    def query(self, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Return the value of each series that Prometheus finds, by its labels in order."""
        results = self.get("/api/v1/query", query=expression)["data"]["result"]
        return {
            tuple(sorted(result["metric"].items())): float(result["value"][1]) for result in results
        }


@contextmanager
def prometheus(folder: Path, target_port: int, alertmanager_port: int) -> Iterator[Watcher]:
    """Run the shipped configuration, with nothing changed but addresses and times."""
    folder.mkdir()
    config = shipped("prometheus/prometheus.yaml")
    config["global"] = dict.fromkeys(config["global"], "1s")
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{target_port}"]}]
    (alerting,) = config["alerting"]["alertmanagers"]
    alerting["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]
    rules = shipped("prometheus/kaiten.rules.yaml")
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule["for"] = "0s"
    (folder / "kaiten.rules.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    options = [f"--storage.tsdb.path={folder / 'data'}"]
    yield from _run("prometheus", "ready to receive web requests", folder, config, options)


@contextmanager
def alertmanager(folder: Path, webhook_port: int) -> Iterator[Watcher]:
    """Run the shipped configuration, as one who chooses the receiver chat does, but at once."""
    folder.mkdir()
    secret = folder / "webhook_url"
    secret.write_text(f"http://127.0.0.1:{webhook_port}/the-secret\n", encoding="utf-8")
    config = shipped("alertmanager/alertmanager.yaml")
    route = config["route"] | {"receiver": "chat", "group_interval": "1s"}
    config["route"] = route
    for node in (route, *route["routes"]):
        node["group_wait"] = "0s"
    (chat,) = [receiver for receiver in config["receivers"] if receiver["name"] == "chat"]
    chat["slack_configs"][0]["api_url_file"] = str(secret)
    options = [f"--storage.path={folder / 'data'}", "--cluster.listen-address="]
    yield from _run("prometheus-alertmanager", "Listening on", folder, config, options)


def shipped(path: str) -> dict[str, Any]:
    """Return what a file of ``deploy`` holds."""
    content: dict[str, Any] = yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))
    return content


def _run(
    program: str, ready: str, folder: Path, config: object, options: Sequence[str]
) -> Iterator[Watcher]:
    binary = shutil.which(program)
    if binary is None:
        pytest.skip(f"{program} is not on this machine: apt-get install {program}")
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    watcher = Watcher(free_port())
    listen = f"--web.listen-address=127.0.0.1:{watcher.port}"
    command = [binary, f"--config.file={file}", listen, *options]
    with running(command, environment(folder, folder), folder) as process:
        process.wait_for(ready)
        yield watcher
