import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import mypy
import pytest

from kaiten.settings.environment import ROOT

OPT_OUTS = {
    "BENTOML_DO_NOT_TRACK": "True",
    "WHYLOGS_NO_ANALYTICS": "True",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
HEAVY = {"torch", "transformers", "onnxruntime"}
STORES = {"redis", "sqlalchemy", "alembic", "psycopg"}
SERVER = {"service", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten"}


def run_in_new_process(code: str, home: Path) -> object:
    """Run code in a process that has nothing of this one's settings; return its ``result``."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in OPT_OUTS and not name.startswith("KAITEN_")
    }
    environment |= {"BENTOML_HOME": str(home), "KAITEN_HOME": str(home)}
    script = f"import json, os, sys\n{code}\nprint(json.dumps(result))"
    output = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    result: object = json.loads(output)
    return result


def loaded_by(module: str, home: Path) -> set[str]:
    """Return the packages that importing the module loads."""
    code = (
        "before = set(sys.modules)\n"
        f"import {module}\n"
        "result = sorted({name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    packages = run_in_new_process(code, home)
    assert isinstance(packages, list)
    return set(packages)


@pytest.mark.parametrize("module", ["cli", "runners.tasks"])
def test_frameworks_are_loaded_with_a_model_only(module: str, tmp_path: Path) -> None:
    assert not loaded_by(module, tmp_path) & {*HEAVY, *STORES}


def test_service_loads_no_framework_and_writes_no_file_when_imported(
    tmp_path: Path,
) -> None:
    loaded = loaded_by("service", tmp_path)
    assert loaded >= SERVER
    assert not loaded & {*HEAVY, *STORES}
    # BentoML makes its home's folders, empty, when it is asked where the home is.
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_choosing_onnx_loads_no_framework(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").touch()
    code = (
        # If there is a driver, torch is asked whether it can use it.
        "os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "from pathlib import Path\n"
        "from kaiten.settings.models import RunnerSettings\n"
        "from runners.engines import choose_engine\n"
        f"engine = choose_engine(Path({str(tmp_path)!r}), RunnerSettings()).engine\n"
        "result = [engine, *sys.modules]"
    )
    result = run_in_new_process(code, tmp_path)
    assert isinstance(result, list)
    assert result[0] == "onnx"
    assert not {*result[1:]} & HEAVY


@pytest.mark.parametrize("preset", [{}, dict.fromkeys(OPT_OUTS, "0")])
def test_importing_kaiten_opts_out_whatever_was_set(preset: dict[str, str], tmp_path: Path) -> None:
    code = (
        f"os.environ.update({preset})\n"
        "import kaiten\n"
        f"result = {{name: os.environ.get(name) for name in {[*OPT_OUTS]}}}"
    )
    assert run_in_new_process(code, tmp_path) == OPT_OUTS


def test_errors_need_only_the_standard_library(tmp_path: Path) -> None:
    assert loaded_by("kaiten.errors", tmp_path) - sys.stdlib_module_names == {"kaiten"}


def test_the_client_loads_nothing_of_the_server(tmp_path: Path) -> None:
    code = (
        "sys.path.insert(0, 'client')\n"
        "import kaiten_client\n"
        "result = sorted({name.partition('.')[0] for name in sys.modules})"
    )
    loaded = run_in_new_process(code, tmp_path)
    assert isinstance(loaded, list)
    assert {"kaiten_client", "httpx", "pydantic"} <= {*loaded}
    assert not {*loaded} & {*SERVER, "starlette", "bentoml", "jwt", *HEAVY}


# Modules of the standard library that Windows lacks, and those of which it lacks some names.
UNIX_MODULES = ("fcntl", "grp", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
PLATFORM_MODULES = ("asyncio", "errno", "os", "select", "signal", "socket", "time")


def stub_names(body: Sequence[ast.stmt], platform: str) -> Iterator[str]:
    """Yield the names that a type stub defines on a platform."""
    system = SimpleNamespace(platform=platform, version_info=sys.version_info)
    for node in body:
        match node:
            case ast.If():
                is_taken = eval(ast.unparse(node.test), {"sys": system})
                yield from stub_names(node.body if is_taken else node.orelse, platform)
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)


def unix_names(module: str) -> list[str]:
    """Return the names of a module that Linux has and Windows lacks, by mypy's stubs."""
    stubs = Path(mypy.__file__).parent / "typeshed" / "stdlib"
    stub = next(
        path
        for path in (stubs / f"{module}.pyi", stubs / module / "__init__.pyi")
        if path.is_file()
    )
    body = ast.parse(stub.read_text("utf-8")).body
    return sorted({*stub_names(body, "linux")} - {*stub_names(body, "win32")})


# As Windows does: without the Unix names, and with a lock file and an account of its own.
ON_WINDOWS = (
    # Other packages first, as this system's: only modules of ours are loaded again.
    "import importlib, cli, filelock\n"
    "filelock.FileLock = filelock.SoftFileLock\n"
    f"for name in [*sys.modules]:\n    if name.partition('.')[0] in {[*SERVER, 'cli']}:\n"
    "        del sys.modules[name]\n"
    f"sys.modules.update(dict.fromkeys({UNIX_MODULES}))\n"
    f"for module, names in { {name: unix_names(name) for name in PLATFORM_MODULES} }.items():\n"
    "    for name in names:\n        vars(importlib.import_module(module)).pop(name, None)\n"
    "sys.platform, os.getlogin = 'win32', lambda: 'operator'\n"
    "import cli\n"
)


def test_the_commands_load_on_windows(tmp_path: Path) -> None:
    code = f"{ON_WINDOWS}result = sorted(name for name in sys.modules if name.startswith('cli.'))"
    loaded = run_in_new_process(code, tmp_path)
    assert isinstance(loaded, list)
    commands = {f"cli.{file.stem}" for file in (ROOT / "cli").glob("*.py")}
    assert {*loaded} == commands - {"cli.__init__", "cli.__main__"}


def test_unix_names_are_those_that_windows_lacks() -> None:
    assert {"fork", "geteuid", "pread", "register_at_fork"} <= {*unix_names("os")}
    assert "poll" in unix_names("select")
    assert "AF_UNIX" in unix_names("socket")
    assert not {"getlogin", "getpid", "open", "replace"} & {*unix_names("os")}


def test_api_key_is_created_and_recorded_on_windows(tmp_path: Path) -> None:
    code = (
        f"{ON_WINDOWS}"
        "from typer.testing import CliRunner\n"
        "from monitors.logging.setup import configure_command_logging\n"
        "from monitors.logging.writer import flush\n"
        "configure_command_logging()\n"
        "def run(*arguments):\n"
        "    done = CliRunner().invoke(cli.app, ['api-key', *arguments], catch_exceptions=False)\n"
        "    return done.stdout.strip()\n"
        "key = run('create', '--subject', 'job', '--scope', 'predict')\n"
        "result = [key, run('revoke', key)]\n"
        "flush()\n"
    )
    result = run_in_new_process(code, tmp_path)
    assert isinstance(result, list)
    key, confirmation = result
    assert key.startswith("kaiten_")
    assert "Revoked the API key" in confirmation
    lines = (tmp_path / "audit.log").read_text("utf-8").splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["api_key_created", "revoked"]
