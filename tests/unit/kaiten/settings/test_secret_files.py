import traceback
from pathlib import Path

import pytest

from kaiten.errors import InvalidSettings
from kaiten.settings.secret_files import read

NAMES = ("kaiten_auth__secret", "kaiten_state__redis_url")
CANARY = "canary-of-a-file"


def refused(folder: Path) -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        read(folder, NAMES)
    return caught.value


def everything_told(error: InvalidSettings) -> str:
    return f"{error!r} {error.details} " + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_file_gives_what_it_holds_without_the_newline_at_its_end(end: str, tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes(f" a b{end}".encode())
    assert read(tmp_path, NAMES) == {NAMES[0]: " a b"}


def test_what_is_mounted_as_kubernetes_does_is_read(tmp_path: Path) -> None:
    """A folder of links, through a link that an update replaces."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / NAMES[1]).write_text("redis://a")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / NAMES[1]).symlink_to(Path("..data") / NAMES[1])
    assert read(tmp_path, NAMES) == {NAMES[1]: "redis://a"}


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres_password").write_bytes(b"\xff")
    (tmp_path / "kubernetes.io" / "serviceaccount").mkdir(parents=True)
    (tmp_path / ".kaiten_hidden").touch()
    assert read(tmp_path, NAMES) == {}


def test_folder_that_is_not_there_has_no_secrets(tmp_path: Path) -> None:
    assert read(tmp_path / "nowhere", NAMES) == {}


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text(CANARY)
    error = refused(file)
    assert error.details[0].field == "KAITEN_SECRETS"
    assert f"{file} can not be read: Not a directory" in error.message
    assert CANARY not in everything_told(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (f"{CANARY}\xff".encode("latin-1"), "is not in UTF-8"),
        (None, "can not be read: Is a directory; let the server's user read it"),
    ],
)
def test_file_that_can_not_be_used_is_named_and_its_content_never_told(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / NAMES[0]
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    error = refused(tmp_path)
    (detail,) = error.details
    assert detail.field == NAMES[0]
    assert detail.reason.startswith(reason)
    assert str(tmp_path) in error.message
    assert CANARY not in everything_told(error)


def test_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).symlink_to("gone")
    assert "can not be read: No such file" in refused(tmp_path).message


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("kaiten_auth_secret", "did you mean kaiten_auth__secret?"),
        ("KAITEN_AUTH__SECRET", "did you mean kaiten_auth__secret?"),
        ("kaiten_state__redis_url.txt", "did you mean kaiten_state__redis_url?"),
        ("kaiten_zzzzzzzzzzzzzzzzzzzzzz", f"take it away; known: {', '.join(NAMES)}"),
    ],
)
def test_file_that_names_no_secret_is_refused_with_a_suggestion(
    name: str, remedy: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(CANARY)
    error = refused(tmp_path)
    assert [(each.field, each.reason) for each in error.details] == [
        (name, f"names no secret setting; {remedy}")
    ]
    assert CANARY not in everything_told(error)


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    for name in (*NAMES, "kaiten_x"):
        (tmp_path / name).touch()
    assert [each.field for each in refused(tmp_path).details] == [*NAMES, "kaiten_x"]
