"""Asks an advisory service about every pinned dependency: `make audit`.

pip-audit itself calls an audit clean in which it could ask about nothing, such as behind a mirror
that has packages and no advisories; this tells how many were asked about.
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
# Advisories that do not concern us, each with the reason.
ACCEPTED: dict[str, str] = {}


@dataclass(frozen=True)
class Verdict:
    """What to say, and whether the check fails."""

    lines: list[str]
    failed: bool = False


def main(pip_audit: str) -> int:
    """Audit constraints.txt, print the findings, and return the exit code."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner=off", "--timeout=10"]
    command = [pip_audit, "--requirement", str(CONSTRAINTS), "--format=json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    verdict = judge(done.stdout, done.stderr)
    sys.stdout.write("".join(f"{line}\n" for line in verdict.lines))
    return int(verdict.failed)


def judge(report: str, complaint: str) -> Verdict:
    """Return what pip-audit's JSON report says; without one, its last complaint is the reason."""
    try:
        dependencies = json.loads(report)["dependencies"]
    except ValueError:
        last = (complaint.strip() or "it said nothing").splitlines()[-1]
        return Verdict([f"Dependencies were not audited, as no advisory service answered: {last}"])
    audited_dependencies = [
        dependency for dependency in dependencies if "skip_reason" not in dependency
    ]
    advisories = [
        f"{dependency['name']} {dependency['version']}: {advisory['id']}, "
        f"mended in {_fix_versions(advisory['fix_versions'])}"
        for dependency in audited_dependencies
        for advisory in dependency["vulns"]
        if advisory["id"] not in ACCEPTED
    ]
    if not audited_dependencies:
        return Verdict([f"Dependencies were not audited: none of {len(dependencies)} is known."])
    coverage = f"{len(audited_dependencies)} of {len(dependencies)} dependencies were audited"
    return Verdict(
        [*advisories, f"{coverage}; advisories: {len(advisories)}."], failed=bool(advisories)
    )


def _fix_versions(versions: list[str]) -> str:
    return ", ".join(versions) or "no version yet"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
