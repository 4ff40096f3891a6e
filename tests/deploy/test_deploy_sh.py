"""deploy.sh against a cluster that is a list of calls; the real kubectl renders the overlay."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT

KUBECTL = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(KUBECTL is None, reason="needs kubectl: https://kubernetes.io/docs")

OVERLAYS = ROOT / "deploy" / "kubernetes" / "overlays"
DIGEST = "sha256:" + "ab12" * 16
IMAGE = f"registry.example/team/kaiten@{DIGEST}"
URL = "https://kaiten.example"
MODEL = "support-intent:1.0.0"
OVERLAY = {
    "kustomization.yaml": "namespace: kaiten-staging\nresources: [deployment.yaml]\n",
    "deployment.yaml": """
apiVersion: apps/v1
kind: Deployment
metadata: {name: kaiten}
spec: {template: {spec: {containers: [{name: kaiten, image: "other@sha256:0"}]}}}
""",
}
# Writes its calls down; fails at those that FAIL names, "2 rollout status" at the second of its
# kind; and, at that which HANG names, says so in a pipe and waits for ever in another.
FAKE_KUBECTL = """#!/bin/bash
echo "kubectl $*" >> "$CALLS"
call=" $* "
case "$call" in *" kustomize "*) exec "$KUBECTL" "$@" ;; esac
case "$call" in *" apply "*) cp "${!#}" "$APPLIED" ;; esac
while read -r nth what; do
    [[ -n $what && $call == *" $what "* && $(grep -c " $what " "$CALLS") == "$nth" ]] && exit 1
done <<< "$FAIL"
if [[ -n $HANG && $call == *" $HANG "* ]]; then
    echo hanging > "$PIPE"
    exec cat "$PIPE.never"
fi
case "$call" in
*" get deployment "*containers*) printf %s "$SERVED" ;;
*" get deployment "*taken-back*) printf %s "$TAKEN" ;;
*" get deployment "*) printf %s "$REVISION" ;;
*" exec "*) echo a-token ;;
esac
"""
FAKE_KAITEN = """#!/bin/bash
echo "kaiten $*" >> "$CALLS"
file=$(sed 's/.*--token-file \\([^ ]*\\).*/\\1/' <<< "$*")
echo "token $(stat -c %a "$file") $(cat "$file")" >> "$CALLS"
exit "$SMOKE"
"""


@dataclass
class Cluster:
    """A checkout with one overlay, and the calls that its script makes."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def calls(self) -> list[str]:
        file = self.root / "calls"
        return file.read_text("utf-8").splitlines() if file.exists() else []

    @property
    def applied(self) -> str:
        return (self.root / "applied").read_text("utf-8")

    def calls_of(self, command: str) -> list[str]:
        return [call for call in self.calls if f" {command}" in call]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        paths = {name: str(self.root / name) for name in ("calls", "applied", "pipe")}
        environment = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "KUBECTL": KUBECTL or "",
            "REVISION": "7",
            "SERVED": IMAGE,
            "TAKEN": "",
            "FAIL": "",
            "HANG": "",
            "SMOKE": "0",
            **{name.upper(): path for name, path in paths.items()},
            **self.environment,
        }
        return subprocess.Popen(
            [str(self.root / "deploy" / "deploy.sh"), *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        self.environment = environment
        with self.start(*arguments) as process:
            _, stderr = process.communicate(timeout=60)
        return process.returncode, stderr

    def apply(self, **environment: str) -> tuple[int, str]:
        return self.run("apply", "staging", IMAGE, URL, MODEL, **environment)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    overlay = tmp_path / "deploy" / "kubernetes" / "overlays" / "staging"
    overlay.mkdir(parents=True)
    shutil.copy(ROOT / "deploy" / "deploy.sh", tmp_path / "deploy")
    for name, content in OVERLAY.items():
        (overlay / name).write_text(content, "utf-8")
    (tmp_path / "bin").mkdir()
    for name, content in {"kubectl": FAKE_KUBECTL, "kaiten": FAKE_KAITEN}.items():
        program = tmp_path / "bin" / name
        program.write_text(content, "utf-8")
        program.chmod(0o755)
    return Cluster(tmp_path)


def test_a_deployment_is_applied_awaited_and_proved(cluster: Cluster) -> None:
    before = sorted(cluster.root.glob("deploy/**/*"))
    code, stderr = cluster.apply()
    assert code == 0, stderr
    assert f"{IMAGE} serves in kaiten-staging" in stderr
    verbs = ("kustomize", "get deployment", "apply", "rollout status", "exec", "smoke", "annotate")
    calls = [call for call in cluster.calls if not call.startswith("token ")]
    kinds = [next(verb for verb in verbs if f" {verb} " in f"{call} ") for call in calls]
    assert kinds == [*verbs[:-1], "get deployment", "annotate"]
    assert f"image: {IMAGE}" in cluster.applied
    assert f"change-cause: {IMAGE}" in cluster.applied
    assert "namespace: kaiten-staging" in cluster.applied
    assert "other@" not in cluster.applied
    assert sorted(cluster.root.glob("deploy/**/*")) == before


AUTOSCALER = ROOT / "deploy/kubernetes/overlays/production/autoscaler.yaml"


def test_a_first_deployment_has_the_pods_that_its_autoscaler_begins_with(cluster: Cluster) -> None:
    overlay = cluster.root / "deploy" / "kubernetes" / "overlays" / "staging"
    resources = "namespace: kaiten-staging\nresources: [deployment.yaml, autoscaler.yaml]\n"
    (overlay / "kustomization.yaml").write_text(resources, "utf-8")
    shutil.copy(AUTOSCALER, overlay)
    assert cluster.apply(REVISION="")[0] == 0
    assert [call.split(" scale ")[1] for call in cluster.calls_of("scale")] == [
        "deployment/kaiten --replicas=3"
    ]
    # Later, their number is the autoscaler's.
    assert cluster.apply(REVISION="7")[0] == 0
    assert len(cluster.calls_of("scale")) == 1


def test_the_token_is_in_a_file_of_ours_alone_and_gone_after_it(cluster: Cluster) -> None:
    cluster.apply()
    (smoke,) = cluster.calls_of("smoke http")
    assert smoke.startswith(f"kaiten smoke {URL} --token-file ")
    assert smoke.endswith(f" --model {MODEL}")
    assert [call for call in cluster.calls if "a-token" in call] == ["token 600 a-token"]
    assert not Path(smoke.split()[4]).exists()


def test_a_token_of_another_issuer_can_be_brought(cluster: Cluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of-another", "utf-8")
    code, _ = cluster.run("verify", "staging", URL, TOKEN_FILE=str(token))
    assert code == 0
    assert cluster.calls[-1].endswith("of-another")
    assert "--model" not in cluster.calls[0]
    assert not cluster.calls_of("exec")
    assert token.exists()


@pytest.mark.parametrize(
    "broken",
    [{"FAIL": "1 rollout status"}, {"SMOKE": "1"}, {"FAIL": "1 exec"}, {"FAIL": "1 apply"}],
    ids=str,
)
def test_what_fails_is_taken_back(cluster: Cluster, broken: dict[str, str]) -> None:
    code, stderr = cluster.apply(**broken)
    assert code == 1
    assert "Revision 7 serves again." in stderr
    (undone,) = cluster.calls_of("rollout undo")
    assert undone.endswith(
        "--namespace kaiten-staging rollout undo deployment/kaiten --to-revision=7"
    )
    assert " rollout status " in cluster.calls[-2]
    assert cluster.calls[-1].endswith(f"kaiten/taken-back={IMAGE}")


OTHER = {"SERVED": "registry.example/team/kaiten@sha256:0", "REVISION": "7"}


def test_what_somebody_else_has_deployed_is_left_alone(cluster: Cluster) -> None:
    # Their revision is another by the time that it is asked for again.
    script = cluster.root / "bin" / "kubectl"
    later = 'printf %s "$(( REVISION + $(grep -c " get deployment " "$CALLS") - 1 ))"'
    script.write_text(script.read_text("utf-8").replace('printf %s "$REVISION"', later), "utf-8")
    for smoke in ("0", "1"):
        (cluster.root / "calls").unlink(missing_ok=True)
        code, stderr = cluster.apply(SMOKE=smoke, **OTHER)
        assert code == 3
        assert "somebody else deployed" in stderr
        assert not cluster.calls_of("rollout undo")


def test_what_was_never_applied_needs_no_way_back(cluster: Cluster) -> None:
    code, stderr = cluster.apply(FAIL="1 apply", **OTHER)
    assert code == 1
    assert "revision 7 still serves" in stderr
    assert not cluster.calls_of("rollout undo")


def test_rollback_after_one_that_was_taken_back_asks_how_far(cluster: Cluster) -> None:
    code, stderr = cluster.run("rollback", "staging", TAKEN=IMAGE)
    assert code == 2
    assert "was taken back" in stderr
    assert not cluster.calls_of("rollout undo")
    assert cluster.run("rollback", "staging", "5", TAKEN=IMAGE)[0] == 0


@pytest.mark.parametrize("broken", ["1 rollout undo", "2 rollout status"])
def test_what_can_not_be_taken_back_is_said_aloud(cluster: Cluster, broken: str) -> None:
    code, stderr = cluster.apply(FAIL=f"1 rollout status\n{broken}")
    assert code == 3
    assert "could not be brought back" in stderr
    assert "docs/runbook.md#roll-back" in stderr
    assert "serves again" not in stderr


def test_a_first_deployment_has_nothing_to_go_back_to(cluster: Cluster) -> None:
    code, stderr = cluster.apply(REVISION="", SMOKE="1")
    assert code == 1
    assert "Nothing served here before" in stderr
    assert not cluster.calls_of("rollout undo")


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Start children with default signal handlers, even if nohup or a shell set SIG_IGN."""
    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("revision", "undone"), [("7", 1), ("", 0)])
def test_an_interrupted_deployment_is_taken_back_at_once(
    cluster: Cluster, number: signal.Signals, revision: str, undone: int
) -> None:
    os.mkfifo(cluster.root / "pipe")
    os.mkfifo(cluster.root / "pipe.never")
    cluster.environment = {"HANG": "rollout status", "REVISION": revision}
    with cluster.start("apply", "staging", IMAGE, URL) as process:
        assert (cluster.root / "pipe").read_text("utf-8") == "hanging\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Interrupted." in stderr
    assert len(cluster.calls_of("rollout undo")) == undone
    assert not cluster.calls_of("smoke")


def test_an_interrupted_deployment_that_can_not_be_taken_back_says_so(cluster: Cluster) -> None:
    os.mkfifo(cluster.root / "pipe")
    os.mkfifo(cluster.root / "pipe.never")
    cluster.environment = {"HANG": "rollout status", "FAIL": "1 rollout undo"}
    with cluster.start("apply", "staging", IMAGE, URL) as process:
        assert (cluster.root / "pipe").read_text("utf-8") == "hanging\n"
        process.terminate()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "could not be brought back" in stderr


@pytest.mark.parametrize(
    "image",
    ["kaiten", "kaiten:1.0.0", "kaiten@sha256:ab12", f"kaiten@{DIGEST.upper()}", f"a\nb@{DIGEST}"],
)
def test_an_image_that_is_not_named_by_its_digest_is_refused(cluster: Cluster, image: str) -> None:
    code, stderr = cluster.run("apply", "staging", image, URL)
    assert code == 2
    assert "NAME@sha256:DIGEST" in stderr
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("kustomization.yaml", "resources: [deployment.yaml]\n", "names no namespace"),
        (
            "deployment.yaml",
            OVERLAY["deployment.yaml"].replace("name: kaiten}", "name: other}", 1),
            "named kaiten",
        ),
        ("deployment.yaml", "{", "can not be rendered"),
    ],
)
def test_an_overlay_that_does_not_fit_is_refused_before_anything_is_touched(
    cluster: Cluster, file: str, content: str, message: str
) -> None:
    (cluster.root / "deploy/kubernetes/overlays/staging" / file).write_text(content, "utf-8")
    code, stderr = cluster.apply()
    assert code == 2
    assert message in stderr
    assert not cluster.calls_of("apply")


def test_a_cluster_that_does_not_answer_is_reported(cluster: Cluster) -> None:
    code, stderr = cluster.apply(FAIL="1 get deployment")
    assert code == 2
    assert "KUBECONFIG" in stderr
    assert not cluster.calls_of("apply")


@pytest.mark.parametrize(
    "arguments",
    [(), ("apply",), ("apply", "staging", IMAGE), ("rollback",), ("destroy", "staging")],
    ids=str,
)
def test_a_wrong_call_shows_how(cluster: Cluster, arguments: tuple[str, ...]) -> None:
    code, stderr = cluster.run(*arguments)
    assert code == 2
    assert "deploy.sh apply OVERLAY NAME@sha256:DIGEST URL" in stderr
    assert "deploy.sh rollback OVERLAY" in stderr


@pytest.mark.parametrize("overlay", ["nowhere", "../staging", ""])
def test_an_overlay_that_is_not_there_is_refused(cluster: Cluster, overlay: str) -> None:
    code, stderr = cluster.run("rollback", overlay)
    assert code == 2
    assert "no overlay" in stderr


@pytest.mark.parametrize(("arguments", "option"), [((), ""), (("5",), " --to-revision=5")])
def test_rollback_by_hand(cluster: Cluster, arguments: tuple[str, ...], option: str) -> None:
    code, stderr = cluster.run("rollback", "staging", *arguments)
    assert code == 0
    assert f"Serving in kaiten-staging: {IMAGE}" in stderr
    (undone,) = cluster.calls_of("rollout undo")
    assert undone.endswith(f"rollout undo deployment/kaiten{option}")


@pytest.mark.parametrize("broken", ["1 rollout undo", "1 rollout status"])
def test_a_rollback_that_fails_says_so(cluster: Cluster, broken: str) -> None:
    code, stderr = cluster.run("rollback", "staging", FAIL=broken)
    assert code == 3
    assert "could not be brought back" in stderr


@pytest.mark.skipif(not OVERLAYS.exists(), reason="needs deploy/kubernetes")
def test_every_overlay_of_ours_can_be_deployed() -> None:
    files = list(OVERLAYS.glob("*/kustomization.yaml"))
    assert files
    for file in files:
        assert "\nnamespace: " in f"\n{file.read_text('utf-8')}", file
