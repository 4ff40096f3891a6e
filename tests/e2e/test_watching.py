"""The shipped rules, dashboard and Alertmanager configuration, from a metric to a webhook."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from tests.e2e.watching import (
    DEPLOY,
    Page,
    Watcher,
    Webhook,
    alertmanager,
    listening,
    prometheus,
    shipped,
)
from tests.servers import TLS, Server, free_port

# Looks of Prometheus, a second apart.
LOOKS = 60


@dataclass(frozen=True)
class Watch:
    """A metrics page with the Prometheus, Alertmanager and webhook behind it."""

    page: Page
    webhook: Webhook
    prometheus: Watcher
    alertmanager: Watcher


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    page, webhook = Page(), Webhook()
    with ExitStack() as stack:
        port = stack.enter_context(listening(page, webhook))
        alertmanager_watcher = stack.enter_context(alertmanager(tmp_path / "alertmanager", port))
        prometheus_watcher = stack.enter_context(
            prometheus(tmp_path / "prometheus", port, alertmanager_watcher.port)
        )
        yield Watch(page, webhook, prometheus_watcher, alertmanager_watcher)


def test_failures_reach_the_webhook_and_so_does_their_end(watch: Watch) -> None:
    watch.page.answers = {200: 30, 500: 30}
    path, title, text = watch.webhook.next()
    assert path == "/the-secret"
    assert title.startswith("FIRING: ")
    while "*KaitenErrors* (critical, firing)" not in text:
        text = watch.webhook.next()[2]
    assert "docs/runbook.md#slow-or-failing" in text

    watch.page.answers = {200: 3000}
    while "*KaitenErrors* (critical, resolved)" not in text:
        text = watch.webhook.next()[2]


def test_every_panel_shows_something(watch: Watch) -> None:
    watch.page.answers = {200: 5, 429: 1, 500: 1}
    watch.page.wait_for_looks(3)
    dashboard = json.loads((DEPLOY / "grafana/dashboards/kaiten.json").read_text("utf-8"))
    expressions = {
        target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$namespace", ".*")
        .replace("$model", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    for _ in range(LOOKS):
        expressions = {
            expression for expression in expressions if not watch.prometheus.query(expression)
        }
        if not expressions:
            return
        watch.page.wait_for_looks(1)
    raise AssertionError("\n".join(["nothing is shown by", *sorted(expressions)]))


def test_alerts_that_follow_from_an_outage_are_suppressed(watch: Watch) -> None:
    def alert(name: str, namespace: str) -> dict[str, object]:
        labels = {"alertname": name, "namespace": namespace, "severity": "critical"}
        return {"labels": labels, "startsAt": datetime.now(UTC).isoformat()}

    alerts = [alert("KaitenDown", "here"), alert("KaitenErrors", "here")]
    url = f"http://127.0.0.1:{watch.alertmanager.port}/api/v2/alerts"
    httpx.post(url, json=[*alerts, alert("KaitenErrors", "there")], verify=TLS).raise_for_status()

    for _ in range(LOOKS):
        states = {
            (entry["labels"]["alertname"], entry["labels"]["namespace"]): entry["status"]["state"]
            for entry in watch.alertmanager.get("/api/v2/alerts")
            if entry["labels"].get("namespace")
        }
        if states["KaitenErrors", "here"] == "suppressed":
            break
        watch.page.wait_for_looks(1)
    assert states["KaitenErrors", "here"] == "suppressed"
    assert states["KaitenDown", "here"] != "suppressed"
    assert states["KaitenErrors", "there"] != "suppressed"


def test_a_real_server_is_up_ready_and_counted(server: Server, token: str, tmp_path: Path) -> None:
    with server.client(token) as client:
        client.post("/api/v1/predict", json={"text": "Where is it?"}).raise_for_status()
    port = httpx.URL(server.url).port or 0
    with prometheus(tmp_path / "prometheus", port, free_port()) as watcher:
        up: dict[object, float] = {}
        for _ in range(10_000):
            up = {dict(labels)["job"]: value for labels, value in watcher.query("up").items()}
            if up == {"kaiten": 1, "kaiten-readiness": 1}:
                break
        assert up == {"kaiten": 1, "kaiten-readiness": 1}
        assert sum(watcher.query('model_requests_total{job="kaiten",code="200"}').values()) >= 1
        (availability,) = [
            group["rules"]
            for group in shipped("prometheus/kaiten.rules.yaml")["groups"]
            if group["name"] == "kaiten-availability"
        ]
        assert [rule["alert"] for rule in availability if watcher.query(rule["expr"])] == []
