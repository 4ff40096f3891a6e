"""A real bento: built twice, and served as in a deployment, until SIGTERM."""

import json
import secrets
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import httpx

from lifecycle.packaging.bento import PROVENANCE, SBOM, bento_files
from tests.e2e.bentos import MODEL, Bento, kaiten
from tests.servers import (
    BIN,
    ROOT,
    TLS,
    Server,
    copied_store,
    free_port,
    quickstart_texts,
    running,
    until_ready,
)

SECRET = secrets.token_hex(32)
LANES = 8


def test_two_builds_of_one_commit_have_the_same_files(bento: Bento, tmp_path: Path) -> None:
    first = Path(bento.description["folder"])
    home = Path(bento.env["BENTOML_HOME"])
    other = copied_store(home, tmp_path / "other")
    # Where it is there already, it is not built again.
    shutil.rmtree(other / "bentos")
    env = {**bento.env, "BENTOML_HOME": str(other)}
    description = json.loads(kaiten(env, "build", "--model", MODEL, "--json"))
    second = Path(description["folder"])
    assert first != second
    assert bento_files(first) == bento_files(second)
    assert {name: value for name, value in description.items() if name != "folder"} == {
        name: value for name, value in bento.description.items() if name != "folder"
    }
    for name in (SBOM, PROVENANCE):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    differing_lines = [
        (first_line, second_line)
        for first_line, second_line in zip(
            (first / "bento.yaml").read_text().splitlines(),
            (second / "bento.yaml").read_text().splitlines(),
            strict=True,
        )
        if first_line != second_line
    ]
    assert [first_line.partition(":")[0] for first_line, _ in differing_lines] == ["creation_time"]


def test_bento_is_there_once(bento: Bento) -> None:
    folder = Path(bento.description["folder"])
    mtime_ns = (folder / PROVENANCE).stat().st_mtime_ns
    assert json.loads(kaiten(bento.env, "build", "--model", MODEL, "--json")) == bento.description
    assert (folder / PROVENANCE).stat().st_mtime_ns == mtime_ns
    # One that was killed half-way is made again.
    (folder / PROVENANCE).unlink()
    assert json.loads(kaiten(bento.env, "build", "--model", MODEL, "--json")) == bento.description
    assert (folder / PROVENANCE).is_file()


def test_bento_that_was_changed_is_refused_and_restored_by_its_remedy(
    bento: Bento, tmp_path: Path
) -> None:
    file = Path(bento.description["folder"]) / "src" / "service.py"
    before = file.read_bytes()
    file.write_bytes(before + b"# changed\n")
    containerize = [str(BIN / "kaiten"), "containerize", bento.description["bento"]]
    for command in (containerize, [str(BIN / "kaiten"), "build", "--model", MODEL]):
        done = subprocess.run(
            command, env=bento.env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "was changed after it was built" in done.stderr
    folder = Path(bento.description["folder"])
    env = {**bento.env, "KAITEN_AUTH__SECRET": SECRET}
    command = [str(BIN / "kaiten"), "doctor", bento.tag, "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    (problem,) = json.loads(done.stdout)["problems"]
    assert problem["field"] == "bento"
    assert f"First move {folder} out of the store." in problem["reason"]

    # Each of the two remedies.
    shutil.move(folder, tmp_path / "changed")
    assert json.loads(kaiten(bento.env, "build", "--model", MODEL, "--json")) == bento.description
    exported = str(tmp_path / "exported.tar")
    for arguments in (("export", bento.tag, exported), ("import", exported)):
        bentoml = [str(BIN / "bentoml"), *arguments]
        subprocess.run(bentoml, env=bento.env, check=True, capture_output=True)
        if arguments[0] == "export":
            shutil.move(folder, tmp_path / "moved")
    assert json.loads(kaiten(env, "doctor", bento.tag, "--json"))["problems"] == []


def test_doctor_examines_the_bento_and_not_the_checkout(bento: Bento) -> None:
    env = {**bento.env, "KAITEN_AUTH__SECRET": SECRET}
    before = bento_files(bento.folder)
    for name in (bento.tag, "kaiten_service:latest", str(bento.folder)):
        diagnosis = json.loads(kaiten(env, "doctor", name, "--json"))
        assert diagnosis["ok"]
        assert diagnosis["in_force"]["settings"] == str(bento.folder / "src" / "kaiten.yaml")
        assert diagnosis["in_force"]["environment"] == "production"
        assert [model["tag"] for model in diagnosis["models"]] == [MODEL]
        assert diagnosis["bento"]["tag"] == bento.tag
        assert diagnosis["bento"]["packages"] > 80
    assert bento_files(bento.folder) == before
    assert not list(bento.folder.rglob("__pycache__"))


def test_bento_installs_pinned_packages_and_no_torch(bento: Bento) -> None:
    folder = Path(bento.description["folder"])
    lines = (folder / "env/python/requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert len(pins) > 80
    assert all("==" in line for line in pins)
    names = {line.partition("==")[0] for line in pins}
    assert names >= {"bentoml", "onnxruntime", "psycopg"}
    assert not names & {"torch", "transformers", "onnx"}
    bill = json.loads((folder / SBOM).read_text())
    assert {component["name"] for component in bill["components"]} == names | {"support-intent"}


def test_bento_holds_the_listed_files_and_its_model_pinned(bento: Bento) -> None:
    source = Path(bento.description["folder"]) / "src"
    names = {path.relative_to(source).parts[0] for path in source.rglob("*") if path.is_file()}
    assert names == {
        "bentofile.yaml", "cli", "configuration.yaml", "gateway", "kaiten", "kaiten.yaml",
        "lifecycle", "monitors", "runners", "server", "service.py",
    }  # fmt: skip
    assert f"models: [{MODEL}]" in (source / "kaiten.yaml").read_text()


def test_bento_drains_before_it_ends(bento: Bento, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    env = {**bento.env, "KAITEN_AUTH__SECRET": SECRET, "KAITEN_SERVING__DRAIN_S": "2"}
    env["KAITEN_HOME"] = ".kaiten"
    command = [
        str(BIN / "bentoml"),
        "serve",
        bento.description["bento"],
        "--port",
        str(port := free_port()),
    ]
    with running(command, env, cwd=elsewhere) as process:
        url = f"http://127.0.0.1:{port}"
        process.wait_for("Completed async startup hook")
        until_ready(url)
        server = Server(url, process, env)
        token = server.token()
        lanes = [Lane(url, token, number) for number in range(LANES)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            assert lane.steady.wait(60)
        process.popen.send_signal(signal.SIGTERM)
        process.wait_for('"draining"')
        with server.client() as client:
            ready = client.get("/readyz").status_code
            metrics = client.get("/metrics").text
        for lane in lanes:
            lane.join(60)
        code = process.popen.wait(60)

    assert not [lane.failure for lane in lanes if lane.failure]
    assert all(lane.connection_closed for lane in lanes)
    assert ready == 503
    assert f'bento="{bento.description["bento"].partition(":")[2]}"' in metrics
    assert 'kaiten_model_info{digest="' in metrics
    assert code == 0
    assert '"environment": "production"' in process.log
    # State lies where the server was started, never in the bento.
    assert list((elsewhere / ".kaiten" / "drift" / "spool").rglob("*.npy"))
    assert not list((Path(env["BENTOML_HOME"]) / "bentos").rglob(".kaiten"))


class Lane(threading.Thread):
    """A caller that uses one connection until an answer closes it."""

    def __init__(self, url: str, token: str, number: int) -> None:
        super().__init__(daemon=True)
        self._url, self._token, self._texts = url, token, quickstart_texts()[number::LANES]
        self.steady = threading.Event()
        self.connection_closed = False
        self.failure = ""

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self._token}"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=60, verify=TLS) as client:
            try:
                while not self.connection_closed:
                    self._ask(client)
            except (httpx.HTTPError, AssertionError) as error:
                self.failure = repr(error)
        self.steady.set()

    def _ask(self, client: httpx.Client) -> None:
        for number, text in enumerate(self._texts):
            answer = client.post("/api/v1/predict", json={"text": text})
            assert answer.status_code == 200, answer.text
            if number > 5:
                self.steady.set()
            if answer.headers.get("Connection") == "close":
                self.connection_closed = True
                return
