import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from kaiten.settings.environment import ROOT
from tests.deploy.tools import Finding, ToolAbsent, ToolFailed, Tools
from tests.deploy.verdict import BROKEN, Check, judge

OURS, BAD = ROOT / "deploy" / "ours.yaml", ROOT / "bad.yaml"


def check_that_finds(*faulty_paths: Path) -> Check:
    """Return a check that finds something in these files."""

    def look(paths: Sequence[Path]) -> Iterable[Finding]:
        return [Finding(path, "is wrong") for path in paths if path in faulty_paths]

    return Check("look", look, [OURS], [BAD])


def test_it_passes_if_it_tells_of_what_is_broken_and_of_nothing_else() -> None:
    verdict = judge(check_that_finds(BAD))
    assert verdict.lines == ["look: 1, no findings"]
    assert not verdict.failed


def test_a_finding_fails_and_names_the_file() -> None:
    verdict = judge(check_that_finds(OURS, BAD))
    assert verdict.lines == ["look: deploy/ours.yaml: is wrong"]
    assert verdict.failed


def test_a_check_that_passes_over_what_is_broken_fails() -> None:
    verdict = judge(check_that_finds())
    assert verdict.lines == ["look: passes over bad.yaml, so it can find nothing"]
    assert verdict.failed


def test_a_check_of_nothing_fails() -> None:
    verdict = judge(Check("look", lambda _: [], [], [BAD]))
    assert verdict.lines == ["look: there is no file to look at"]
    assert verdict.failed


def test_a_tool_that_gives_up_fails() -> None:
    def look(_: Sequence[Path]) -> Iterable[Finding]:
        raise ToolFailed("it gave up")

    verdict = judge(Check("look", look, [OURS], [BAD]))
    assert verdict.lines == ["look: it gave up"]
    assert verdict.failed


def test_a_check_whose_optional_tool_is_absent_is_left_out_and_says_so() -> None:
    def look(_: Sequence[Path]) -> Iterable[Finding]:
        raise ToolAbsent("it is not here; get it")

    verdict = judge(Check("look", look, [OURS], [BAD]))
    assert verdict.lines == ["look: left out: it is not here; get it"]
    assert not verdict.failed


def test_a_tool_that_is_not_there_is_named_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    tools = Tools(tmp_path)
    with pytest.raises(ToolFailed, match=r"hadolint is not here; remove .* and run"):
        list(tools.hadolint([OURS]))
    with pytest.raises(ToolFailed, match=r"promtool is not here; .* apt-get install prometheus"):
        list(tools.promtool([OURS]))
    with pytest.raises(ToolAbsent, match=r"systemd-analyze is not here; .* install systemd"):
        list(tools.systemd([ROOT / "deploy" / "systemd" / "kaiten@.service"]))
    (finding,) = tools.kustomize([BROKEN / "kustomize"])
    assert finding.message.startswith("kubectl is not here; get it from https://")


def test_a_tool_that_breaks_off_is_no_pass(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "hadolint"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no config >&2\nexit 1\n", encoding="utf-8")
    program.chmod(0o755)
    with pytest.raises(ToolFailed, match="hadolint gave no report: no config"):
        list(Tools(tmp_path).hadolint([OURS]))


def systemd_analyze(folder: Path, verify: str) -> None:
    """Write a systemd-analyze that finds no exposure; ``verify`` is what its other half does."""
    program = folder / "systemd-analyze"
    program.write_text(f'#!/bin/sh\n[ "$1" = verify ] || exit 0\n{verify}\n', encoding="utf-8")
    program.chmod(0o755)


def test_a_unit_that_systemd_cannot_verify_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    unit = ROOT / "deploy" / "systemd" / "kaiten@.service"
    systemd_analyze(tmp_path, "echo no bus >&2; exit 1")
    with pytest.raises(ToolFailed, match="systemd-analyze verify failed: no bus"):
        list(Tools(tmp_path).systemd([unit]))
    systemd_analyze(tmp_path, f"echo '{unit.name}:9: Unknown key' >&2; exit 1")
    (finding,) = Tools(tmp_path).systemd([unit])
    assert finding.message == f"{unit.name}:9: Unknown key"


def test_the_misspelled_unit_is_the_shipped_one_but_for_one_directive() -> None:
    shipped = (ROOT / "deploy" / "systemd" / "kaiten@.service").read_text("utf-8").splitlines()
    broken = (BROKEN / "systemd" / "misspelled@.service").read_text("utf-8").splitlines()
    (difference,) = [pair for pair in zip(shipped, broken, strict=True) if pair[0] != pair[1]]
    assert difference == ("TimeoutStopSec=60", "TimeoutStopSecs=60")


def test_each_check_has_something_broken_to_be_tried_on() -> None:
    looks = {name for name in vars(Tools) if not name.startswith("_")} - {"folder"}
    assert {path.name for path in BROKEN.iterdir() if path.is_dir()} == looks
    assert all(any(path.iterdir()) for path in BROKEN.iterdir() if path.is_dir())
