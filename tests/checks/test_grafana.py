import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kaiten.settings.environment import ROOT
from tests.checks.promql import unknown_names
from tests.exposition import Exposition, labels_by_name

FOLDER = ROOT / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "kaiten.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
TITLES = [panel["title"] for panel in PANELS]


def provisioned(kind: str) -> dict[str, Any]:
    (file,) = (FOLDER / "provisioning" / kind).glob("*.yaml")
    config: dict[str, Any] = yaml.safe_load(file.read_text("utf-8"))
    return config


def strings(part: object) -> Iterator[str]:
    """Yield every string in a part of the dashboard."""
    if isinstance(part, str):
        yield part
    elif isinstance(part, dict):
        yield from (text for value in part.values() for text in strings(value))
    elif isinstance(part, list):
        yield from (text for value in part for text in strings(value))


@pytest.mark.parametrize("panel", PANELS, ids=TITLES)
def test_panel_asks_for_what_servers_expose(panel: dict[str, Any]) -> None:
    exposed = labels_by_name(Exposition().page())
    for target in panel["targets"]:
        assert unknown_names(target["expr"], exposed) == []
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        grouped = re.search(r"\bby \(([^)]*)\)", target["expr"])
        assert labels <= set(grouped[1].split(", ") if grouped else ())


@pytest.mark.parametrize(
    "name", [name for name, variable in VARIABLES.items() if "query" in variable]
)
def test_variable_asks_for_what_servers_expose(name: str) -> None:
    query = VARIABLES[name]["query"]
    if VARIABLES[name]["type"] == "datasource":
        assert query == "prometheus"
        return
    (selector, label) = re.fullmatch(r"label_values\((.+), (\w+)\)", query["query"]).groups()  # type: ignore[union-attr]
    exposed = labels_by_name(Exposition().page())
    assert unknown_names(f"max by ({label}) ({selector})", exposed) == []


def test_every_variable_that_is_used_is_there_and_used() -> None:
    used = {
        name for text in strings(DASHBOARD["panels"]) for name in re.findall(r"\$\{?(\w+)", text)
    }
    assert used - {"__rate_interval"} == VARIABLES.keys()


def test_panels_have_a_title_each_a_place_of_their_own_and_say_what_they_show() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len(set(TITLES)) == len(TITLES)
    assert all(panel["description"].endswith(".") for panel in PANELS)


def test_lines_are_where_the_alerts_are() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "kaiten.rules.yaml").read_text("utf-8")
    for title, limit, written in [
        ("Error ratio", 0.05, "> 0.05"),
        ("Response time", 5, "> 5\n"),
    ]:
        (panel,) = [panel for panel in PANELS if panel["title"] == title]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][-1]["value"] == limit
        assert written in rules


def test_grafana_is_given_the_dashboard_and_where_it_asks() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text("utf-8"))
    mounted = compose["services"]["grafana"]["volumes"]
    (provider,) = provisioned("dashboards")["providers"]
    (source,) = provisioned("datasources")["datasources"]

    assert f"../grafana/dashboards:{provider['options']['path']}:ro" in mounted
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == "15s"
