import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kaiten.settings.environment import ROOT
from monitors.metrics.definitions import SECONDS_BUCKETS
from tests.checks.links import anchors
from tests.checks.promql import unknown_names
from tests.deploy.rules import link_runbook
from tests.exposition import Exposition, labels_by_name

FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "kaiten.rules.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
CASES = (FOLDER / "kaiten.rules.test.yaml").read_text("utf-8")
NAMES = [rule["alert"] for rule in RULES]


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on this machine: apt-get install prometheus")
    return subprocess.run(
        ["promtool", *arguments], cwd=folder, check=False, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yaml"),
        ("check", "rules", "kaiten.rules.yaml"),
        ("test", "rules", "kaiten.rules.test.yaml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_no_fault(arguments: tuple[str, ...]) -> None:
    ran = promtool(*arguments)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("shipped", "changed"),
    [
        pytest.param('code=~"5..",model!=""', 'code=~"4..",model!=""', id="never fires"),
        pytest.param("for: 5m", "for: 0s", id="fires at once"),
        pytest.param(">= 20", ">= 0", id="fires on very few requests"),
    ],
)
def test_cases_notice_a_changed_rule(tmp_path: Path, shipped: str, changed: str) -> None:
    rules = (FOLDER / "kaiten.rules.yaml").read_text("utf-8")
    assert shipped in rules
    (tmp_path / "kaiten.rules.yaml").write_text(rules.replace(shipped, changed), encoding="utf-8")
    (tmp_path / "kaiten.rules.test.yaml").write_text(CASES, encoding="utf-8")
    ran = promtool("test", "rules", "kaiten.rules.test.yaml", folder=tmp_path)
    assert "FAILED" in ran.stdout + ran.stderr


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_alert_asks_for_what_servers_expose_and_says_what_to_do(rule: dict[str, Any]) -> None:
    exposed = labels_by_name(Exposition().page())
    annotations = rule["annotations"]
    named = re.findall(r"\b(?:model_\w+|kaiten_\w+|up)\b", annotations["description"])

    assert unknown_names(rule["expr"], exposed) == []
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert named
    assert set(named) <= {*exposed, "up", *rule_families(exposed)}


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_alert_links_to_a_section_of_the_runbook(rule: dict[str, Any]) -> None:
    anchor = rule["annotations"]["runbook_url"].partition("#")[2]
    assert anchor in anchors(ROOT / "docs" / "runbook.md")


def test_alerts_link_to_the_runbook_wherever_it_is_published() -> None:
    shipped = (FOLDER / "kaiten.rules.yaml").read_text("utf-8")
    published = "https://git.example/kaiten/docs/runbook.md"
    urls = [rule["annotations"]["runbook_url"] for rule in RULES]
    (address,) = {url.partition("#")[0] for url in urls}
    changed = re.findall(r"runbook_url: (\S+)", link_runbook(shipped, published))
    assert changed == [url.replace(address, published) for url in urls]


def rule_families(exposed: dict[str, set[str]]) -> set[str]:
    """Return the names by which the guide knows histograms."""
    return {name.removesuffix("_bucket") for name in exposed if name.endswith("_bucket")}


@pytest.mark.parametrize("name", NAMES)
def test_alert_fires_in_a_case(name: str) -> None:
    label_sets = [
        sample["labels"]
        for case in yaml.safe_load(CASES)["tests"]
        for expression_test in case["promql_expr_test"]
        for sample in expression_test.get("exp_samples", [])
        if "pending" not in expression_test["expr"]
    ]
    assert any(f'alertname="{name}"' in labels for labels in label_sets)


def test_the_limit_of_latency_is_the_edge_of_a_bucket() -> None:
    (slow,) = [rule["expr"] for rule in RULES if rule["alert"] == "KaitenSlow"]
    (limit,) = re.findall(r"\) > (\S+)", slow)
    assert float(limit) in SECONDS_BUCKETS


def test_an_unknown_metric_and_an_unknown_label_are_reported() -> None:
    exposed = {"model_known": {"model"}}
    expression = 'sum by (model, colour) (rate(model_known{arm="a"}[1m])) / model_other'
    assert unknown_names(expression, exposed) == ["model_other", "model_known{arm}", "by colour"]
    assert unknown_names('max by (model) (model_known{job="kaiten"})', exposed) == []
    assert unknown_names("vector(1)", exposed) == ["vector(1)"]
