"""HTTP clients of other languages, and requests that offer an upgrade in every form.

Each program sends the given requests on as few connections as it can, and prints the responses.
This module checks that each response belongs to its request.
"""

import asyncio
import json
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from tests.acceptance.places import WatchedServer, serve
from tests.acceptance.report import Report
from tests.servers import quickstart_texts

PROGRAMS = Path(__file__).parent / "clients"
BEFORE: dict[str, object] = {}
REQUESTS = 1000
_LIMIT_S = 240
_OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "websocket": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "TLS": "connection: UPGRADE\r\nUPGRADE: TLS/1.0\r\n",
    "several": "Connection: keep-alive, upgrade\r\nUpgrade: kaiten/9, h2c\r\n",
}


@dataclass(frozen=True)
class Request:
    """A request that a program sends; ``label`` is that of a reference answer."""

    id: str
    path: str
    chunked: bool
    body: str
    label: str

    @property
    def line(self) -> str:
        return "\t".join([self.id, self.path, "chunked" if self.chunked else "length", self.body])


@dataclass(frozen=True)
class Program:
    """A client program: the tool it needs and its package, and the commands to build and run it."""

    name: str
    needs: str
    package: str
    build: Callable[[Path], Sequence[str]] | None
    run: Callable[[Path, str], Sequence[str]]


def _undici(folder: Path) -> Sequence[str]:
    return ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder),
            "undici@6"]  # fmt: skip


CLIENTS = (
    Program(
        "Java's HttpClient", "javac", "openjdk-17-jdk-headless",
        lambda folder: ["javac", "-d", str(folder), str(PROGRAMS / "Requests.java")],
        lambda folder, url: ["java", "-cp", str(folder), "Requests", url],
    ),
    Program(
        "Go's net/http", "go", "golang-go",
        lambda folder: ["go", "build", "-o", "requests", str(PROGRAMS / "requests.go")],
        lambda folder, url: [str(folder / "requests"), url],
    ),
    Program(
        "Node's undici", "npm", "npm", _undici,
        lambda folder, url: ["node", str(folder / "requests.mjs"), url],
    ),
    Program(
        "Node's fetch", "node", "nodejs", None,
        lambda folder, url: ["node", str(folder / "requests.mjs"), url, "fetch"],
    ),
    Program(
        "curl --http2", "curl", "curl", None,
        lambda folder, url: ["sh", str(PROGRAMS / "curl.sh"), url, str(folder)],
    ),
)  # fmt: skip


def requests_of(labels: dict[str, str], count: int) -> list[Request]:
    """Return ``count`` requests, alternating between chunked and not, and between API versions."""
    shapes = list(product(("/api/v2/predict", "/api/v1/predict"), (False, True)))
    texts = list(labels)
    requests = []
    for number in range(count):
        path, chunked = shapes[number % len(shapes)]
        text = texts[number % len(texts)]
        body = {"inputs": [text]} if "v2" in path else {"text": text}
        requests.append(Request(uuid.uuid4().hex, path, chunked, json.dumps(body), labels[text]))
    return requests


def label_of(answer: dict[str, Any]) -> str:
    predictions = answer.get("predictions") or [answer.get("prediction", answer)]
    return str(predictions[0]["label"])


def count_outcomes(requests: Sequence[Request], printed: str) -> Counter[str]:
    """Count the outcomes of the requests by the printed responses."""
    rows = {row[0]: row[1:] for row in (line.split("\t") for line in printed.splitlines())}
    ends: Counter[str] = Counter()
    for request in requests:
        status, body = [*rows.get(request.id, ("no answer", "")), ""][:2]
        if status != "200":
            ends[status] += 1
            continue
        answer = json.loads(body)
        is_match = (answer["request_id"], label_of(answer)) == (request.id, request.label)
        ends["right" if is_match else "another's answer"] += 1
    return ends


async def ask_all(
    program: Program, port: int, token: str, requests: Sequence[Request], folder: Path
) -> str:
    """Build and run a program in a new folder, and return its output.

    Raises:
        RuntimeError: The program fails.

    """
    lines = "".join(f"{request.line}\n" for request in requests)

    def run() -> str:
        folder.mkdir()
        (folder / "token").write_text(token, "utf-8")
        if program.needs in ("npm", "node"):
            shutil.copyfile(PROGRAMS / "requests.mjs", folder / "requests.mjs")
        if program.build is not None:
            _run(program.build(folder), folder, "")
        return _run(program.run(folder, f"http://127.0.0.1:{port}"), folder, lines)

    return await asyncio.to_thread(run)


def _run(command: Sequence[str], folder: Path, stdin_text: str) -> str:
    ended = subprocess.run(
        command, input=stdin_text, capture_output=True, text=True, cwd=folder, timeout=_LIMIT_S,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{command[0]} failed: {ended.stderr[-500:]}")
    return ended.stdout


def shapes(token: str, text: str) -> Iterator[tuple[str, list[bytes]]]:
    """Yield titles and packets of upgrade offers, for each route with a body and each form."""
    bodies = {
        "/api/v1/predict": {"text": text},
        "/api/predict": {"text": text},
        "/api/v2/predict": {"inputs": [text]},
        "/predict": {"inputs": [text]},
        "/api/v2/feedback": {"feedback": [{"request_id": "a" * 32, "item": 0, "label": "other"}]},
    }
    following = b"GET /livez HTTP/1.1\r\nHost: kaiten\r\nConnection: close\r\n\r\n"
    for (path, value), (name, offer), chunked, split in product(
        bodies.items(), _OFFERS.items(), (False, True), (False, True)
    ):
        content = json.dumps(value).encode()
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(content)}"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: kaiten\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {token}\r\n{offer}{framing}\r\n\r\n"
        ).encode()
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content) if chunked else content
        title = f"{name} {path} {'chunked' if chunked else 'length'} {'two' if split else 'one'}"
        yield title, [head, body, following] if split else [head + body + following]


async def statuses(port: int, packets: Sequence[bytes]) -> list[str]:
    """Return the statuses of all responses on one connection until it ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for packet in packets:
        writer.write(packet)
        await writer.drain()
        # Otherwise the kernel would send both packets as one.
        await asyncio.sleep(0.02)
    try:
        async with asyncio.timeout(20):
            answer = await reader.read()
    except (TimeoutError, ConnectionError):
        answer = b""
    writer.close()
    return [part[:3].decode() for part in answer.split(b"HTTP/1.1 ")[1:]]


async def _check_shapes(report: Report, server: WatchedServer) -> None:
    token = server.server.token("field", "predict", "feedback")
    port, wrong, count = server.target.port, [], 0
    for title, packets in shapes(token, quickstart_texts()[0]):
        count += 1
        codes = await statuses(port, packets)
        if codes != ["200", "200"]:
            wrong.append(f"{title}: {codes}")
    report.check(
        "offers to upgrade: answered as HTTP/1.1, and the next request too",
        [f"{count - len(wrong)} of {count}", *wrong[:3]],
        passed=not wrong,
    )
    preface = await statuses(port, [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
    report.check("an HTTP/2 preface: refused once", preface, passed=preface == ["400"])


async def reference_labels(server: WatchedServer, count: int) -> dict[str, str]:
    """Return texts with the labels that a plain client gets."""
    labels = {}
    async with server.pool() as pool:
        for text in quickstart_texts()[:count]:
            answer = json.loads((await pool.ask(server.target.v2([text]))).body)
            labels[text] = label_of(answer)
    return labels


async def run(report: Report, store: Path, folder: Path) -> None:
    """Send upgrade offers in every form, then run each client program."""
    count = max(40, round(REQUESTS * report.scale))
    with serve(store, folder / "home") as server:
        await _check_shapes(report, server)
        labels = await reference_labels(server, 100)
        report.tell(".NET's HttpClient", skipped="Debian 12 has no package of .NET")
        for number, program in enumerate(CLIENTS):
            name = f"{program.name}: {count} requests answered, each with its own"
            if shutil.which(program.needs) is None:
                report.tell(program.name, skipped=f"no {program.needs}; package {program.package}")
                continue
            requests = requests_of(labels, count)
            try:
                place = folder / f"client-{number}"
                port, token = server.target.port, server.target.token
                printed = await ask_all(program, port, token, requests, place)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                report.check(name, str(error)[-400:], passed=False)
                continue
            ends = count_outcomes(requests, printed)
            report.check(name, dict(ends), passed=ends == {"right": count})
