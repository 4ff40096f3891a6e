"""The SemVer policy: how far a version must be from its parent, given its changes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import semver

from kaiten.errors import ModelRejected
from kaiten.settings.models import Bump, VersioningSettings
from lifecycle.card import ModelCard

_WEIGHT: Mapping[Bump, int] = {"patch": 0, "minor": 1, "major": 2}


@dataclass(frozen=True, slots=True)
class CardChange:
    """A difference from the parent, and the smallest bump that the policy requires for it."""

    what: str
    bump: Bump


def find_changes(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> list[CardChange]:
    """Return every change from the parent; without any other, the weights were trained again."""
    return [*_changes(parent, card, rules)] or [CardChange("the weights", rules.retrained_weights)]


def required_bump(changes: list[CardChange]) -> Bump:
    """Return the largest bump that any of the changes requires."""
    return max((change.bump for change in changes), key=_WEIGHT.__getitem__)


def bump_version(parent: str, bump: Bump) -> str:
    """Return the lowest version that a bump of ``parent`` leads to."""
    version = semver.Version.parse(parent)
    # Releasing a pre-release counts as a bump: 2.0.0-rc.1 leads to 2.0.0.
    return str(version.next_version(part=bump))


def check_bump(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> None:
    """Check that a version is as far from its parent as the policy requires.

    Raises:
        ModelRejected: It is too close.

    """
    changes = find_changes(parent, card, rules)
    lowest = bump_version(parent.version, required_bump(changes))
    # A pre-release counts as the release that it leads to.
    if semver.Version.parse(card.version).finalize_version() >= semver.Version.parse(lowest):
        return
    listed = ", ".join(f"{change.what} ({change.bump.upper()})" for change in changes)
    raise ModelRejected(
        "version",
        f"{card.version} is too close to its parent {parent.version}, from which differ: {listed}",
        f"Register it as {lowest} or later, or with --bump auto.",
    )


def _changes(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> Iterator[CardChange]:
    if card.task != parent.task:
        yield CardChange("the task", rules.changed_task)
    if card.labels != parent.labels:
        yield CardChange("the labels", rules.changed_labels)
    if card.input_schema != parent.input_schema or card.max_length < parent.max_length:
        yield CardChange("the accepted inputs", rules.changed_input)
    elif card.max_length > parent.max_length:
        yield CardChange("the longest accepted input", rules.added_capability)
    if card.architecture != parent.architecture:
        yield CardChange("the architecture", rules.new_architecture)
