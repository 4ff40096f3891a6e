"""The README lists each kind of model that the code refuses, and the one that it serves."""

import re

from kaiten.model_kinds import SERVES, UNSERVED
from kaiten.settings.environment import ROOT

_ROW = re.compile(
    r"^\| (?P<kind>[^|(]+?)( \([^|]*\))? \| (?P<served>yes|planned|not planned) \|$", re.MULTILINE
)


def test_readme_lists_each_kind_of_model() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = {row["kind"]: row["served"] for row in _ROW.finditer(readme)}
    served = SERVES.removeprefix("it serves ")
    assert rows.pop(served) == "yes"
    assert rows.keys() == {kind.noun for kind in UNSERVED}
    assert "yes" not in rows.values()
