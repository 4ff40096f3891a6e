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
    KUBECTL_MISSING,
    KUBERNETES,
    OVERLAYS,
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

    documents: list[Manifest]

    def manifest(self, kind: str) -> Manifest:
        (manifest,) = [manifest for manifest in self.documents if manifest["kind"] == kind]
        return manifest

    def has(self, kind: str) -> bool:
        return any(manifest["kind"] == kind for manifest in self.documents)

    @property
    def pod(self) -> dict[str, Any]:
        """What the pod is made of, by a Deployment or by KServe."""
        if self.has("InferenceService"):
            predictor: dict[str, Any] = self.manifest("InferenceService")["spec"]["predictor"]
            return predictor
        template: dict[str, Any] = self.manifest("Deployment")["spec"]["template"]["spec"]
        return template

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of ConfigMaps and of the container, without those of the pod's fields."""
        maps = [source["configMapRef"]["name"] for source in self.container.get("envFrom", [])]
        variables: dict[str, str] = {}
        for manifest in self.documents:
            if manifest["kind"] == "ConfigMap" and manifest["metadata"]["name"] in maps:
                variables |= manifest["data"]
        named = {
            variable["name"]: variable["value"]
            for variable in self.container["env"]
            if "value" in variable
        }
        return {**variables, **named}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rendered]:
    if not shutil.which("kubectl"):
        pytest.skip(KUBECTL_MISSING)
    folders = kustomizations(tmp_path_factory.mktemp("kustomizations"))
    return {name: Rendered(manifests(render(folder))) for name, folder in folders.items()}


def settings(kustomization: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Read the settings as a pod of these manifests would, with a secret of its own."""
    (tmp_path / "secret").write_text(token_hex(32), encoding="utf-8")
    fields = {
        variable["name"]: "1"
        for variable in kustomization.container["env"]
        if "valueFrom" in variable
    }
    overrides = {
        "KAITEN_ENVIRONMENT": "production",
        "KAITEN_AUTH__SECRET_FILE": str(tmp_path / "secret"),
    }
    for name, value in {**kustomization.environment, **fields, **overrides}.items():
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
    pod_settings = settings(rendered[name], tmp_path, monkeypatch)
    assert pod_settings.serving.request_timeout_s == 30
    assert pod_settings.rate_limit.concurrency == 100
    assert pod_settings.runners.threads == 1
    assert pod_settings.gateway.docs == "closed"
    gpu = name.startswith("gpu")
    assert pod_settings.batching.max_batch_items == (None if gpu else 32)
    assert pod_settings.runners.device == ("cuda" if gpu else "auto")


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_has_time_to_end(
    rendered: dict[str, Rendered], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kustomization = rendered[name]
    stop_s = kustomization.container["lifecycle"]["preStop"]["sleep"]["seconds"]
    timeout_s = settings(kustomization, tmp_path, monkeypatch).serving.request_timeout_s
    grace_s = kustomization.pod["terminationGracePeriodSeconds"]
    # No manifest changes it.
    drain_s = int(ENVIRONMENT["KAITEN_SERVING__DRAIN_S"])
    assert "KAITEN_SERVING__DRAIN_S" not in str(kustomization)
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
    requests = {
        key: container[f"{key}Probe"]["httpGet"] for key in ("startup", "liveness", "readiness")
    }
    assert {key: request["path"] for key, request in requests.items()} == {
        "startup": "/readyz",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    open_to_all = {spec.path for spec in probes.ROUTES if spec.scope is None}
    assert {request["path"] for request in requests.values()} <= open_to_all
    (port,) = container["ports"]
    assert {request["port"] for request in requests.values()} <= {
        port["name"],
        port["containerPort"],
    }


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
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
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
    (threads,) = [
        variable for variable in container["env"] if variable["name"] == "KAITEN_RUNNERS__THREADS"
    ]
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
    deployment = rendered[name].manifest("Deployment")
    assert rendered[name].container["resources"]["requests"] == {"cpu": cpu, "memory": memory}
    # With an autoscaler, an apply must not reset the number of replicas.
    assert deployment["spec"].get("replicas") == replicas
    rolling = deployment["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxUnavailable": 0, "maxSurge": 1}


def test_the_autoscaler_is_productions_and_keda_takes_its_place(
    rendered: dict[str, Rendered],
) -> None:
    scaled = [
        name
        for name, kustomization in rendered.items()
        if kustomization.has("HorizontalPodAutoscaler")
    ]
    assert scaled == ["production"]
    spec = rendered["production"].manifest("HorizontalPodAutoscaler")["spec"]
    queues = rendered["production-keda"].manifest("ScaledObject")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
    assert (queues["minReplicaCount"], queues["maxReplicaCount"]) == (2, 10)
    assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 70


@pytest.mark.parametrize("name", ["production", "gpu"])
def test_keda_asks_for_the_queues_of_its_own_namespace(
    rendered: dict[str, Rendered], name: str
) -> None:
    kustomization = rendered[f"{name}-keda"]
    namespace = kustomization.manifest("Deployment")["metadata"]["namespace"]
    scaled = kustomization.manifest("ScaledObject")
    assert scaled["metadata"]["namespace"] == namespace
    trigger = scaled["spec"]["triggers"][0]["metadata"]
    assert trigger["query"] == f'sum(kaiten_queue_items{{namespace="{namespace}"}})'
    size = rendered["production"].environment["KAITEN_BATCHING__MAX_BATCH_ITEMS"]
    assert int(trigger["threshold"]) == 2 * int(size)


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_selects_pods_selects_these(rendered: dict[str, Rendered], name: str) -> None:
    kustomization = rendered[name]
    labels = kustomization.manifest("Deployment")["spec"]["template"]["metadata"]["labels"]
    service = kustomization.manifest("Service")
    monitor = kustomization.manifest("ServiceMonitor")["spec"]
    selectors = [
        kustomization.manifest("Deployment")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        kustomization.manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        kustomization.manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(
            constraint["labelSelector"]["matchLabels"]
            for constraint in kustomization.pod["topologySpreadConstraints"]
        ),
    ]
    assert all(selector == labels for selector in selectors)
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()


@pytest.mark.parametrize("name", OVERLAYS)
def test_one_namespace_holds_all_and_takes_only_restricted_pods(
    rendered: dict[str, Rendered], name: str
) -> None:
    namespace = rendered[name].manifest("Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    rest = [
        manifest["metadata"]
        for manifest in rendered[name].documents
        if manifest["kind"] != "Namespace"
    ]
    assert {metadata["namespace"] for metadata in rest} == {namespace["name"]}


@pytest.mark.parametrize("name", OVERLAYS)
def test_only_the_ports_that_are_served_are_open(rendered: dict[str, Rendered], name: str) -> None:
    kustomization = rendered[name]
    (port,) = kustomization.container["ports"]
    (served,) = kustomization.manifest("Service")["spec"]["ports"]
    policy = kustomization.manifest("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = [policy_port["port"] for rule in policy["ingress"] for policy_port in rule["ports"]]
    assert {*opened, served["targetPort"]} == {port["name"]}
    monitored_ports = {
        endpoint["port"]
        for endpoint in kustomization.manifest("ServiceMonitor")["spec"]["endpoints"]
    }
    assert monitored_ports == {served["name"]}


def test_the_network_is_open_to_whom_the_file_names(rendered: dict[str, Rendered]) -> None:
    """kustomize puts common labels into the selectors of others as well, if it is let."""
    policy = rendered["production"].manifest("NetworkPolicy")["spec"]
    peer_lists = [
        *(rule["from"] for rule in policy["ingress"]),
        *(rule["to"] for rule in policy["egress"]),
    ]
    selected = [
        peer.get("podSelector", {}).get("matchLabels") for peers in peer_lists for peer in peers
    ]
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
    production, kserve = rendered["production"], rendered["kserve"]
    same = ("image", "resources", "securityContext", "lifecycle", "volumeMounts")
    assert {key: kserve.container[key] for key in same} == {
        key: production.container[key] for key in same
    }
    assert kserve.environment == production.environment
    for key in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert {**kserve.container[key], "httpGet": 0} == {
            **production.container[key],
            "httpGet": 0,
        }
    for key in ("volumes", "securityContext", "terminationGracePeriodSeconds"):
        assert kserve.pod[key] == production.pod[key]


def test_prometheus_gives_the_jobs_that_the_rules_go_by(rendered: dict[str, Rendered]) -> None:
    matchers = re.findall(r'job=~?"([^"]+)"', rules.RULES.read_text("utf-8"))
    rule_jobs = {job for matcher in matchers for job in matcher.split("|")}
    kustomization = rendered["production"]
    endpoints = kustomization.manifest("ServiceMonitor")["spec"]["endpoints"]
    jobs = {
        relabeling["replacement"]
        for endpoint in endpoints
        for relabeling in endpoint["relabelings"]
        if relabeling.get("targetLabel") == "job"
    }
    assert jobs | {kustomization.manifest("Service")["metadata"]["name"]} == rule_jobs


def test_prometheus_keeps_our_labels(rendered: dict[str, Rendered]) -> None:
    """What the operator calls a target by, a metric's label of the same name would give way to."""
    metric_labels = set().union(*labels_by_name(Exposition().page()).values())
    target_labels = {
        "namespace",
        "service",
        "pod",
        "container",
        "endpoint",
        "job",
        "instance",
        "node",
    }
    for endpoint in rendered["production"].manifest("ServiceMonitor")["spec"]["endpoints"]:
        dropped = {
            relabeling["regex"]
            for relabeling in endpoint["relabelings"]
            if relabeling.get("action") == "labeldrop"
        }
        assert dropped == metric_labels & target_labels


def test_an_overlay_of_ones_own_is_as_the_guide_says(
    rendered: dict[str, Rendered], tmp_path: Path
) -> None:
    (text,) = re.findall(r"```yaml\n# deploy/kubernetes/overlays/ours/.+\n([^`]+)```", GUIDE)
    below = os.path.relpath(KUBERNETES / "overlays" / "production", tmp_path)
    text = text.replace("../production", below).replace("sha256:…", f"sha256:{'1' * 64}")
    (tmp_path / "kustomization.yaml").write_text(text, encoding="utf-8")
    kustomization = Rendered(manifests(render(tmp_path)))
    assert kustomization.container["image"] == f"YOUR.REGISTRY/kaiten@sha256:{'1' * 64}"
    added = kustomization.environment.items() - rendered["production"].environment.items()
    assert added == {("KAITEN_PROFILES__TARGET", "s3://bucket/kaiten")}


def test_secrets_are_named_like_their_settings() -> None:
    secret_names = set(re.findall(r"\bkaiten_[a-z]+__[a-z_]+", GUIDE))
    assert secret_names <= {f"kaiten_{section}__{key}" for section, key in SECRETS}


def test_the_operators_rules_are_the_rules() -> None:
    assert rules.MANIFEST.read_text("utf-8") == rules.manifest()
    groups = yaml.safe_load(rules.RULES.read_text("utf-8"))["groups"]
    assert yaml.safe_load(rules.MANIFEST.read_text("utf-8"))["spec"]["groups"] == groups
