from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from monitors.drift.archive.target import check_target


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("s4://bucket/prefix", "not a supported kind of address"),
        ("gs://bucket/prefix", "needs the package gcsfs"),
        ("{here}/file/below", "is not a folder"),
    ],
)
def test_a_target_that_nothing_can_be_written_to_is_refused_at_start(
    target: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSettings, match=reason) as refused:
        check_target(target.format(here=tmp_path))
    assert [detail.field for detail in refused.value.details] == ["profiles.target"]


@pytest.mark.parametrize("target", [None, "s3://bucket", "{here}/to/be/made", "file://{here}"])
def test_a_target_that_may_do_is_not_tried_at_start(target: str | None, tmp_path: Path) -> None:
    check_target(target.format(here=tmp_path) if target else None)
    assert not [*tmp_path.iterdir()]
