"""Schemathesis, with every check, over the document of each version: good requests and bad."""

import asyncio
import base64
import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schemathesis import checks as registered

from gateway.api_versions import DOCUMENTS
from tests.acceptance.places import serve
from tests.acceptance.report import Report
from tests.servers import BIN, ROOT, Server

LEAST_CASES = 10_000
# Requests to each operation; those without a body have only so many different ones.
_EXAMPLES = 1000
# Left to choose, Schemathesis sends ten bad requests for a good one; so it is asked for good ones
# as well. Asked for bad ones only, it sends several faults at once, and expects one's status.
_MODES = ("positive", "all")
# Its exit codes where it has looked, and found nothing or something.
_LOOKED = {0, 1}
_SEED = 20261125
registered.load_all_checks()
CHECKS = frozenset(registered.CHECKS.get_all_names())
_FIELDS = {"1": {"text"}, "2": {"inputs", "top_k", "model", "feedback"}}
# Of all that the documents describe.
_FEEDBACK_VERSIONS = ("2",)
_SCOPES = ("predict", "feedback", "ops")
_REFUSED = {"400", "422"}
Json = Any


@dataclass
class Outcome:
    """What a version's document, and the answers to requests that were made of it, came to."""

    # Requests with a valid token; the check of tokens sends a few without one.
    cases: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    unknown_fields: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Count what another run came to as well."""
        self.cases += other.cases
        self.statuses += other.statuses
        self.methods += other.methods
        self.checks += other.checks
        self.unknown_fields += other.unknown_fields
        self.violations += other.violations

    @property
    def left_out(self) -> list[str]:
        """The checks of Schemathesis that have let no answer pass."""
        return sorted(name for name in CHECKS if not self.checks[f"{name} success"])

    @property
    def server_errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status.startswith("5"))

    def note(self, version: str, recorder: Json, token: str) -> None:
        """Count what one scenario has sent and checked."""
        for interaction in recorder.get("interactions", {}).values():
            request, response = interaction["request"], interaction.get("response")
            status = str(response["status_code"]) if response else "no answer"
            self.statuses[status] += 1
            self.methods[request["method"]] += 1
            self.cases += request["headers"].get("Authorization") == [f"Bearer {token}"]
            if _has_unknown_field(request.get("body"), _FIELDS[version]):
                self.unknown_fields[status] += 1
        for checks in recorder.get("checks", {}).values():
            for check in checks:
                self.checks[f"{check['name']} {check['status']}"] += 1


def run_schemathesis(
    server: Server,
    version: str,
    examples: int,
    folder: Path,
    modes: Sequence[str] = ("all",),
    operations: Sequence[str] = (),
) -> Outcome:
    """Let Schemathesis ask so many times for each operation of a version, in each mode.

    ``operations`` are its options that choose some of them.
    """
    token = server.token("tester", *_SCOPES)
    outcome = Outcome()
    hooks = {"SCHEMATHESIS_HOOKS": "tests.acceptance.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    env = {**server.env, **hooks}
    for mode in modes:
        # A folder of its own, where no configuration lies that could switch a check off.
        place = folder / mode
        place.mkdir(parents=True)
        command = [
            *(str(BIN / "schemathesis"), "run", f"{server.url}{DOCUMENTS[version]}"),
            *("--header", f"Authorization: Bearer {token}"),
            *("--checks", "all", "--mode", mode, "--continue-on-failure"),
            *("--max-examples", str(examples), "--seed", str(_SEED)),
            # The token is the one above; a made-up API key beside it would make every case a 401.
            *("--generation-with-security-parameters", "false"),
            *operations,
            *("--report", "json,ndjson", "--report-dir", str(place), "--output-sanitize", "false"),
        ]
        process = subprocess.run(
            command, env=env, cwd=place, check=False, capture_output=True, text=True
        )
        for scenario in _scenarios(place):
            outcome.note(version, scenario["recorder"], token)
        outcome.violations += _violations(
            place, process.returncode, process.stdout + process.stderr
        )
    return outcome


def _scenarios(folder: Path) -> Iterator[Json]:
    for path in folder.glob("*.ndjson"):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                event = json.loads(line)
                if "ScenarioFinished" in event:
                    yield event["ScenarioFinished"]


def _violations(folder: Path, exit_code: int, output: str) -> Iterator[str]:
    """Yield what Schemathesis found, or what kept it from looking."""
    reports = [*folder.glob("*.json")]
    if not reports or exit_code not in _LOOKED:
        yield f"it ended with {exit_code}: {output[-2000:]}"
    for path in reports:
        report = json.loads(path.read_text(encoding="utf-8"))
        if not report["complete"]:
            yield f"it did not end: {report['stop_reason']}"
        for failure in [*report["failures"], *report["errors"]]:
            yield f"{failure['title']}: {failure['count']} at {failure.get('operations')}"


def _has_unknown_field(body: Mapping[str, str] | None, fields: set[str]) -> bool:
    if not isinstance(body, dict):
        return False
    try:
        value = json.loads(base64.b64decode(body["$base64"]))
    except ValueError:
        return False
    return isinstance(value, dict) and not set(value) <= fields


async def run(report: Report, store: Path, folder: Path) -> None:
    examples = max(10, round(_EXAMPLES * report.scale))
    log = ""
    outcomes = {version: Outcome() for version in DOCUMENTS}
    # Feedback has a server of its own: a made-up request id that a prediction was given before has
    # been answered, and a made-up label for it is refused although its form is valid.
    for name, option in (("others", "--exclude-path"), ("feedback", "--include-path")):
        with serve(store, folder / f"home-{name}") as server:
            for version, outcome in outcomes.items():
                path = f"/api/v{version}/feedback"
                if name == "feedback" and version not in _FEEDBACK_VERSIONS:
                    continue
                place = folder / name / version
                operations = (option, path) if version in _FEEDBACK_VERSIONS else ()
                outcome.add(
                    await asyncio.to_thread(
                        run_schemathesis,
                        server.server,
                        version,
                        examples,
                        place,
                        _MODES,
                        operations,
                    )
                )
            log += server.server.process.log
    for version, outcome in outcomes.items():
        _tell(report, version, outcome)
    cases = sum(outcome.cases for outcome in outcomes.values())
    least = round(LEAST_CASES * report.scale)
    report.check(f"at least {least} cases with a valid token", cases, passed=cases >= least)
    wrong = log.count("Traceback") + log.count('"level": "error"')
    report.check("nothing in the log that is wrong", wrong, passed=not wrong)


def _tell(report: Report, version: str, outcome: Outcome) -> None:
    report.tell(
        f"version {version}",
        cases=outcome.cases,
        **{f"status {name}": count for name, count in sorted(outcome.statuses.items())},
        **{f"method {name}": count for name, count in sorted(outcome.methods.items())},
        **{f"check {name}": count for name, count in sorted(outcome.checks.items())},
    )
    report.check(
        f"version {version}: no check fails",
        outcome.violations or f"{outcome.checks.total()} checks",
        passed=not outcome.violations,
    )
    report.check(
        f"version {version}: every check of Schemathesis was made",
        outcome.left_out or sorted(CHECKS),
        passed=not outcome.left_out,
    )
    report.check(
        f"version {version}: no 5xx", outcome.server_errors, passed=outcome.server_errors == 0
    )
    refused = outcome.unknown_fields
    report.check(
        f"version {version}: every body with an unknown field is refused",
        dict(refused),
        passed=bool(refused) and set(refused) <= _REFUSED,
    )
