"""The runbook has what an alert points to, and names what there is to see."""

import json
import math
import os
import re
import subprocess
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex

import pytest
import yaml

from kaiten.settings.environment import ROOT
from kaiten.settings.secrets import parse_secrets

TEXT = (ROOT / "docs" / "runbook.md").read_text("utf-8")
RULES = ROOT / "deploy" / "prometheus" / "kaiten.rules.yaml"
CODE = "\n".join(
    file.read_text("utf-8")
    for folder in ("cli", "server", "gateway", "runners", "monitors", "lifecycle", "kaiten")
    for file in (ROOT / folder).rglob("*.py")
)
SECTIONS = (
    "deploy",
    "roll-back",
    "rotate-keys",
    "scale",
    "drifting-model",
    "damaged-model",
    "full-disk",
    "dead-gpu",
    "slow-or-failing",
)
# Section by section: from one heading to the next of its rank.
PARTS = {
    title.lower().replace(" ", "-"): body
    for title, body in re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", TEXT, re.MULTILINE)
}
# Alert, what it means, and where to go.
TABLE = {
    alert: re.findall(r"\(#([a-z-]+)\)", cells)
    for alert, cells in re.findall(r"^\| `(Kaiten\w+)` \|(.*)\|$", PARTS["alerts"], re.MULTILINE)
}


def alerts() -> dict[str, str]:
    """Return each alert's anchor in the runbook."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    return {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules}


def test_the_sections_are_there() -> None:
    assert set(SECTIONS) | {"alerts"} <= PARTS.keys()


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_says_how_it_begins_and_how_it_ends(section: str) -> None:
    for part in ("**You notice**", "**Look first", "**Do", "**Over** when"):
        assert part in PARTS[section], part
    assert re.search(r"\*\*(Back|Forward)", PARTS[section])


def test_every_link_within_leads_somewhere() -> None:
    assert set(re.findall(r"\(#([a-z-]+)\)", TEXT)) <= PARTS.keys()


def test_every_alert_has_a_row_and_no_other_has() -> None:
    assert TABLE.keys() == alerts().keys()


def test_an_alert_and_its_row_lead_to_the_same_section() -> None:
    for alert, address in alerts().items():
        anchor = address.partition("#")[2]
        assert anchor in TABLE[alert], alert


@pytest.mark.parametrize("section", SECTIONS)
def test_an_alert_is_named_where_it_leads(section: str) -> None:
    for alert, sections in TABLE.items():
        if section == sections[0]:
            assert f"`{alert}`" in PARTS[section], alert


# Events, metrics and codes, but for an option of Compose and a name that the reader gives.
NAMED = sorted(
    set(re.findall(r"(?<=`)[a-z]+(?:_[a-z]+)+(?=`)", TEXT)) - {"mem_limit", "old_auth_secret"}
)


@pytest.mark.parametrize("name", NAMED)
def test_what_there_is_to_see_is_in_the_code(name: str) -> None:
    # Prometheus ends a counter's name.
    assert f'"{name.removesuffix("_total")}' in CODE


FAKE_KUBECTL = """#!/bin/bash
case "$*" in
*" get secret "*) base64 -w0 <<< "$SECRET" ;;
*" patch secret "*) cat "${!#}" > "$PATCH" ;;
esac
"""


@pytest.mark.parametrize("is_reachable", [True, False])
def test_signing_secret_in_kubernetes_is_rotated_by_the_block_as_it_is(
    tmp_path: Path, *, is_reachable: bool
) -> None:
    (block,) = re.findall(r"In Kubernetes, the same on a copy\..*?```\n(.*?)```", TEXT, re.DOTALL)
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(FAKE_KUBECTL if is_reachable else "#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    (tmp_path / "work").mkdir()
    old, patch = token_hex(32), tmp_path / "patch"
    variables = {"PATH": f"{program.parent}:{os.environ['PATH']}", "NS": "ours"}
    variables |= {"SECRET": old, "PATCH": str(patch)}
    subprocess.run(["bash", "-c", block], cwd=tmp_path / "work", env=variables, check=is_reachable)
    if not is_reachable:
        assert not patch.exists()
        return
    content = b64decode(json.loads(patch.read_text())["data"]["kaiten_auth__secret"])
    first, second = parse_secrets(content)
    assert (len(first.value), first.ends_at) == (64, math.inf)
    assert second.value == old
    assert timedelta(days=6) < datetime.fromtimestamp(second.ends_at, UTC) - datetime.now(UTC)
    assert not [*(tmp_path / "work").iterdir()]


def test_no_message_advises_to_delete_a_version_or_to_register_it_again() -> None:
    """Check that the remedy for damaged files is a copy: production rejects other bytes."""
    advice = r"models delete|(?<!not )\bregister (?:it|them) again\b"
    assert not re.findall(advice, CODE, re.IGNORECASE)


SETTINGS = sorted(set(re.findall(r"`([a-z]+)\.(?!override|yaml|json|sqlite|sh`)([a-z_.]+)`", TEXT)))


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_a_setting_that_is_named_is_in_kaiten_yaml(section: str, key: str) -> None:
    value = yaml.safe_load((ROOT / "kaiten.yaml").read_text("utf-8"))
    for part in (section, *key.split(".")):
        assert part in value
        value = value[part]
