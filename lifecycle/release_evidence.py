"""What a release brings along as evidence, as its repository shows it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from xml.etree.ElementTree import Element

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from kaiten.confinement import UnsafeFile, open_file
from kaiten.settings.models import Evidence
from lifecycle.card import ModelCard
from lifecycle.git import git

_CHANGELOG = "CHANGELOG.md"


@dataclass(frozen=True, slots=True)
class Repository:
    """A model's git repository, and the JUnit XML of its tests, if there is one."""

    folder: Path
    tests: Path | None


def gather(card: ModelCard, repository: Repository, wanted: Sequence[Evidence]) -> dict[str, str]:
    """Return what was found of each kind of evidence; what was not found is left out."""
    finders = {"commit": _commit, "tests": _tests, "tag": _tag, "changelog": _changelog}
    found = {kind: finders[kind](card, repository) for kind in wanted}
    return {kind: told for kind, told in found.items() if told is not None}


def _commit(card: ModelCard, repository: Repository) -> str | None:
    """Return the card's commit, if the repository has it."""
    commit = card.provenance.git_commit
    return (
        git(repository.folder, "rev-parse", "--verify", f"{commit}^{{commit}}") if commit else None
    )


def _tag(card: ModelCard, repository: Repository) -> str | None:
    """Return the git tag of the version, if it is on the card's commit."""
    commit = _commit(card, repository)
    for name in (f"{card.name}/{card.version}", f"{card.name}-{card.version}", f"v{card.version}"):
        tagged = git(repository.folder, "rev-parse", "--verify", f"refs/tags/{name}^{{commit}}")
        if commit is not None and tagged == commit:
            return name
    return None


def _changelog(card: ModelCard, repository: Repository) -> str | None:
    """Return the heading of the version in the changelog."""
    try:
        with open_file(repository.folder / _CHANGELOG) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnsafeFile, UnicodeDecodeError):
        return None
    # 1.2.0 is neither 1.2.0-rc.1 nor 11.2.0.
    version = re.compile(rf"(?<![\w.-]){re.escape(card.version)}(?![\w-]|\.\d)")
    headings = (line for line in lines if line.startswith("#") and version.search(line))
    return next(headings, None)


def _tests(card: ModelCard, repository: Repository) -> str | None:  # noqa: ARG001  as the others
    """Return how many tests passed and their report's SHA-256, if any and none failed."""
    if repository.tests is None:
        return None
    try:
        with open_file(repository.tests) as file:
            content = file.read()
        root: Element = fromstring(content)
        cases = [*root.iter("testcase")]
    except (OSError, UnsafeFile, ParseError, DefusedXmlException):
        return None
    found = [{part.tag for part in case} for case in cases]
    bad = any(parts & {"failure", "error"} for parts in found)
    count = sum("skipped" not in parts for parts in found)
    return f"{count} tests, {sha256(content).hexdigest()}" if count and not bad else None
