"""How far a version must be from its parent, and which changes require more."""

from typing import Any

import pytest
import semver
from hypothesis import given
from hypothesis import strategies as st

from kaiten.errors import ModelRejected
from kaiten.settings.models import VersioningSettings
from lifecycle.semver_policy import bump_version, check_bump, find_changes, required_bump
from tests.unit.lifecycle.cards import card

RULES = VersioningSettings()
CHANGES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "the weights", "patch"),
    ({"architecture": "RobertaForSequenceClassification"}, "the architecture", "minor"),
    ({"max_length": 256}, "the longest accepted input", "minor"),
    ({"max_length": 64}, "the accepted inputs", "major"),
    ({"input_schema": {"type": "array"}}, "the accepted inputs", "major"),
    ({"labels": ("no", "yes", "maybe")}, "the labels", "major"),
    ({"labels": ("yes", "no")}, "the labels", "major"),
    ({"task": "token-classification"}, "the task", "major"),
]


@pytest.mark.parametrize(("change", "part", "bump"), CHANGES)
def test_each_change_asks_for_its_bump(change: dict[str, Any], part: str, bump: str) -> None:
    changes = find_changes(card(), card(**change), RULES)
    assert [(change.what, change.bump) for change in changes] == [(part, bump)]


def test_largest_bump_counts() -> None:
    other = card(architecture="XLNetForSequenceClassification", labels=("a", "b"))
    assert required_bump(find_changes(card(), other, RULES)) == "major"


def test_rules_can_be_set() -> None:
    rules = VersioningSettings(new_architecture="major", changed_labels="minor")
    other = card(architecture="XLNetForSequenceClassification")
    assert required_bump(find_changes(card(), other, rules)) == "major"
    assert required_bump(find_changes(card(), card(labels=("a", "b")), rules)) == "minor"


@pytest.mark.parametrize(
    ("parent", "version", "change", "allowed"),
    [
        ("1.2.3", "1.2.4", {}, True),
        ("1.2.3", "1.3.0", {}, True),
        ("1.2.3", "2.0.0", {}, True),
        ("1.2.3", "1.2.3-rc.1", {}, False),
        ("1.2.3", "1.2.4", {"max_length": 256}, False),
        ("1.2.3", "1.3.0", {"max_length": 256}, True),
        ("1.2.3", "1.3.0", {"labels": ("a", "b")}, False),
        ("1.2.3", "2.0.0", {"labels": ("a", "b")}, True),
        ("1.2.3", "2.0.0-rc.1", {"labels": ("a", "b")}, True),
        ("1.2.3", "1.9.9-rc.1", {"labels": ("a", "b")}, False),
        ("2.0.0-rc.1", "2.0.0-rc.2", {}, True),
        ("2.0.0-rc.1", "2.0.0", {}, True),
        ("0.9.0", "0.10.0", {"labels": ("a", "b")}, False),
    ],
)
def test_less_than_the_least_is_refused(
    parent: str, version: str, change: dict[str, Any], *, allowed: bool
) -> None:
    parent_card, new_card = card(f"ours:{parent}"), card(f"ours:{version}", **change)
    if allowed:
        check_bump(parent_card, new_card, RULES)
        return
    with pytest.raises(ModelRejected) as caught:
        check_bump(parent_card, new_card, RULES)
    (detail,) = caught.value.details
    assert detail.field == "version"
    assert f"its parent {parent}" in detail.reason
    assert "--bump auto" in caught.value.message


VERSIONS = st.builds("{}.{}.{}".format, *[st.integers(0, 30)] * 3)


@given(VERSIONS, st.sampled_from(CHANGES))
def test_computed_bump_is_always_allowed(
    version: str, case: tuple[dict[str, Any], str, str]
) -> None:
    parent, other = card(f"ours:{version}"), card(f"ours:{version}", **case[0])
    least = bump_version(version, required_bump(find_changes(parent, other, RULES)))
    assert semver.Version.parse(least) > semver.Version.parse(version)
    check_bump(parent, other.model_copy(update={"version": least}), RULES)
