"""Holds rendered manifests against their schemas; a finding is a line ``FILE: KIND/NAME: what``.

It runs in .kaiten/deploy, as what it imports is there: kubernetes-validate for what Kubernetes
itself knows, strictly, in two of its versions; cloudcoil's models of the custom resources of KEDA
and of the Prometheus operator. For KServe there are none: its pod is held against Kubernetes', and
what it adds against the few fields that are used here.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from kubernetes_validate import SchemaNotFoundError, ValidationError, validate
from pydantic import BaseModel
from pydantic import ValidationError as ModelError

# The first that has preStop.sleep without a feature gate, and the newest that is known here.
VERSIONS = ("1.30", "1.37")
CUSTOM = {model.__name__: model for model in (ScaledObject, PrometheusRule, ServiceMonitor)}
# What a predictor has beside the fields of a pod.
PREDICTOR = {"minReplicas": int, "maxReplicas": int, "timeout": int}

Manifest = dict[str, Any]


def findings(manifest: Manifest) -> Iterator[str]:
    """Yield the faults of a manifest."""
    kind = str(manifest.get("kind"))
    if kind in CUSTOM:
        return _of_custom(manifest, CUSTOM[kind])
    if kind == "InferenceService":
        return _of_inference_service(manifest)
    return _of_kubernetes(manifest)


def _of_kubernetes(manifest: Manifest) -> Iterator[str]:
    for version in VERSIONS:
        try:
            validate(manifest, version, strict=True)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.absolute_path)
            yield f"Kubernetes {version}: {where}: {error.message}"
        except SchemaNotFoundError as error:
            yield f"Kubernetes {version}: {error.message}"


def _of_custom(manifest: Manifest, model: type[BaseModel]) -> Iterator[str]:
    try:
        parsed = model.model_validate(manifest)
    except ModelError as error:
        for detail in error.errors():
            yield f"{'.'.join(str(part) for part in detail['loc'])}: {detail['msg']}"
        return
    # The models pass over what they do not know; it is what they do not give back.
    dump = parsed.model_dump(mode="json", by_alias=True, exclude_unset=True)
    yield from _unknown_fields(manifest, dump, "")


def _unknown_fields(part: object, dump: object, where: str) -> Iterator[str]:
    if isinstance(part, dict) and isinstance(dump, dict):
        for key, value in part.items():
            if key in dump:
                yield from _unknown_fields(value, dump[key], f"{where}.{key}")
            else:
                yield f"{where.lstrip('.')}: no such field: {key}"
    elif isinstance(part, list) and isinstance(dump, list):
        for index, (part_item, dump_item) in enumerate(zip(part, dump, strict=True)):
            yield from _unknown_fields(part_item, dump_item, f"{where}.{index}")


def _of_inference_service(manifest: Manifest) -> Iterator[str]:
    if manifest.get("apiVersion") != "serving.kserve.io/v1beta1":
        yield f"apiVersion: {manifest.get('apiVersion')} is not serving.kserve.io/v1beta1"
    spec = manifest.get("spec", {})
    for key in spec.keys() - {"predictor"}:
        yield f"spec: no such field, or none that is looked at here: {key}"
    predictor = spec.get("predictor", {})
    for key, kind in PREDICTOR.items():
        if not isinstance(predictor.get(key, kind()), kind):
            yield f"spec.predictor.{key}: is no {kind.__name__}"
    pod = {key: value for key, value in predictor.items() if key not in PREDICTOR}
    names = [container.get("name") for container in pod.get("containers", [])]
    if names != ["kserve-container"]:
        yield "spec.predictor.containers: KServe takes one for its own by the name kserve-container"
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "predictor"}}
    yield from _of_kubernetes({**head, "spec": pod})


def main(paths: list[str]) -> None:
    """Write the faults of the manifests in these files to standard output."""
    for path in paths:
        for manifest in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
            name = f"{manifest.get('kind')}/{manifest.get('metadata', {}).get('name')}"
            for fault in findings(manifest):
                sys.stdout.write(f"{path}: {name}: {fault}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
