"""Files of an untrusted folder; links out of it are refused."""

import os
from pathlib import Path

import pytest

from kaiten.confinement import ConfinedFolder, UnsafeFile, open_file, printable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_text("a")
    (folder / "sub" / "b").write_text("b")
    (tmp_path / "outside").write_text("outside")
    return folder


def read(folder: Path, name: str) -> bytes:
    with ConfinedFolder(folder) as confined:
        return confined.read(name)


def names(folder: Path) -> list[str]:
    with ConfinedFolder(folder) as confined:
        return confined.names()


def reason(folder: Path, name: str) -> str:
    with (
        ConfinedFolder(folder) as confined,
        pytest.raises(UnsafeFile) as caught,
        confined.open(name),
    ):
        pass
    assert caught.value.name == name
    return caught.value.reason


@pytest.mark.parametrize("target", ["a", "./a", "sub/../a", "sub/b", "{folder}/a"])
def test_link_inside_is_followed(target: str, folder: Path) -> None:
    (folder / "link").symlink_to(target.format(folder=folder))
    assert read(folder, "link").decode() == Path(target).name
    assert names(folder) == ["a", "link", "sub/b"]


def test_link_in_a_subfolder_is_followed_from_there(folder: Path) -> None:
    (folder / "sub" / "link").symlink_to("../a")
    assert read(folder, "sub/link") == b"a"


@pytest.mark.parametrize(
    "target", ["../outside", "/etc/hostname", "sub/../../outside", "..", ".", "/proc/self/environ"]
)
def test_link_that_leaves_is_refused(target: str, folder: Path) -> None:
    (folder / "link").symlink_to(target)
    assert reason(folder, "link").startswith(f"is a link that leaves the folder, to {target}")


def test_chain_that_leaves_and_comes_back_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "back").symlink_to(folder / "a")
    (folder / "second").symlink_to("../back")
    (folder / "first").symlink_to("second")
    assert "leaves the folder" in reason(folder, "first")


def test_folder_behind_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "up").symlink_to(tmp_path)
    (folder / "link").symlink_to("up/outside")
    assert reason(folder, "link") == "lies in up, a link to a folder"
    assert reason(folder, "up/outside") == "lies in up, a link to a folder"


def test_file_that_is_swapped_for_a_link_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the opening, which is when another process would do it."""
    opened = os.open

    def swap(path: str | Path, flags: int, *args: int, **options: int) -> int:
        if path == "a":
            (folder / "a").unlink()
            (folder / "a").symlink_to("../outside")
        return opened(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", swap)
    with pytest.raises(OSError, match="symbolic links"):
        read(folder, "a")


def test_blob_of_a_hub_is_read_and_its_neighbour_is_not(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "m" / "snapshots" / "r", tmp_path / "m" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / ("0" * 64)).write_text("blob")
    (blobs / ("1" * 40)).symlink_to("/etc/hostname")
    (blobs / "token").write_text("secret")
    for name, target in {"a": "0" * 64, "b": "1" * 40, "c": "token"}.items():
        (snapshot / name).symlink_to(f"../../blobs/{target}")
    assert read(snapshot, "a") == b"blob"
    assert "leaves the folder" in reason(snapshot, "b")
    assert "leaves the folder" in reason(snapshot, "c")
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert reason(snapshot, "a") == "links to blobs, which is missing or a link"


def test_folder_that_is_swapped_through_its_parent_is_still_the_one_that_was_checked(
    tmp_path: Path,
) -> None:
    parent, other = tmp_path / "parent", tmp_path / "other"
    for place, text in ((parent, "checked"), (other, "secret")):
        (place / "folder" / "sub").mkdir(parents=True)
        (place / "folder" / "a").write_text(text)
        (place / "folder" / "sub" / "b").write_text(text)
        (place / "folder" / "link").symlink_to("a")
    with ConfinedFolder(parent / "folder") as confined:
        assert confined.names() == ["a", "link", "sub/b"]
        parent.rename(tmp_path / "away")
        parent.symlink_to(other)
        assert {confined.read(name) for name in confined.names()} == {b"checked"}


def test_blobs_that_are_swapped_are_still_the_ones_beside_the_snapshot(tmp_path: Path) -> None:
    hub, blob = tmp_path / "m", "0" * 64
    (hub / "snapshots" / "r").mkdir(parents=True)
    (hub / "blobs").mkdir()
    (hub / "blobs" / blob).write_text("blob")
    (hub / "snapshots" / "r" / "a").symlink_to(f"../../blobs/{blob}")
    with ConfinedFolder(hub / "snapshots" / "r") as confined:
        (hub / "blobs").rename(tmp_path / "away")
        (hub / "blobs").mkdir()
        (hub / "blobs" / blob).write_text("secret")
        assert confined.read("a") == b"blob"


def test_descriptors_are_closed(folder: Path, tmp_path: Path) -> None:
    (folder / "link").symlink_to("sub/b")
    (folder / "out").symlink_to("../outside")
    before = sorted(Path("/proc/self/fd").iterdir())
    assert read(folder, "link") == b"b"
    with pytest.raises(UnsafeFile):
        names(folder)
    with pytest.raises(FileNotFoundError):
        ConfinedFolder(tmp_path / "missing")
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_hard_link_inside_is_read_and_one_from_outside_is_not(folder: Path) -> None:
    (folder / "twin").hardlink_to(folder / "a")
    with ConfinedFolder(folder) as inside:
        assert inside.names() == ["a", "sub/b", "twin"]
        assert inside.read("twin") == b"a"
    (folder / "theirs").hardlink_to(folder.parent / "outside")
    with pytest.raises(UnsafeFile, match="theirs: is a hard link"):
        names(folder)


def test_fifo_is_refused_and_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    assert reason(folder, "pipe") == "is a FIFO and no regular file"


def test_file_of_an_option_may_be_a_link_beside_it_as_in_a_mounted_secret(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("rows")
    (tmp_path / "link").symlink_to("data")
    with open_file(tmp_path / "link") as file:
        assert file.read() == b"rows"
    (tmp_path / "out").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeFile, match="leaves the folder"), open_file(tmp_path / "out"):
        pass


def test_copy_is_a_new_file_with_no_mode_of_the_source(folder: Path, tmp_path: Path) -> None:
    (folder / "a").chmod(0o4755)
    with ConfinedFolder(folder) as confined:
        confined.copy("a", tmp_path / "made" / "a")
        assert (tmp_path / "made" / "a").read_text() == "a"
        assert (tmp_path / "made" / "a").stat().st_mode & 0o7111 == 0
        with pytest.raises(FileExistsError):
            confined.copy("a", tmp_path / "made" / "a")


def test_name_that_a_terminal_would_obey_is_escaped() -> None:
    assert printable("a\x1b[2J\n") == "a\\x1b[2J\\n"
