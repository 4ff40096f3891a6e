"""What a check comes to, of the files that are ours and of broken ones, which it has to tell of."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaiten.settings.environment import ROOT
from tests.deploy.tools import Finding, ToolAbsent, ToolFailed

BROKEN = Path(__file__).parent / "broken"


@dataclass(frozen=True)
class Check:
    """A way to look at files, ours and, by the check's name in tests/deploy/broken, broken ones."""

    name: str
    look: Callable[[Sequence[Path]], Iterable[Finding]]
    ours: Sequence[Path]
    broken: Sequence[Path]


@dataclass(frozen=True)
class Verdict:
    """What to say, and whether the check fails."""

    lines: list[str]
    failed: bool


def judge(check: Check) -> Verdict:
    """Look at all files at once; a check that has none, or passes over a broken one, fails."""
    if not check.ours:
        return Verdict([f"{check.name}: there is no file to look at"], failed=True)
    try:
        findings = list(check.look([*check.ours, *check.broken]))
    except ToolAbsent as error:
        return Verdict([f"{check.name}: left out: {error}"], failed=False)
    except ToolFailed as error:
        return Verdict([f"{check.name}: {error}"], failed=True)
    faulty_paths = {finding.path for finding in findings}
    lines = [
        f"{check.name}: {name_of(finding.path)}: {finding.message}"
        for finding in findings
        if finding.path not in check.broken
    ]
    lines += [
        f"{check.name}: passes over {name_of(path)}, so it can find nothing"
        for path in check.broken
        if path not in faulty_paths
    ]
    return Verdict(lines or [f"{check.name}: {len(check.ours)}, no findings"], failed=bool(lines))


def name_of(path: Path) -> str:
    """Return how a file of this checkout, or one that was made of it, is known."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
