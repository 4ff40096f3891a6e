"""A built bento: where it is, whether its files changed, and which packages it pins."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from kaiten.errors import BuildRefused, SetupError
from lifecycle.packaging.bento import (
    PROVENANCE,
    REQUIREMENTS,
    bento_files,
    check_files,
    compare_packages,
    find_bento,
    is_locked,
    pinned_packages,
)
from lifecycle.packaging.context import combine_digests
from lifecycle.store import ModelStore

TAG = "kaiten_service:1.0.0-cpu-0f2a9c81d0be"
LOCKED = """\
bentoml==1.4.39 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
pyjwt[crypto]==2.15.0 \\
    --hash=sha256:cc
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:dd
torch @ https://example.org/torch-2.13.0%2Bcpu-cp311-cp311-linux_x86_64.whl \\
    --hash=sha256:ee
./wheels/numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl \\
    --hash=sha256:ff
"""


@pytest.fixture
def folder(model_store: Path) -> Path:
    """Return a bento in the store, as kaiten build leaves it."""
    folder = model_store / "bentos" / "kaiten_service" / "1.0.0-cpu-0f2a9c81d0be"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "service.py").write_text("service = 1\n")
    content = {"name": "kaiten_service", "version": folder.name, "creation_time": "now"}
    (folder / "bento.yaml").write_text(yaml.safe_dump(content))
    digest = {"sha256": combine_digests(bento_files(folder))}
    statement = {"subject": [{"name": TAG, "digest": digest}]}
    (folder / PROVENANCE).write_text(json.dumps(statement))
    (folder.parent / "latest").write_text(folder.name)
    return folder


@pytest.mark.parametrize("tag", [TAG, "kaiten_service:latest", "kaiten_service"])
def test_bento_is_found_by_its_tag_and_by_its_folder(tag: str, folder: Path) -> None:
    assert find_bento(tag, ModelStore()) == folder
    assert find_bento(str(folder), ModelStore()) == folder


@pytest.mark.parametrize(
    "name",
    [
        "kaiten_service:2",
        "kaiten_service:1.0.0",
        "other",
        "",
        "..",
        "../bentos",
        ":",
        "kaiten_service:../x",
        "/tmp",
    ],
)
def test_bento_that_does_not_exist_is_reported_with_its_store(name: str, folder: Path) -> None:
    with pytest.raises(SetupError) as caught:
        find_bento(name, ModelStore())
    assert caught.value.message.startswith(f"There is no bento {name}: ")
    assert str(folder.parents[1]) in caught.value.message


def test_changed_file_is_reported_and_a_cache_is_not(folder: Path) -> None:
    assert is_locked(folder)
    digest = check_files(folder)
    cache = folder / "src" / "__pycache__"
    cache.mkdir()
    (cache / "service.cpython-311.pyc").touch()
    assert check_files(folder) == digest
    (folder / "src" / "service.py").write_text("service = 2\n")
    with pytest.raises(BuildRefused) as caught:
        check_files(folder)
    assert caught.value.message.startswith(
        f"{TAG} was changed after it was built. First move {folder} out of the store."
    )


def test_pins_are_read_in_every_form_that_a_lock_has(folder: Path) -> None:
    file = folder / REQUIREMENTS
    file.parent.mkdir(parents=True)
    file.write_text(f"# a comment\n--index-url https://example.org\n\n{LOCKED}")
    assert pinned_packages(folder) == {
        "bentoml": "1.4.39",
        "pyjwt": "2.15.0",
        "torch": None,
        "numpy": "2.4.6",
    }


def test_packages_that_are_missing_or_others_are_named() -> None:
    here = version("pydantic")
    pins = {"pydantic": f"{here}+local", "numpy": "0.1", "pyjwt": None, "no-such-package": "1.0"}
    missing, mismatches = compare_packages(pins)
    assert missing == ["no-such-package"]
    assert mismatches == [f"numpy is pinned to 0.1, and is {version('numpy')} here"]
