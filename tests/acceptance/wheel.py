"""The wheel as docs/install.md installs it: by pip, uv and pipx, each outside of any checkout."""

import asyncio
import json
import shutil
import subprocess
import sys
import time
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from shlex import join, split

import httpx

from tests.acceptance.report import Report
from tests.servers import BIN, QUICKSTART, ROOT, environment, free_port, running

_MODEL = "support-intent:1.0.0"
_NETWORK = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_TEXT, _LABEL = "My parcel has not arrived yet, where is it?", "order_status"
_CONSTRAINTS = ROOT / "constraints.txt"
# Where pip is set up to look, uv looks by these options.
_UV_OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
}


@dataclass(frozen=True)
class Installer:
    """How a program installs the wheel, and where it puts the environment and the command."""

    name: str
    program: str
    commands: Sequence[Sequence[str]]
    folder: Path
    kaiten: Path
    variables: Mapping[str, str]


class CommandFailed(Exception):
    """A command that ended with another exit code than 0."""


async def run(report: Report, store: Path, folder: Path) -> None:
    """Build the wheel, and install and use it by each program."""
    await asyncio.to_thread(_run, report, store, folder)


def _run(report: Report, store: Path, folder: Path) -> None:
    network = folder / "network"
    network.mkdir()
    for name in _NETWORK:
        shutil.copy(store / "models" / "support-intent" / "1.0.0" / name, network)
    wheel = _build(report, folder)
    for installer in _installers(wheel, folder):
        name = installer.name
        if shutil.which(installer.program) is None:
            report.check(
                f"{name} installs the wheel", f"{installer.program} is not here", passed=False
            )
            continue
        try:
            _use(report, installer, network)
        except (CommandFailed, AssertionError) as error:
            report.check(f"{name}: the wheel serves a model", str(error), passed=False)


def _build(report: Report, folder: Path) -> Path:
    command = [str(BIN / "uv"), "build", "--quiet", "--wheel", "--out-dir", str(folder / "dist")]
    seconds = _time([*command, str(ROOT)], environment(folder, folder), folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    report.tell("wheel", seconds=seconds, kilobytes=round(wheel.stat().st_size / 1e3))
    return wheel


def _installers(wheel: Path, folder: Path) -> Iterator[Installer]:
    requirement = f"{wheel}[validate]"
    sources = split(_output(["make", "--silent", "torch-options"], ROOT))
    options = [*sources, "-c", str(_CONSTRAINTS)]
    pip = folder / "pip"
    yield Installer(
        "pip",
        sys.executable,
        [
            [sys.executable, "-m", "venv", str(pip)],
            [str(pip / "bin" / "pip"), "install", "--quiet", *options, requirement],
        ],
        pip,
        pip / "bin" / "kaiten",
        {},
    )
    uv, tools = str(BIN / "uv"), folder / "uv"
    # The same builds of torch, and pip's sources, of which uv knows nothing.
    backend = ["--torch-backend", "cpu"] if "--extra-index-url" in sources else []
    chosen = ["--python", sys.executable, *backend, *_pip_sources(), "-c", str(_CONSTRAINTS)]
    yield Installer(
        "uv tool",
        uv,
        [[uv, "tool", "install", "--quiet", *chosen, requirement]],
        tools,
        folder / "uv-bin" / "kaiten",
        {"UV_TOOL_DIR": str(tools), "UV_TOOL_BIN_DIR": str(folder / "uv-bin")},
    )
    tools, pip_args = folder / "pipx", f"--pip-args={join(options)}"
    yield Installer(
        "pipx",
        "pipx",
        [["pipx", "install", "--python", sys.executable, pip_args, requirement]],
        tools,
        folder / "pipx-bin" / "kaiten",
        {"PIPX_HOME": str(tools), "PIPX_BIN_DIR": str(folder / "pipx-bin")},
    )


def _pip_sources() -> Iterator[str]:
    """Yield uv's options for the sources that pip is configured with."""
    for line in _output([sys.executable, "-m", "pip", "config", "list"], ROOT).splitlines():
        name, _, value = line.partition("=")
        if option := _UV_OPTIONS.get(name.rpartition(".")[2]):
            for source in literal_eval(value).split():
                yield from (option, source)
    # As pip does, which prefers no index.
    yield from ("--index-strategy", "unsafe-best-match")


def _use(report: Report, installer: Installer, network: Path) -> None:
    """Install the wheel, and take a version from its registration to an answer."""
    name = installer.name
    project = installer.folder.with_name(f"{installer.folder.name}-project")
    project.mkdir()
    env = environment(project / "bentoml", project / "home", **installer.variables)
    # What make sets for the suites would lead to the checkout.
    env = {key: value for key, value in env.items() if key != "PYTHONPATH"}
    seconds = sum(_time(command, env, project) for command in installer.commands)
    report.tell(name, installed_s=seconds, megabytes=round(_size(installer.folder) / 1e6))
    kaiten, tag = str(installer.kaiten), _MODEL
    named = ("--name", "support-intent", "--version", "1.0.0", "--task", "text-classification")
    data = str(QUICKSTART / "data" / "test.jsonl")
    steps: dict[str, Sequence[str]] = {
        "registered_s": ("register", str(network), *named),
        "validated_s": ("validate", tag, "--data", data),
        "staged_s": ("promote", tag, "--to", "staging", "--reason", "an acceptance test"),
        "promoted_s": ("promote", tag, "--to", "production", "--reason", "an acceptance test"),
    }
    for fact, arguments in steps.items():
        report.tell(name, **{fact: _time([kaiten, *arguments], env, project)})
    answer = _serve(report, name, kaiten, env, project)
    report.check(
        f"{name}: the wheel serves a model",
        json.dumps(answer),
        passed=(answer.get("model"), answer.get("label")) == (tag, _LABEL),
    )


def _serve(
    report: Report, name: str, kaiten: str, env: Mapping[str, str], project: Path
) -> dict[str, object]:
    """Serve the version in production by the project's settings; return the answer to a text."""
    (project / "kaiten.yaml").write_text("serving:\n  models: [support-intent]\n", "utf-8")
    port, started = free_port(), time.monotonic()
    with running([kaiten, "serve", "--port", str(port)], env, project) as process:
        process.wait_for("^Ready")
        report.tell(name, ready_s=time.monotonic() - started)
        create = [kaiten, "token", "create", "--subject", "caller", "--scope", "predict"]
        headers = {"Authorization": f"Bearer {_output(create, project, env).strip()}"}
        url = f"http://127.0.0.1:{port}/api/v1/predict"
        response = httpx.post(url, json={"text": _TEXT}, headers=headers, timeout=60)
    if response.status_code != HTTPStatus.OK:
        raise CommandFailed(f"{response.status_code} {response.text[:300]}")
    answer: dict[str, object] = response.json()
    return {key: answer[key] for key in ("model", "label", "confidence")}


def _time(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> float:
    """Run a command, and return the seconds that it took."""
    started = time.monotonic()
    _output(command, cwd, env)
    return time.monotonic() - started


def _output(command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{join(command)[:200]}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def _size(folder: Path) -> int:
    """Return the bytes of all files of a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
