import json

from tests.checks.audit import ACCEPTED, judge
from tests.unit.gateway.house import Json

KNOWN = {"name": "a", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "b", "skip_reason": "Dependency not found on PyPI"}


def report(*dependencies: Json) -> str:
    return json.dumps({"dependencies": dependencies})


def test_without_a_service_it_passes_and_says_so_in_a_line() -> None:
    verdict = judge("", "Traceback ...\nConnectionError: no route\n")
    (line,) = verdict.lines
    assert "not audited" in line
    assert line.endswith("ConnectionError: no route")
    assert not verdict.failed


def test_an_audit_of_nothing_is_not_called_clean() -> None:
    verdict = judge(report(UNKNOWN, UNKNOWN), "No known vulnerabilities found")
    assert verdict.lines == ["Dependencies were not audited: none of 2 is known."]
    assert not verdict.failed


def test_a_clean_audit_says_how_many_were_asked_about() -> None:
    verdict = judge(report(KNOWN, UNKNOWN), "")
    assert verdict.lines == ["1 of 2 dependencies were audited; advisories: 0."]
    assert not verdict.failed


def test_an_advisory_fails_and_names_the_remedy() -> None:
    advisory = {"id": "PYSEC-1", "fix_versions": ["1.1", "2.0"]}
    unfixed_advisory = {"id": "PYSEC-2", "fix_versions": []}
    verdict = judge(report({**KNOWN, "vulns": [advisory, unfixed_advisory]}), "")
    assert verdict.failed
    assert verdict.lines[:2] == [
        "a 1.0: PYSEC-1, mended in 1.1, 2.0",
        "a 1.0: PYSEC-2, mended in no version yet",
    ]


def test_what_is_accepted_has_a_reason() -> None:
    assert all(ACCEPTED.values())
