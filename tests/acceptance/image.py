"""From a model to a running image, and from one version to the next and back, without an engine."""

import asyncio
import json
import re
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import cycle
from pathlib import Path

import httpx

from kaiten.settings.environment import ROOT
from lifecycle.packaging.bento import bento_files
from tests.acceptance import containers
from tests.acceptance.containers import BASE, Container, Machine, make_base
from tests.acceptance.report import Report
from tests.e2e.nginx import Proxy, proxying
from tests.intrusion import (
    attack,
    environments_and_commands,
    listening_sockets,
    nsenter_command,
    processes_of,
)
from tests.servers import QUICKSTART, copied_store, environment, quickstart_texts, until_ready

MODEL = "support-intent"
_LANES = 16
# Answers that a load brings before and after each change.
_STEADY = 400
_LIMIT_S = 180
# What a whole Kubernetes replica of staging is given.
_SMALL = ("--cpus=0.25", "--memory=512m")


@dataclass
class Load:
    """Lanes that ask one address over and over; a lane ends when an answer closes its connection.

    ``versions`` counts answers by the model that gave them, ``failures`` everything but a 200.
    """

    url: str
    token: str
    follow: bool
    versions: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    _over: bool = False
    _answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def during(self, act: Callable[[], Awaitable[None]]) -> None:
        """Let the lanes run while something is done."""
        lanes = [asyncio.create_task(self._lane(number)) for number in range(_LANES)]
        try:
            await self.more(_STEADY)
            await act()
            if not self.follow:
                await self.more(_STEADY)
        finally:
            self._over = not self.follow
            async with asyncio.timeout(_LIMIT_S):
                await asyncio.gather(*lanes)

    @property
    def answers(self) -> int:
        return sum(self.versions.values())

    async def more(self, count: int) -> None:
        """Wait for so many more answers."""
        goal = self.answers + count
        async with asyncio.timeout(_LIMIT_S):
            while self.answers < goal:
                self._answered.clear()
                await self._answered.wait()

    async def _lane(self, number: int) -> None:
        texts = cycle(quickstart_texts()[number::_LANES])
        headers = {"Authorization": f"Bearer {self.token}"}
        if not self.follow:
            # A connection each: nginx closes those that wait as it takes a new configuration.
            headers["Connection"] = "close"
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60) as client:
            while not self._over:
                try:
                    answer = await client.post("/api/v1/predict", json={"text": next(texts)})
                except httpx.HTTPError as error:
                    self.failures.append(type(error).__name__)
                    return
                self._count(answer)
                if self.follow and answer.headers.get("Connection") == "close":
                    return

    def _count(self, answer: httpx.Response) -> None:
        self._answered.set()
        if answer.status_code != HTTPStatus.OK:
            self.failures.append(f"{answer.status_code} {answer.text[:200]}")
            return
        model = answer.json()["model"]
        self.versions[model] = self.versions.get(model, 0) + 1


async def run(report: Report, store: Path, folder: Path) -> None:
    """Build, containerize, run, stop, and roll over and back."""
    home = copied_store(store, folder / "bentoml")
    machine = containers.machine(folder, environment(home, folder / "home", BASE_IMAGE=BASE))
    try:
        bento = _build(report, machine, home, folder)
        make_base(machine, folder)
        first_image = _containerize(report, machine, bento, "1")
        _release(machine, home, "1.1.0")
        second_image = _containerize(
            report, machine, _kaiten(machine, "build", "--model", f"{MODEL}:1.1.0"), "2"
        )
        keys = folder / "secrets"
        keys.mkdir()
        (keys / "kaiten_auth__secret").write_text(secrets.token_hex(32), encoding="utf-8")
        with containers.running(machine, first_image, "kaiten-one", keys) as first_container:
            _examine(report, first_container, bento)
            _intrude(report, first_container)
            with containers.running(machine, second_image, "kaiten-two", keys) as second_container:
                await _roll(report, first_container, second_container, folder)
                await _stop(report, second_container)
        _start_small(report, machine, first_image, keys)
        _try_torch(report, machine, keys)
    finally:
        log = "\n".join(machine.log.lines) + "\n"
        (ROOT / "docs" / "image-test.log").write_text(_anonymous(log, folder), encoding="utf-8")


def _kaiten(machine: Machine, *arguments: str) -> Mapping[str, object]:
    result: Mapping[str, object] = json.loads(machine.run("kaiten", *arguments, "--json"))
    return result


def _release(machine: Machine, home: Path, version: str) -> None:
    """Register the quickstart's network as a version where it is not, validate and promote it."""
    tag = f"{MODEL}:{version}"
    folder = home / "models" / MODEL / "1.0.0"
    if not (folder.parent / version).exists():
        copy = home / "network"
        copy.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / name, copy / name)
        named = ("--name", MODEL, "--version", version, "--task", "text-classification")
        machine.run("kaiten", "register", str(copy), *named)
        data = str(QUICKSTART / "data" / "test.jsonl")
        machine.run("kaiten", "validate", tag, "--data", data)
    machine.run("kaiten", "promote", tag, "--to", "staging", "--reason", "image test")


def _build(report: Report, machine: Machine, home: Path, folder: Path) -> Mapping[str, object]:
    refused = machine.run("kaiten", "build", "--model", f"{MODEL}:1.0.0", may_fail=True)
    report.check(
        "a bento of a version in no stage is refused", refused, passed="promote" in refused
    )
    _release(machine, home, "1.0.0")
    bento = _kaiten(machine, "build", "--model", f"{MODEL}:1.0.0")
    # A store of its own: where the bento is there already, it is not built again.
    other = copied_store(home, folder / "other")
    shutil.rmtree(other / "bentos")
    again = _kaiten(
        Machine({**machine.env, "BENTOML_HOME": str(other)}, machine.log),
        "build", "--model", f"{MODEL}:1.0.0",
    )  # fmt: skip
    files = [bento_files(Path(str(build["folder"]))) for build in (bento, again)]
    report.check(
        "two builds of one commit have the same files",
        _short(f"{len(files[0])} files, {bento['digest']}"),
        passed=files[0] == files[1] and bento["digest"] == again["digest"] and len(files[0]) > 100,
    )
    shutil.rmtree(other)
    return bento


def _containerize(report: Report, machine: Machine, bento: Mapping[str, object], tag: str) -> str:
    name, start = f"localhost/kaiten-test:{tag}", time.monotonic()
    options = ("--backend", "podman", "--option", "network=host", "--tag", name)
    image = _kaiten(machine, "containerize", str(bento["bento"]), *options)
    layers = machine.run("podman", "history", "--format", "{{.Size}}|{{.CreatedBy}}", name)
    sizes = [line.partition("|") for line in layers.splitlines()]
    report.tell(
        f"image {tag}",
        bento=bento["bento"],
        seconds=time.monotonic() - start,
        megabytes=round(int(str(image["size"])) / 1e6),
        layers="; ".join(
            f"{size}: {command[:60]}"
            for size, _, command in sizes
            if size[-2:] == "MB"
        ),
        labels=_short(json.dumps(image["labels"])),
    )  # fmt: skip
    return name


def _examine(report: Report, container: Container, bento: Mapping[str, object]) -> None:
    until_ready(container.url)
    inside = container.machine.inspect("image", "localhost/kaiten-test:1")["Config"]
    report.check(
        "it runs as an unprivileged user", inside["User"], passed=inside["User"] == "1034:1034"
    )
    written = container.execute(
        "sh", "-c", "echo x > /home/bentoml/bento/src/service.py", may_fail=True
    )
    report.check("what it serves can not be written", written, passed="Read-only" in written)
    # What fails raises.
    container.machine.run("podman", "healthcheck", "run", container.name)
    doctor = container.execute("kaiten", "doctor")
    would_start = "The service would start" in doctor
    report.check("kaiten doctor agrees inside", doctor.splitlines()[-1], passed=would_start)
    token = _token(container, "predict", "ops")
    options = ("--token-file", "-", "--model", f"{MODEL}:1.0.0", "--json")
    result = json.loads(
        container.machine.run("kaiten", "smoke", container.url, *options, stdin=token)
    )
    outcomes = "; ".join(f"{check['name']}: {check['outcome']}" for check in result["checks"])
    report.check("kaiten smoke passes", outcomes, passed=result["ok"])
    metrics = httpx.get(f"{container.url}/metrics").text
    lines = [
        line
        for line in metrics.splitlines()
        if line.startswith(("kaiten_model_info", "kaiten_build_info"))
    ]
    version = str(bento["bento"]).partition(":")[2]
    passed = any('version="1.0.0"' in line for line in lines) and any(
        version in line for line in lines
    )
    report.check("/metrics shows the versions", _short(" ".join(lines)), passed=passed)


def _intrude(report: Report, container: Container) -> None:
    """Come from a container of the same network namespace, with another account."""
    pid = int(container.machine.inspect("container", container.name)["State"]["Pid"])
    sockets = listening_sockets(pid)
    report.check(
        "it listens on its port alone",
        "; ".join(sockets),
        passed=len(sockets) == 1 and sockets[0].endswith(":3000"),
    )
    ports = [row.rpartition(":")[2] for row in sockets if row.startswith("tcp ")]
    processes = [process.pid for process in processes_of(pid)]
    findings = attack(
        [f"tcp://127.0.0.1:{port}" for port in ports], processes, nsenter_command(pid)
    )
    refused = (
        findings.is_empty and httpx.get(f"{container.url}/readyz").status_code == HTTPStatus.OK
    )
    report.check("another account gets nothing", _short(str(findings)), passed=refused)
    secret = container.execute("cat", "/run/secrets/kaiten_auth__secret", in_log=False)
    has_secret = secret in environments_and_commands(pid)
    report.check("/proc shows no secret of its processes", has_secret, passed=not has_secret)


def _token(container: Container, *scopes: str) -> str:
    command = (
        "podman",
        "exec",
        container.name,
        "kaiten",
        "token",
        "create",
        "--subject",
        "image-test",
    )
    options = [part for scope in scopes for part in ("--scope", scope)]
    return container.machine.run(*command, *options, in_log=False)


async def _roll(
    report: Report, first_container: Container, second_container: Container, folder: Path
) -> None:
    """Go from the first version to the second and back behind nginx, under load."""
    token = _token(first_container, "predict")
    until_ready(second_container.url)
    with proxying(folder, first_container.port) as proxy:
        load = Load(f"http://127.0.0.1:{proxy.port}", token, follow=False)

        async def over_and_back() -> None:
            await _turn(load, proxy, first_container, second_container)
            await _turn(load, proxy, second_container, first_container)

        await load.during(over_and_back)
    report.tell(
        "rolled over and back",
        answers=load.versions,
        failures=load.failures[:5],
        most_memory_mb=[first_container.memory_mb, second_container.memory_mb],
    )
    both = {f"{MODEL}:1.0.0", f"{MODEL}:1.1.0"}
    report.check(
        "no request fails while versions are rolled over and back",
        f"{len(load.failures)} of {load.answers}",
        passed=not load.failures and load.versions.keys() == both,
    )


async def _turn(load: Load, proxy: Proxy, old: Container, new: Container) -> None:
    """Route requests to another container, stop the old one, and start it for the way back."""
    proxy.turn_to(new.port)
    await load.more(_STEADY)
    await asyncio.to_thread(old.stop)
    await load.more(_STEADY)
    await asyncio.to_thread(old.start_again)
    await asyncio.to_thread(until_ready, old.url)


async def _stop(report: Report, container: Container) -> None:
    """Stop a container that clients ask by themselves, until it tells them to go elsewhere."""
    token = _token(container, "predict")
    load, codes = Load(container.url, token, follow=True), []

    async def stop() -> None:
        codes.append(await asyncio.to_thread(container.stop))

    await load.during(stop)
    report.tell("stopped under load", answers=load.answers, failures=load.failures[:5])
    report.check(
        "SIGTERM under load drops nothing, and it ends in good order",
        f"{len(load.failures)} of {load.answers}, exit code {codes}",
        passed=not load.failures and load.answers > _STEADY and codes == [0],
    )


def _start_small(report: Report, machine: Machine, image: str, keys: Path) -> None:
    """Start with what a replica of staging has: how long that takes, and in how much memory."""
    start = time.monotonic()
    with containers.running(machine, image, "kaiten-small", keys, *_SMALL) as small:
        until_ready(small.url)
        seconds = time.monotonic() - start
        report.tell("0.25 cores, 512 MiB", ready_after_s=seconds, most_memory_mb=small.memory_mb)
        report.check("it starts on 250m and in 512 MiB", seconds, passed=seconds < _LIMIT_S)


def _try_torch(report: Report, machine: Machine, keys: Path) -> None:
    """Make and run the image of a service whose setting asks for torch, for its size."""
    torch_machine = Machine({**machine.env, "KAITEN_RUNNERS__ENGINE": "torch"}, machine.log)
    # The version that is in staging by now.
    bento = _kaiten(torch_machine, "build", "--model", f"{MODEL}:1.1.0")
    image = _containerize(report, machine, bento, "torch")
    engine = "--env=KAITEN_RUNNERS__ENGINE=torch"
    with containers.running(machine, image, "kaiten-torch", keys, engine) as container:
        until_ready(container.url)
        token = _token(container, "predict", "ops")
        result = json.loads(
            machine.run(
                "kaiten", "smoke", container.url, "--token-file", "-", "--json", stdin=token
            )
        )
        log = machine.run("sh", "-c", f"podman logs {container.name} 2>&1", in_log=False)
        report.tell("image torch", most_memory_mb=container.memory_mb)
        report.check("kaiten smoke passes on torch", result["ok"], passed=result["ok"])
        lines = [line for line in log.splitlines() if '"engine_opened"' in line]
        report.check("it is torch", lines[-1:], passed='"engine": "torch"' in "".join(lines))


def _anonymous(log: str, folder: Path) -> str:
    """Return the log without the names of this machine's folders."""
    return _short(log.replace(str(folder), "FOLDER").replace(str(ROOT), "CHECKOUT"))


def _short(text: str) -> str:
    """Cut digests, which a scan for secrets would stop at."""
    return re.sub(r"[0-9a-f]{40,}", lambda match: match[0][:12], text)
