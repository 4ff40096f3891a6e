"""A blocked console, full disks, torn metrics files, few descriptors, floods of bad tokens."""

import asyncio
import fcntl
import os
import re
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.acceptance.places import TWO_WORKERS
from tests.acceptance.report import Report
from tests.servers import BIN, ROOT, STOP_LIMIT_S, Server, environment, free_port, until_ready
from tests.servers import Process as ServerProcess
from tests.small_disk import fill, mount_tmpfs

# At 0.3 of the full size.
BEFORE: Mapping[str, object] = {
    "console that is not read: 400 rejected tokens answered": "101, then none of 6",
    "console that is not read: 100 predictions": "none of 6",
    "console that is not read: liveness": "none of 6",
    "console that is closed: 100 rejected tokens answered": "100",
    "full metrics disk: 64 predictions": "2, then none of 6",
    "full metrics disk: workers that died": "2 of 2",
    "full metrics disk: /metrics": "no answer in 20 s",
    "dead workers: bytes a death": 244_600,
    "64 descriptors: operators' routes": "12 times 500, 4 times 200",
    "64 descriptors: predictions": "10 times 200",
    "rejected tokens: bytes of the security log for each": 252,
}
_V1 = "/api/v1/predict"
_BODY = {"text": "Where is my parcel?"}
_REJECTED = {"Authorization": "Bearer nonsense"}
_LIMIT_S = 5
# After this many requests without a response, the others are not sent.
_PATIENCE = 6
_DEATHS, _REFUSALS, _PROBES = 20, 3000, 24
_WORKER = "_bentoml_impl.worker.service"


@dataclass
class Site:
    """A server whose standard output and error go to a given descriptor."""

    url: str
    popen: subprocess.Popen[bytes]
    env: Mapping[str, str]
    token: str = field(init=False)
    ops: str = field(init=False)

    def __post_init__(self) -> None:
        server = Server(self.url, ServerProcess(self.popen), self.env)  # type: ignore[arg-type]
        self.token = server.token("tester", "predict")
        self.ops = server.token("operator", "ops")

    def workers(self) -> list[psutil.Process]:
        processes = psutil.Process(self.popen.pid).children(recursive=True)
        return [process for process in processes if _is_worker(process)]

    async def ask(self, count: int, path: str = _V1, **headers: str) -> Counter[str]:
        """Count the statuses or errors of ``count`` requests, each on a new connection."""
        outcomes: Counter[str] = Counter()
        headers = {"Authorization": f"Bearer {self.token}"} | headers
        for number in range(count):
            if sum(n for outcome, n in outcomes.items() if not outcome.isdigit()) >= _PATIENCE:
                outcomes["not sent"] = count - number
                break
            async with httpx.AsyncClient(base_url=self.url, timeout=_LIMIT_S) as client:
                try:
                    answer = (
                        await client.post(path, json=_BODY, headers=headers)
                        if path == _V1
                        else await client.get(path, headers=headers)
                    )
                    outcomes[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    outcomes[type(error).__name__] += 1
        return outcomes

    def get(self, path: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.ops}"}
        return httpx.get(self.url + path, headers=headers, timeout=4 * _LIMIT_S)

    def wait_for_workers(self, count: int) -> bool:
        """Wait until ``count`` workers are ready; return False after a minute."""
        for _ in range(60):
            if len(self.workers()) >= count:
                # On connections of their own, so that the workers share them.
                with suppress(httpx.HTTPError):
                    if all(httpx.get(f"{self.url}/readyz").is_success for _ in range(_PROBES)):
                        return True
            time.sleep(1)
        return False


def _is_worker(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return _WORKER in process.cmdline()
    return False


@contextmanager
def site(
    env: Mapping[str, str], output: int | None, *prefix: str, ready: bool = True
) -> Iterator[Site]:
    """Run a server with its standard output and error going to this descriptor."""
    port = str(free_port())
    popen = subprocess.Popen(
        [*prefix, str(BIN / "kaiten"), "serve", "--port", port],
        env=env,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    place = Site(f"http://127.0.0.1:{port}", popen, env)
    processes: list[psutil.Process] = []
    try:
        if ready:
            until_ready(place.url)
            place.wait_for_workers(int(env.get("WORKERS", "1")))
        yield place
    finally:
        with suppress(psutil.Error):
            processes = psutil.Process(popen.pid).children(recursive=True)
        popen.terminate()
        try:
            popen.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            popen.kill()
        for process in psutil.wait_procs(processes, 5)[1]:
            process.kill()


def _home(store: Path, folder: Path) -> Path:
    """Return a BentoML home with the same models, and a metrics folder of its own."""
    home = folder / "bentoml"
    (home / "prometheus_multiproc_dir").mkdir(parents=True)
    (home / "models").symlink_to(store / "models")
    return home


async def _console(report: Report, store: Path, folder: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 16)
    env = environment(_home(store, folder), folder / "home", **TWO_WORKERS, WORKERS="2")
    with site(env, writing) as place:
        os.close(writing)
        rejected = await place.ask(400, **_REJECTED)
        report.check(
            "console that is not read: 400 rejected tokens answered",
            dict(rejected),
            passed=rejected == {"401": 400},
        )
        # The request log fills the rest of the pipe, for either worker.
        good = await place.ask(100)
        report.check("console that is not read: 100 predictions", dict(good),
                     passed=good == {"200": 100})  # fmt: skip
        probes = await place.ask(20, "/livez")
        report.check("console that is not read: liveness", dict(probes),
                     passed=probes == {"200": 20})  # fmt: skip
        os.close(reading)
        closed = await place.ask(100, **_REJECTED)
        report.check("console that is closed: 100 rejected tokens answered", dict(closed),
                     passed=closed == {"401": 100})  # fmt: skip


async def _disk(report: Report, store: Path, folder: Path) -> None:
    home = _home(store, folder)
    metrics = home / "prometheus_multiproc_dir"
    env = environment(home, folder / "home", **TWO_WORKERS, WORKERS="2")
    with mount_tmpfs(metrics, "2m"):
        with site(env, subprocess.DEVNULL) as place:
            fill(metrics)
            pids = {worker.pid for worker in place.workers()}
            outcomes = await place.ask(64)
            report.check("full metrics disk: 64 predictions", dict(outcomes),
                         passed=outcomes == {"200": 64})  # fmt: skip
            await _new_series(place)
            report.check("full metrics disk: workers that died",
                         len(pids - {worker.pid for worker in place.workers()}),
                         passed=pids == {worker.pid for worker in place.workers()})  # fmt: skip
            page = place.get("/metrics")
            report.check("full metrics disk: /metrics", page.status_code,
                         passed=page.status_code == 200)  # fmt: skip
            os.kill(place.workers()[0].pid, 9)
            back = place.wait_for_workers(2)
            report.check("full metrics disk: a killed worker comes back", back, passed=back)
        with site(env, subprocess.DEVNULL, ready=False) as place:
            started = place.wait_for_workers(2)
            report.check("full metrics disk: a start serves", started, passed=started)


async def _new_series(place: Site) -> None:
    """Create new time series: one for each status on each route."""
    for path in (_V1, "/api/v2/predict", "/predict", "/api/v1/feedback"):
        for headers in ({}, {"Content-Type": "text/plain"}, {"X-Request-Timeout-Ms": "1"}):
            async with httpx.AsyncClient(base_url=place.url, timeout=_LIMIT_S) as client:
                with suppress(httpx.HTTPError):
                    request_headers = {"Authorization": f"Bearer {place.token}"} | headers
                    await client.post(path, content=b"{}", headers=request_headers)


async def _files(report: Report, store: Path, folder: Path) -> None:
    home = _home(store, folder)
    env = environment(home, folder / "home")
    with site(env, subprocess.DEVNULL) as place:
        sent, sizes = 0, []
        for _ in range(max(4, int(_DEATHS * report.scale))):
            sent += (await place.ask(5))["200"]
            place.workers()[0].kill()
            place.wait_for_workers(1)
            place.get("/metrics")
            sizes.append(_size(home / "prometheus_multiproc_dir"))
        counted = _request_count(place.get("/metrics").text)
        report.check("dead workers: requests counted of those answered", [counted, sent],
                     passed=counted == sent)  # fmt: skip
        growth = (sizes[-1] - sizes[0]) / (len(sizes) - 1)
        report.check("dead workers: bytes a death", growth, passed=growth < 1000)
        (directory,) = (home / "prometheus_multiproc_dir").glob("*.*")
        # As from a worker that died while writing: it claims more bytes than it has.
        torn = struct.pack("ii", 4096, 0) + b"\xff" * 92
        (directory / "counter_999999.db").write_bytes(torn)
        page = place.get("/metrics")
        report.check("torn metrics file: /metrics", page.status_code,
                     passed=page.status_code == 200)  # fmt: skip


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _request_count(page: str) -> float:
    series = rf'^model_requests_total{{code="200".*{_V1}.*}} (\S+)$'
    counts = re.findall(series, page, re.MULTILINE)
    return sum(map(float, counts))


async def _descriptors(report: Report, store: Path, folder: Path) -> None:
    env = environment(_home(store, folder), folder / "home")
    with site(env, subprocess.DEVNULL, "prlimit", "--nofile=64") as place:
        clients = [httpx.AsyncClient(base_url=place.url, timeout=_LIMIT_S) for _ in range(40)]
        outcomes: Counter[int] = Counter()
        for client in clients:
            with suppress(httpx.HTTPError):
                await client.get("/livez")
        for path in ("/metrics", "/ops/stats", "/ops/drift", "/ops/quality"):
            for client in clients[:4]:
                with suppress(httpx.HTTPError):
                    headers = {"Authorization": f"Bearer {place.ops}"}
                    outcomes[(await client.get(path, headers=headers)).status_code] += 1
        report.check("64 descriptors: operators' routes", dict(outcomes),
                     passed=bool(outcomes) and set(outcomes) <= {200, 503})  # fmt: skip
        headers = {"Authorization": f"Bearer {place.token}"}
        good: Counter[int] = Counter()
        for client in clients[:10]:
            with suppress(httpx.HTTPError):
                good[(await client.post(_V1, json=_BODY, headers=headers)).status_code] += 1
        report.check("64 descriptors: predictions", dict(good), passed=good == {200: 10})
        for client in clients:
            await client.aclose()


async def _strangers(report: Report, store: Path, folder: Path) -> None:
    logs = folder / "logs"
    env = environment(_home(store, folder), folder / "home", KAITEN_LOGGING__FOLDER=str(logs))
    count = int(_REFUSALS * report.scale)
    with site(env, subprocess.DEVNULL) as place:
        async with httpx.AsyncClient(base_url=place.url, timeout=_LIMIT_S) as client:
            for _ in range(count):
                await client.post(_V1, json=_BODY, headers=_REJECTED)
        await asyncio.sleep(1)
        log_bytes = sum(file.stat().st_size for file in logs.glob("security-*.log*"))
        report.check(
            "rejected tokens: bytes of the security log for each",
            log_bytes / count,
            passed=log_bytes / count < 20,
        )


async def run(report: Report, store: Path, folder: Path) -> None:
    """Run each part on its own server."""
    for part in (_console, _disk, _files, _descriptors, _strangers):
        place = folder / part.__name__.strip("_")
        place.mkdir()
        try:
            await part(report, store, place)
        except Exception as error:  # noqa: BLE001  the other parts run regardless
            report.check(f"{place.name}: runs to its end", repr(error), passed=False)
