"""Gathers evidence of a release from the model's git repository."""

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
from lifecycle.commands import run_git

_CHANGELOG = "CHANGELOG.md"


@dataclass(frozen=True, slots=True)
class ReleaseRepository:
    """A model's git repository, and the JUnit XML of its tests, if there is one."""

    folder: Path
    tests: Path | None


def gather_evidence(
    card: ModelCard, repository: ReleaseRepository, kinds: Sequence[Evidence]
) -> dict[str, str]:
    """Return the evidence of each kind; a kind without evidence is left out."""
    finders = {
        "commit": _find_commit,
        "tests": _find_test_results,
        "tag": _find_tag,
        "changelog": _find_changelog_heading,
    }
    evidence = {kind: finders[kind](card, repository) for kind in kinds}
    return {kind: proof for kind, proof in evidence.items() if proof is not None}


def _find_commit(card: ModelCard, repository: ReleaseRepository) -> str | None:
    """Return the card's commit, if the repository has it."""
    commit = card.provenance.git_commit
    return _resolve_commit(repository, commit) if commit else None


def _find_tag(card: ModelCard, repository: ReleaseRepository) -> str | None:
    """Return the git tag of the version, if it points to the card's commit."""
    commit = _find_commit(card, repository)
    for tag in (f"{card.name}/{card.version}", f"{card.name}-{card.version}", f"v{card.version}"):
        tagged = _resolve_commit(repository, f"refs/tags/{tag}")
        if commit is not None and tagged == commit:
            return tag
    return None


def _resolve_commit(repository: ReleaseRepository, name: str) -> str | None:
    return run_git(repository.folder, "rev-parse", "--verify", f"{name}^{{commit}}")


def _find_changelog_heading(card: ModelCard, repository: ReleaseRepository) -> str | None:
    """Return the heading of the version in the changelog."""
    try:
        with open_file(repository.folder / _CHANGELOG) as file:
            lines = file.read().decode("utf-8").splitlines()
    except (OSError, UnsafeFile, UnicodeDecodeError):
        return None
    # 1.2.0 matches neither 1.2.0-rc.1 nor 11.2.0.
    version = re.compile(rf"(?<![\w.-]){re.escape(card.version)}(?![\w-]|\.\d)")
    headings = (line for line in lines if line.startswith("#") and version.search(line))
    return next(headings, None)


def _find_test_results(card: ModelCard, repository: ReleaseRepository) -> str | None:  # noqa: ARG001  as the others
    """Return how many tests passed and the SHA-256 of their report, unless one failed."""
    if repository.tests is None:
        return None
    try:
        with open_file(repository.tests) as file:
            content = file.read()
        root: Element = fromstring(content)
        cases = [{part.tag for part in case} for case in root.iter("testcase")]
    except (OSError, UnsafeFile, ParseError, DefusedXmlException):
        return None
    any_failed = any(parts & {"failure", "error"} for parts in cases)
    passed = sum("skipped" not in parts for parts in cases)
    return f"{passed} tests, {sha256(content).hexdigest()}" if passed and not any_failed else None
