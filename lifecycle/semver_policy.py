"""How much a version has to differ from its parent, by what has changed: SemVer, enforced."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import semver

from kaiten.errors import ModelRejected
from kaiten.settings.models import Bump, VersioningSettings
from lifecycle.card import ModelCard

_WEIGHT: Mapping[Bump, int] = {"patch": 0, "minor": 1, "major": 2}


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from the parent, and the least bump that the rules ask for it."""

    what: str
    bump: Bump


def changes(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> list[Change]:
    """Return every change from the parent; a version with none of them was trained anew."""
    found = [*_changes(parent, card, rules)]
    return found or [Change("the weights", rules.retrained_weights)]


def least_bump(found: list[Change]) -> Bump:
    """Return the largest bump that any of the changes asks for."""
    return max((change.bump for change in found), key=_WEIGHT.__getitem__)


def bumped(parent: str, bump: Bump) -> str:
    """Return the least version after ``parent`` that a bump leads to."""
    version = semver.Version.parse(parent)
    # The release of a pre-release is a bump of its own: 2.0.0-rc.1 leads to 2.0.0.
    return str(version.next_version(part=bump))


def check_bump(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> None:
    """Raise ModelRejected where a version is not as far from its parent as the rules ask."""
    found = changes(parent, card, rules)
    least = bumped(parent.version, least_bump(found))
    # Of a pre-release, what it is to become counts.
    if semver.Version.parse(card.version).finalize_version() >= semver.Version.parse(least):
        return
    told = ", ".join(f"{change.what} ({change.bump.upper()})" for change in found)
    raise ModelRejected(
        "version",
        f"{card.version} is too near to its parent {parent.version}, from which differ: {told}",
        f"Register it as {least} or later, or with --bump auto.",
    )


def _changes(parent: ModelCard, card: ModelCard, rules: VersioningSettings) -> Iterator[Change]:
    if card.task != parent.task:
        yield Change("the task", rules.changed_task)
    if card.labels != parent.labels:
        yield Change("the labels", rules.changed_labels)
    if card.input_schema != parent.input_schema or card.max_length < parent.max_length:
        yield Change("what inputs it takes", rules.changed_input)
    elif card.max_length > parent.max_length:
        yield Change("the longest input that it takes", rules.added_capability)
    if card.architecture != parent.architecture:
        yield Change("the architecture", rules.new_architecture)
