"""Writes the alert rules into the manifest for the Prometheus operator: `make rules`.

kustomize can put no file into a custom resource, so the rules stand twice; tests/checks holds
the two together. With an argument, alerts link to the runbook at that address first.
"""

import re
import sys
from typing import Any

import yaml

from kaiten.settings.environment import ROOT

RULES = ROOT / "deploy" / "prometheus" / "kaiten.rules.yaml"
CASES = RULES.with_name("kaiten.rules.test.yaml")
MANIFEST = ROOT / "deploy" / "kubernetes" / "components" / "monitoring" / "rules.yaml"
HEADER = "# Written by `make rules` from deploy/prometheus/kaiten.rules.yaml; change that one.\n"
_RUNBOOK_URL = re.compile(r"(?<=runbook_url: )[^\s#]+(?=#)")


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


def link_runbook(text: str, address: str) -> str:
    """Return rules or their cases whose alerts link to the runbook at another address."""
    return _RUNBOOK_URL.sub(lambda _: address, text)


def main(arguments: list[str]) -> None:
    """Write the manifest, after the address of the runbook if one is given."""
    for address in arguments:
        for file in (RULES, CASES):
            file.write_text(link_runbook(file.read_text("utf-8"), address), encoding="utf-8")
    MANIFEST.write_text(manifest(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
