"""What make installs, and the targets of a release with programs in place of docker and others."""

import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT

DIGEST = "sha256:" + "ab12" * 16
IMAGE = "registry.example:5000/team/kaiten"
IDENTITY = "https://github.com/o/r/.github/workflows/release.yaml@refs/heads/main"
# docker tells of another registry's copy first.
FAKE = f"""#!/bin/bash
echo "${{0##*/}} $*" >> "$CALLS"
[[ $* != "image inspect"* ]] || printf '%s\\n' other.example/kaiten@{DIGEST} {IMAGE}@{DIGEST} ""
exit "${{CODE:-0}}"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("docker", "grype", "cosign"):
        program = tmp_path / name
        program.write_text(FAKE, "utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path


def make(target: str, *options: str, **arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--silent", "--directory", str(ROOT), *options, target]
    environment = os.environ | arguments
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def calls(programs: Path) -> list[str]:
    file = programs / "calls"
    return file.read_text("utf-8").splitlines() if file.exists() else []


def test_push_prints_the_digest_in_the_registry_that_was_pushed_to(programs: Path) -> None:
    done = make("push", IMAGE=f"{IMAGE}:1.0.0-cpu")
    assert done.stdout == f"{IMAGE}@{DIGEST}\n"
    assert calls(programs)[0] == f"docker push --quiet {IMAGE}:1.0.0-cpu"


def test_a_scan_fails_on_what_can_be_mended(programs: Path) -> None:
    assert make("scan", IMAGE="kaiten:1").returncode == 0
    assert calls(programs) == ["grype docker:kaiten:1 --only-fixed --fail-on high"]
    assert make("scan", IMAGE="kaiten:1", CODE="2").returncode != 0


def test_a_signature_is_made_and_proved_by_digest(programs: Path) -> None:
    by_digest = f"{IMAGE}@{DIGEST}"
    assert make("sign", IMAGE=by_digest).returncode == 0
    assert make("verify-signature", IMAGE=by_digest, IDENTITY=IDENTITY).returncode == 0
    signed, verified = calls(programs)
    assert signed == f"cosign sign --yes {by_digest}"
    assert f"--certificate-identity {IDENTITY}" in verified
    assert verified.endswith(by_digest)
    assert make("verify-signature", IMAGE=by_digest, IDENTITY=IDENTITY, CODE="1").returncode != 0


@pytest.mark.parametrize("target", ["scan", "push", "sign", "verify-signature", "rollback-deploy"])
def test_what_is_missing_is_named_with_the_remedy(programs: Path, target: str) -> None:
    done = make(target)
    assert done.returncode != 0
    assert f"is missing: make {target} " in done.stderr
    assert calls(programs) == []


@pytest.mark.parametrize("image", ["$(shell touch {mark})", "a;touch {mark}", "`touch {mark}`"])
@pytest.mark.parametrize("target", ["scan", "push", "sign"])
def test_an_argument_is_no_command(programs: Path, target: str, image: str) -> None:
    mark = programs / "mark"
    make(target, IMAGE=image.format(mark=mark))
    assert calls(programs)
    assert not mark.exists()


def installed_extras(target: str) -> list[str]:
    """Return the extras that a target would install into a new environment, in order."""
    done = make(target, "--dry-run", "--what-if=pyproject.toml", MODEL="m:1.0.0")
    assert done.returncode == 0, done.stderr
    return re.findall(r'-e "\.\[(\w+)\]"', done.stdout)


def test_serving_installs_no_development_tools() -> None:
    assert installed_extras("serve") == ["quickstart"]
    assert installed_extras("package") == ["quickstart"]


def test_development_tools_are_added_to_the_same_environment() -> None:
    assert installed_extras("env") == ["quickstart", "dev"]


class _TorchPage(BaseHTTPRequestHandler):
    """The page of an index that lists the builds of torch."""

    def do_GET(self) -> None:
        self.send_response(HTTPStatus.OK if self.path == "/cpu/torch/" else HTTPStatus.NOT_FOUND)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        pass


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an index of CPU builds on a machine that has no NVIDIA device and no other source."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HAS_NVIDIA", "false")
    monkeypatch.setenv("TORCH_SOURCE", "")
    with ThreadingHTTPServer(("127.0.0.1", 0), _TorchPage) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cpu"
        server.shutdown()
        thread.join()


def test_torch_is_the_cpu_build_without_an_nvidia_device(index: str) -> None:
    done = make("torch-options", CPU_INDEX=index)
    assert (done.stdout, done.stderr) == (f"--extra-index-url {index}\n", "")
    assert make("torch-options", CPU_INDEX=index, HAS_NVIDIA="true").stdout == ""


def test_index_that_does_not_answer_is_left_out_with_a_line(index: str) -> None:
    done = make("torch-options", CPU_INDEX=f"{index}/missing")
    assert done.returncode == 0
    assert done.stdout == ""
    assert f"{index}/missing cannot be reached" in done.stderr
    assert "set TORCH_SOURCE" in done.stderr


@pytest.mark.parametrize(
    ("source", "option"),
    [("https://i.example/cpu", "--extra-index-url"), ("/wheels", "--find-links")],
)
def test_named_source_of_torch_comes_first(index: str, source: str, option: str) -> None:
    done = make("torch-options", CPU_INDEX=index, TORCH_SOURCE=source)
    assert done.stdout == f"{option} {source}\n"
