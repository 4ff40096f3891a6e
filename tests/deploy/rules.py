"""Writes the alert rules into the manifest for the Prometheus operator: `make rules`.

kustomize can put no file into a custom resource, so the rules stand twice; tests/checks holds
the two together.
"""

from typing import Any

import yaml

from kaiten.settings.environment import ROOT

RULES = ROOT / "deploy" / "prometheus" / "kaiten.rules.yaml"
MANIFEST = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "rules.yaml"
HEADER = "# Written by `make rules` from deploy/prometheus/kaiten.rules.yaml; change that one.\n"


def manifest() -> str:
    """Return the PrometheusRule with the groups of the rules' file."""
    groups: dict[str, Any] = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "kaiten", "labels": {"app.kubernetes.io/name": "kaiten"}},
        "spec": groups,
    }
    return HEADER + yaml.safe_dump(resource, sort_keys=False, width=100, allow_unicode=True)


if __name__ == "__main__":
    MANIFEST.write_text(manifest(), encoding="utf-8")
