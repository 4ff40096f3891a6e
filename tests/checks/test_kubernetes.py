"""The manifests name real settings, and their parts fit together."""

import os
import re
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.container.generate import BENTO_UID_GID

from gateway.admin import probes
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import Settings, load_settings
from kaiten.settings.secrets import SECRET_SETTINGS as SECRETS
from lifecycle.packaging.image import ENVIRONMENT
from tests.deploy import rules
from tests.deploy.rendering import (
    KUBERNETES,
    OVERLAYS,
    WANTED,
    Manifest,
    kustomizations,
    manifests,
    render,
)
from tests.exposition import Exposition, labels_by_name

GUIDE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
# What a worker that is asked to end may take beyond the last request, and to write what it has.
GRACE_S = 10
# Of a start, on a whole core, and how much longer it may take on a part of one.
START_S, SLOWER = 5, 15
NAMES = [*OVERLAYS, "production-keda", "gpu-keda", "kserve"]


@dataclass(frozen=True)
class Rendered:
    """The manifests of one kustomization."""

    all: list[Manifest]

    def one(self, kind: str) -> Manifest:
        (found,) = [each for each in self.all if each["kind"] == kind]
        return found

    def has(self, kind: str) -> bool:
        return any(each["kind"] == kind for each in self.all)

    @property
    def pod(self) -> dict[str, Any]:
        """What the pod is made of, by a Deployment or by KServe."""
        if self.has("InferenceService"):
            predictor: dict[str, Any] = self.one("InferenceService")["spec"]["predictor"]
            return predictor
        template: dict[str, Any] = self.one("Deployment")["spec"]["template"]["spec"]
        return template

    @property
    def container(self) -> dict[str, Any]:
        (found,) = self.pod["containers"]
        return dict(found)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of ConfigMaps and of the container, without those of the pod's fields."""
        maps = [each["configMapRef"]["name"] for each in self.container.get("envFrom", [])]
        found: dict[str, str] = {}
        for each in self.all:
            if each["kind"] == "ConfigMap" and each["metadata"]["name"] in maps:
                found |= each["data"]
        named = {each["name"]: each["value"] for each in self.container["env"] if "value" in each}
        return {**found, **named}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    if not shutil.which("kubectl"):
        pytest.skip(WANTED)
    folders = kustomizations(tmp_path_factory.mktemp("kustomizations"))
    return {name: Rendered(manifests(render(folder))) for name, folder in folders.items()}


def settings(found: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as a pod of these manifests would, with a secret of its own."""
    (tmp_path / "secret").write_text(token_hex(32), encoding="utf-8")
    fields = {each["name"]: "1" for each in found.container["env"] if "valueFrom" in each}
    given = {
        "KAITEN_ENVIRONMENT": "production",
        "KAITEN_AUTH__SECRET_FILE": str(tmp_path / "secret"),
    }
    for name, value in {**found.environment, **fields, **given}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def quantity(text: str) -> float:
    """Return how much Kubernetes takes a quantity for."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"m": 0.001, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "": 1}[unit]


def seconds(probe: dict[str, int]) -> int:
    """Return how long a probe may fail before it counts."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def test_a_kustomization_is_rendered_by_each_name(rendered: dict[str, Rendered]) -> None:
    assert [*rendered] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_real_and_the_ones_that_were_asked_for(
    rendered: dict[str, Rendered],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = settings(rendered[name], tmp_path, monkeypatch)
    assert found.serving.request_timeout_s == 30
    assert found.rate_limit.concurrency == 100
    assert found.runners.threads == 1
    assert found.gateway.docs == "closed"
    gpu = name.startswith("gpu")
    assert found.batching.max_batch_items == (None if gpu else 32)
    assert found.runners.device == ("cuda" if gpu else "auto")


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_has_time_to_end(
    rendered: dict[str, Rendered], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = rendered[name]
    stop_s = found.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    timeout_s = settings(found, tmp_path, monkeypatch).serving.request_timeout_s
    grace_s = found.pod["terminationGracePeriodSeconds"]
    # No manifest changes it.
    drain_s = int(ENVIRONMENT["KAITEN_SERVING__DRAIN_S"])
    assert "KAITEN_SERVING__DRAIN_S" not in str(found)
    assert grace_s >= stop_s + drain_s + timeout_s + GRACE_S


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_has_time_to_start(rendered: dict[str, Rendered], name: str) -> None:
    container = rendered[name].container
    assert seconds(container["startupProbe"]) >= 2 * START_S * SLOWER
    # The Service first stops sending to a slow pod; Kubernetes restarts it much later.
    assert seconds(container["livenessProbe"]) > 2 * seconds(container["readinessProbe"])


@pytest.mark.parametrize("name", NAMES)
def test_probes_ask_routes_that_are_open(rendered: dict[str, Rendered], name: str) -> None:
    container = rendered[name].container
    asked = {
        key: container[f"{key}Probe"]["httpGet"] for key in ("startup", "liveness", "readiness")
    }
    assert {key: each["path"] for key, each in asked.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    open_to_all = {spec.path for spec in probes.ROUTES if spec.scope is None}
    assert {each["path"] for each in asked.values()} <= open_to_all
    (port,) = container["ports"]
    assert {each["port"] for each in asked.values()} <= {port["name"], port["containerPort"]}


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_is_bentomls_user_and_may_nothing(rendered: dict[str, Rendered], name: str) -> None:
    pod, container = rendered[name].pod, rendered[name].container
    assert container["ports"][0]["containerPort"] == BentoMLContainer.http.port.get() == 3000
    user = {pod["securityContext"][key] for key in ("runAsUser", "runAsGroup", "fsGroup")}
    assert user == {BENTO_UID_GID}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_mounted_and_fits(rendered: dict[str, Rendered], name: str) -> None:
    pod, container = rendered[name].pod, rendered[name].container
    volumes = {each["name"]: each for each in pod["volumes"]}
    places = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
    assert places.keys() == {"/tmp", "/var/lib/kaiten", "/run/secrets"}
    limit = quantity(container["resources"]["limits"]["memory"])
    assert quantity(places["/tmp"]["emptyDir"]["sizeLimit"]) <= limit / 10
    mounted = places["/run/secrets"]["projected"]
    assert mounted == {"defaultMode": 0o440, "sources": [{"secret": {"name": "kaiten"}}]}


@pytest.mark.parametrize("name", NAMES)
def test_threads_follow_the_request_as_there_is_no_limit_of_cpu(
    rendered: dict[str, Rendered], name: str
) -> None:
    container = rendered[name].container
    (threads,) = [each for each in container["env"] if each["name"] == "KAITEN_RUNNERS__THREADS"]
    reference = threads["valueFrom"]["resourceFieldRef"]
    assert (reference["resource"], reference["divisor"]) == ("requests.cpu", "1")
    assert "cpu" not in container["resources"]["limits"]
    # Kubernetes rounds up: never 0, which would stand for all cores of the node.
    assert ceil(quantity(container["resources"]["requests"]["cpu"])) >= 1


@pytest.mark.parametrize("name", NAMES)
def test_an_image_is_named_by_its_digest_and_nothing_else(
    rendered: dict[str, Rendered], name: str
) -> None:
    assert re.fullmatch(r"[a-z./-]+@sha256:[0-9a-f]{64}", rendered[name].container["image"])


@pytest.mark.parametrize(
    ("name", "cpu", "memory", "replicas"),
    [("staging", "250m", "512Mi", 1), ("production", "500m", "1Gi", None)],
)
def test_sizes_are_what_was_decided(
    rendered: dict[str, Rendered], name: str, cpu: str, memory: str, replicas: int | None
) -> None:
    deployment = rendered[name].one("Deployment")
    assert rendered[name].container["resources"]["requests"] == {"cpu": cpu, "memory": memory}
    # With an autoscaler, an apply must not reset the number of replicas.
    assert deployment["spec"].get("replicas") == replicas
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_autoscaler_is_productions_and_keda_takes_its_place(
    rendered: dict[str, Rendered],
) -> None:
    scaled = [name for name, each in rendered.items() if each.has("HorizontalPodAutoscaler")]
    assert scaled == ["production"]
    spec = rendered["production"].one("HorizontalPodAutoscaler")["spec"]
    queues = rendered["production-keda"].one("ScaledObject")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
    assert (queues["minReplicaCount"], queues["maxReplicaCount"]) == (2, 10)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 70


@pytest.mark.parametrize("name", ["production", "gpu"])
def test_keda_asks_for_the_queues_of_its_own_namespace(
    rendered: dict[str, Rendered], name: str
) -> None:
    found = rendered[f"{name}-keda"]
    namespace = found.one("Deployment")["metadata"]["namespace"]
    scaled = found.one("ScaledObject")
    assert scaled["metadata"]["namespace"] == namespace
    asked = scaled["spec"]["triggers"][0]["metadata"]
    assert asked["query"] == f'sum(kaiten_queue_items{{namespace="{namespace}"}})'
    size = rendered["production"].environment["KAITEN_BATCHING__MAX_BATCH_ITEMS"]
    assert int(asked["threshold"]) == 2 * int(size)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_selects_pods_selects_these(rendered: dict[str, Rendered], name: str) -> None:
    found = rendered[name]
    labels = found.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    service = found.one("Service")
    monitor = found.one("ServiceMonitor")["spec"]
    selectors = [
        found.one("Deployment")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        found.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        found.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(each["labelSelector"]["matchLabels"] for each in found.pod["topologySpreadConstraints"]),
    ]
    assert all(selector == labels for selector in selectors)
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("name", OVERLAYS)
def test_one_namespace_holds_all_and_takes_only_restricted_pods(
    rendered: dict[str, Rendered], name: str
) -> None:
    namespace = rendered[name].one("Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    rest = [each["metadata"] for each in rendered[name].all if each["kind"] != "Namespace"]
    assert {each["namespace"] for each in rest} == {namespace["name"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_the_ports_that_are_served_are_open(rendered: dict[str, Rendered], name: str) -> None:
    found = rendered[name]
    (port,) = found.container["ports"]
    (served,) = found.one("Service")["spec"]["ports"]
    policy = found.one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = [each["port"] for rule in policy["ingress"] for each in rule["ports"]]
    assert {*opened, served["targetPort"]} == {port["name"]}
    asked = {each["port"] for each in found.one("ServiceMonitor")["spec"]["endpoints"]}
    assert asked == {served["name"]}


def test_the_network_is_open_to_whom_the_file_names(rendered: dict[str, Rendered]) -> None:
    """kustomize puts common labels into the selectors of others as well, if it is let."""
    policy = rendered["production"].one("NetworkPolicy")["spec"]
    peers = [
        *(each["from"] for each in policy["ingress"]),
        *(each["to"] for each in policy["egress"]),
    ]
    selected = [peer.get("podSelector", {}).get("matchLabels") for each in peers for peer in each]
    name = "app.kubernetes.io/name"
    assert selected == [
        {name: "ingress-nginx"},
        {name: "prometheus"},
        {"k8s-app": "kube-dns"},
        {name: "redis"},
        {name: "postgresql"},
        None,
        None,
    ]


def test_kserves_container_is_productions(rendered: dict[str, Rendered]) -> None:
    ours, theirs = rendered["production"], rendered["kserve"]
    same = ("image", "resources", "securityContext", "lifecycle", "volumeMounts")
    assert {key: theirs.container[key] for key in same} == {
        key: ours.container[key] for key in same
    }
    assert theirs.environment == ours.environment
    for key in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert {**theirs.container[key], "httpGet": 0} == {**ours.container[key], "httpGet": 0}
    for key in ("volumes", "securityContext", "terminationGracePeriodSeconds"):
        assert theirs.pod[key] == ours.pod[key]


def test_prometheus_gives_the_jobs_that_the_rules_go_by(rendered: dict[str, Rendered]) -> None:
    named = re.findall(r'job=~?"([^"]+)"', rules.RULES.read_text("utf-8"))
    asked = {job for each in named for job in each.split("|")}
    found = rendered["production"]
    endpoints = found.one("ServiceMonitor")["spec"]["endpoints"]
    jobs = {
        relabeling["replacement"]
        for endpoint in endpoints
        for relabeling in endpoint["relabelings"]
        if relabeling.get("targetLabel") == "job"
    }
    assert jobs | {found.one("Service")["metadata"]["name"]} == asked


def test_prometheus_keeps_our_labels(rendered: dict[str, Rendered]) -> None:
    """What the operator calls a target by, a metric's label of the same name would give way to."""
    ours = set().union(*labels_by_name(Exposition().page()).values())
    theirs = {"namespace", "service", "pod", "container", "endpoint", "job", "instance", "node"}
    for each in rendered["production"].one("ServiceMonitor")["spec"]["endpoints"]:
        dropped = {one["regex"] for one in each["relabelings"] if one.get("action") == "labeldrop"}
        assert dropped == ours & theirs


def test_an_overlay_of_ones_own_is_as_the_guide_says(
    rendered: dict[str, Rendered], tmp_path: Path
) -> None:
    (text,) = re.findall(r"```yaml\n# deploy/kubernetes/overlays/ours/.+\n([^`]+)```", GUIDE)
    below = os.path.relpath(KUBERNETES / "overlays" / "production", tmp_path)
    text = text.replace("../production", below).replace("sha256:…", f"sha256:{'1' * 64}")
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    found = Rendered(manifests(render(tmp_path)))
    assert found.container["image"] == f"YOUR.REGISTRY/kaiten@sha256:{'1' * 64}"
    added = found.environment.items() - rendered["production"].environment.items()
    assert added == {("KAITEN_PROFILES__TARGET", "s3://bucket/kaiten")}


def test_secrets_are_named_like_their_settings() -> None:
    told = set(re.findall(r"\bkaiten_[a-z]+__[a-z_]+", GUIDE))
    assert told <= {f"kaiten_{section}__{key}" for section, key in SECRETS}


def test_the_operators_rules_are_the_rules() -> None:
    assert rules.MANIFEST.read_text("utf-8") == rules.manifest()
    groups = yaml.safe_load(rules.RULES.read_text("utf-8"))["groups"]
    assert yaml.safe_load(rules.MANIFEST.read_text("utf-8"))["spec"]["groups"] == groups
