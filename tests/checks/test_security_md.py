"""Every threat in SECURITY.md names the tests that try it, and they are there."""

import ast
import re

import pytest

from kaiten.settings.environment import ROOT

TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py::\w+)`", TEXT)))
# A threat in bold, the mitigation behind it, and the tests that attempt it, one a line.
SECTION = TEXT.partition("## Threats")[2].partition("## Not defended against")[0]
THREATS = re.split(r"^- ", SECTION, flags=re.MULTILINE)[1:]


def functions(file: str) -> set[str]:
    """Return the names of a file's functions, its classes' included."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    kinds = ast.FunctionDef, ast.AsyncFunctionDef
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_there_are_threats() -> None:
    assert len(THREATS) > 25


@pytest.mark.parametrize("threat", THREATS, ids=[threat[2:42] for threat in THREATS])
def test_a_threat_has_a_mitigation_and_a_test(threat: str) -> None:
    assert re.match(r"\*\*[^*]+\.\*\*\s\S.*\n(?:  - `tests/[\w/]+\.py::\w+`\n)+", threat, re.DOTALL)


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_is_there(named: str) -> None:
    file, _, function = named.partition("::")
    assert (ROOT / file).is_file()
    assert function.startswith("test_")
    assert function in functions(file)


def test_every_file_that_is_named_is_there() -> None:
    for file in set(re.findall(r"`((?:tests|gateway|lifecycle|runners)/[\w/]*(?:\.py)?)`", TEXT)):
        assert (ROOT / file).exists(), file
