import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from pydantic import SecretStr

from gateway.auth.signing_secret import secret_of
from kaiten.errors import InvalidSettings
from kaiten.settings.loader import load_settings
from kaiten.settings.models import AuthSettings, SettingsSection
from kaiten.settings.secrets import (
    PLACEHOLDERS,
    DatedSecret,
    auth_secret_file,
    check_secret_sources,
    parse_secrets,
    read_secret_files,
    secret_file_names,
)
from tests.unit.kaiten.settings.refusals import (
    OTHER,
    SECRET,
    everything_shown,
    fields,
    settings_error,
)

CANARY = "canary-of-a-file"
NAMES = secret_file_names()
IN_FILES = {
    "auth.secret": SECRET,
    "signatures.password": SECRET,
    "state.redis_url": "redis://:word@host:6379/0",
    "state.database_url": "postgresql://user:word@host/name",
    "logging.pseudonym_key": SECRET[::-1],
}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Name an empty folder of secrets."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    monkeypatch.setenv("KAITEN_SECRETS", str(folder))
    return folder


def rejected_secrets() -> InvalidSettings:
    with pytest.raises(InvalidSettings) as caught:
        read_secret_files()
    return caught.value


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_secret_is_read_without_the_final_newline(end: str, secrets: Path) -> None:
    (secrets / NAMES[0]).write_bytes(f" a b{end}".encode())
    assert read_secret_files() == {NAMES[0]: " a b"}


def test_secrets_mounted_by_kubernetes_are_read(secrets: Path) -> None:
    """A folder of links, through a link that an update replaces."""
    (secrets / "..2026").mkdir()
    (secrets / "..2026" / NAMES[1]).write_text("redis://a")
    (secrets / "..data").symlink_to("..2026")
    (secrets / NAMES[1]).symlink_to(Path("..data") / NAMES[1])
    assert read_secret_files() == {NAMES[1]: "redis://a"}


def test_other_files_are_ignored(secrets: Path) -> None:
    (secrets / "postgres_password").write_bytes(b"\xff")
    (secrets / "old_auth_secret").write_bytes(b"\xff")
    (secrets / "kubernetes.io" / "serviceaccount").mkdir(parents=True)
    (secrets / ".kaiten_hidden").touch()
    assert read_secret_files() == {}


def test_line_of_a_secret_file_is_reported_with_the_file(secrets: Path) -> None:
    (secrets / NAMES[0]).write_text(f"{SECRET}\nshort")
    (detail,) = settings_error().details
    assert detail.field == "auth.secret"
    assert detail.reason.startswith(f"in {secrets / NAMES[0]}: line 2 is shorter than 32 bytes")


def test_missing_folder_has_no_secrets(secrets: Path) -> None:
    secrets.rmdir()
    assert read_secret_files() == {}


def test_file_instead_of_the_folder_is_rejected(secrets: Path) -> None:
    secrets.rmdir()
    secrets.write_text(CANARY)
    error = rejected_secrets()
    assert error.details[0].field == "KAITEN_SECRETS"
    assert f"{secrets} cannot be read: Not a directory" in error.message
    assert CANARY not in everything_shown(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (f"{CANARY}\xff".encode("latin-1"), "is not UTF-8"),
        (None, "cannot be read: Is a directory; give the server's user read access"),
    ],
)
def test_unusable_file_is_named_and_its_content_never_shown(
    content: bytes | None, reason: str, secrets: Path
) -> None:
    file = secrets / NAMES[0]
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    error = rejected_secrets()
    (detail,) = error.details
    assert detail.field == NAMES[0]
    assert detail.reason.startswith(reason)
    assert str(secrets) in error.message
    assert CANARY not in everything_shown(error)


def test_broken_link_is_rejected(secrets: Path) -> None:
    (secrets / NAMES[0]).symlink_to("gone")
    assert "cannot be read: No such file" in rejected_secrets().message


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("kaiten_auth_secret", "did you mean kaiten_auth__secret?"),
        ("KAITEN_AUTH__SECRET", "did you mean kaiten_auth__secret?"),
        ("katen_auth__secret", "did you mean kaiten_auth__secret?"),
        ("kaiten-auth-secret", "did you mean kaiten_auth__secret?"),
        ("kaiten_state__redis_url.txt", "did you mean kaiten_state__redis_url?"),
        ("kaiten_zzzzzzzzzzzzzzzzzzzzzz", f"remove it, or use {', '.join(NAMES)}"),
    ],
)
def test_unknown_secret_file_is_rejected_with_a_suggestion(
    name: str, remedy: str, secrets: Path
) -> None:
    (secrets / name).write_text(CANARY)
    error = rejected_secrets()
    assert [(detail.field, detail.reason) for detail in error.details] == [
        (name, f"is not a secret setting; {remedy}")
    ]
    assert CANARY not in everything_shown(error)


def test_all_problems_are_reported_together(secrets: Path) -> None:
    for name in (*NAMES, "kaiten_x"):
        (secrets / name).touch()
    assert fields(rejected_secrets()) == [*sorted(NAMES), "kaiten_x"]


def setting_value(name: str) -> str | None:
    section, _, key = name.partition(".")
    values = getattr(getattr(load_settings(), section), key)
    return values.get_secret_value() if values else None


@pytest.mark.parametrize("name", IN_FILES)
def test_every_secret_may_be_a_file(name: str, secrets: Path) -> None:
    assert setting_value(name) is None
    file = secrets / f"kaiten_{name.replace('.', '__')}"
    file.write_text(f"{IN_FILES[name]}\n")
    assert setting_value(name) == IN_FILES[name]


def test_there_are_no_other_secrets() -> None:
    values = {
        f"{section}.{key}"
        for section, field in type(load_settings()).model_fields.items()
        if isinstance(field.default, SettingsSection)
        for key, part in type(field.default).model_fields.items()
        if SecretStr in get_args(part.annotation)
    }
    assert values == {*IN_FILES}


def test_variable_outranks_the_file_of_a_secret(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_state__redis_url").write_text("redis://file")
    (secrets / "kaiten_state__database_url").write_text("postgresql://file/name")
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", "redis://variable")
    assert setting_value("state.redis_url") == "redis://variable"
    assert setting_value("state.database_url") == "postgresql://file/name"


def test_file_of_a_secret_leaves_the_rest_of_its_section(file: Path, secrets: Path) -> None:
    file.write_text("auth:\n  issuer: ours\n")
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    auth = load_settings().auth
    assert (auth.issuer, secret_of(auth)) == ("ours", SECRET)


@pytest.mark.parametrize("named", ["", "/no/such/folder"])
def test_no_folder_of_secrets_is_as_if_none_were_named(
    named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_SECRETS", named)
    assert secret_of(load_settings().auth) is None


def test_secret_in_two_files_is_rejected(
    secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    error = settings_error()
    assert "auth.secret and auth.secret_file are both set; remove one" in error.message
    assert SECRET not in everything_shown(error)


@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("kaiten_auth__secret", SECRET[:31], "auth.secret"),
        ("kaiten_auth__secret", f"your-{SECRET}", "auth.secret"),
        ("kaiten_state__redis_url", f"http://:{SECRET}@host", "state.redis_url"),
        ("kaiten_state__database_url", f"mysql://user:{SECRET}@host/a", "state.database_url"),
        ("kaiten_logging__pseudonym_key", SECRET[:31], "logging.pseudonym_key"),
        ("kaiten_auth_secret", SECRET, "kaiten_auth_secret"),
    ],
)
def test_invalid_secret_in_a_file_is_never_shown(
    name: str, content: str, field: str, secrets: Path
) -> None:
    (secrets / name).write_text(content)
    error = settings_error()
    assert fields(error) == [field]
    assert str(secrets) in error.message
    assert content not in everything_shown(error)
    assert SECRET[:31] not in everything_shown(error)


def test_different_secrets_in_a_variable_and_a_file_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kaiten_auth__secret").write_text(SECRET)
    monkeypatch.setenv("KAITEN_SECRETS", str(tmp_path))
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    check_secret_sources()
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET[::-1])
    with pytest.raises(InvalidSettings, match="remove one of the two") as caught:
        check_secret_sources()
    assert fields(caught.value) == ["kaiten_auth__secret"]
    assert SECRET not in everything_shown(caught.value)
    assert SECRET[::-1] not in everything_shown(caught.value)


@pytest.mark.parametrize(
    "secret",
    [
        SECRET[:31],
        "ab" * 32,
        "0" * 64,
        *(f"{word}-{SECRET}" for word in PLACEHOLDERS),
        f"CHANGE-ME-{SECRET}",
    ],
)
@pytest.mark.parametrize("place", ["variable", "yaml"])
def test_weak_secret_is_rejected_and_never_shown(
    secret: str, place: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "variable":
        monkeypatch.setenv("KAITEN_AUTH__SECRET", secret)
    else:
        file.write_text(f"auth:\n  secret: '{secret}'\n")
    error = settings_error()
    assert fields(error) == ["auth.secret"]
    remedies = {
        "variable": "generate one with `openssl rand -hex 32`",
        "yaml": "KAITEN_AUTH__SECRET",
    }
    assert remedies[place] in error.message
    assert secret not in everything_shown(error)


@pytest.mark.parametrize("form", [repr, str, lambda settings: settings.model_dump_json()])
def test_settings_do_not_show_the_secret(form: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    settings = load_settings()
    assert secret_of(settings.auth) == SECRET
    assert callable(form)
    assert SECRET not in form(settings)


def test_secret_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    settings = load_settings()
    assert secret_of(settings.auth) == SECRET
    assert SECRET not in repr(settings)


def test_two_sources_of_the_secret_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_AUTH__SECRET_FILE", str(tmp_path / "secret"))
    error = settings_error()
    assert "auth.secret and auth.secret_file are both set; remove one" in error.message
    assert SECRET not in everything_shown(error)


@pytest.mark.parametrize(
    "content", [None, b"", SECRET[:31].encode(), f"your-{SECRET}".encode(), b"\xff" * 40]
)
def test_unusable_secret_file_is_rejected(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidSettings) as caught:
        secret_of(AuthSettings(secret_file=path))
    assert fields(caught.value) == ["auth.secret_file"]
    assert str(path) in caught.value.message
    assert SECRET[:31] not in everything_shown(caught.value)


def test_secret_file_may_not_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"auth\.secret_file"):
        secret_of(AuthSettings(secret_file=tmp_path))


@pytest.mark.parametrize("key", [SECRET[:31], "0" * 64])
def test_weak_pseudonym_key_is_rejected_and_never_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", key)
    error = settings_error()
    assert fields(error) == ["logging.pseudonym_key"]
    assert key not in everything_shown(error)


@pytest.mark.parametrize(
    "url",
    ["redis://h", "redis://:p%2Fw@h:6379/0", "rediss://u:p@h:1/2", "unix:///run/redis.sock?db=1"],
)
def test_redis_url_is_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", url)
    address = load_settings().state.redis_url
    assert address is not None
    assert address.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    [
        *("canary", "mysql://me:$canary@h/n", "postgresql://me:$canary@h", "postgresql:///n"),
        *("postgresql://me:ca/nary@h/n", "postgresql://h:canary/n", "sqlite:///canary.sqlite"),
        # Of each of these, some parser takes a part of the password for the host or the name.
        *("postgresql://me:$ca@nary@h/n", "postgresql://me:1/nary@h/n", "postgresql://h/n@nary"),
        *("postgresql://me:1/nary@h:5433/n", "postgresql://me:1/n?nary@h/n"),
    ],
)
def test_invalid_database_url_is_rejected_and_never_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_STATE__DATABASE_URL", url)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert [detail.field for detail in caught.value.details] == ["state.database_url"]
    assert "nary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_database_url_is_accepted(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{scheme}://me:p$%2Fw@h:5433/quality"
    monkeypatch.setenv("KAITEN_STATE__DATABASE_URL", url)
    address = load_settings().state.database_url
    assert address is not None
    assert address.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["canary:6379", "http://canary", "redis://", "redis://:ca/nary@h", "redis://h:canary", "unix:"],
)
def test_invalid_redis_url_is_rejected_and_never_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_STATE__REDIS_URL", url)
    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert [detail.field for detail in caught.value.details] == ["state.redis_url"]
    message = "".join(traceback.format_exception(caught.value))
    assert "canary" not in message
    assert "nary" not in message


END = "until 2026-12-31T12:00:00Z"
ENDS_AT = datetime(2026, 12, 31, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "end", [f"{END}", "until 2026-12-31 12:00", "until\t2026-12-31T13:00+01:00"]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n  "])
def test_first_secret_signs_and_others_have_ends(end: str, newline: str) -> None:
    content = newline.join([SECRET, f"{OTHER} {end}", SECRET[::-1], ""])
    secrets = (DatedSecret(SECRET), DatedSecret(OTHER, ENDS_AT), DatedSecret(SECRET[::-1]))
    assert parse_secrets(content) == parse_secrets(content.encode()) == secrets


def test_secret_that_is_alone_may_contain_spaces() -> None:
    assert parse_secrets(f" {SECRET} {OTHER}\n") == (DatedSecret(f"{SECRET} {OTHER}"),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (" \n", "is empty"),
        (SECRET[:31], "is shorter than 32 bytes; generate one"),
        (f"{SECRET}\n{OTHER[:31]}", "line 2 is shorter than 32 bytes; generate one"),
        (f"{SECRET}\n\nyour-{OTHER}", "line 3 looks like a placeholder; generate one"),
        (f"{SECRET} {END}", "gives its first secret an end"),
        (f"{SECRET} {END}\n{OTHER}", "gives its first secret an end"),
        (
            f"{SECRET}\n{OTHER} until",
            "line 2 has an end that is not an instant; write it as until 2026",
        ),
        (f"{SECRET}\n{OTHER} until noon", "line 2 has an end that is not an instant"),
        (f"{SECRET}\n{OTHER} untill 2026-12-31", "line 2 holds more than a secret"),
        (f"{SECRET}\n{OTHER} {SECRET} {END}", "line 2 holds more than a secret"),
        (f"{SECRET}\n{SECRET} {END}", "contains a secret twice"),
        ("\n".join(f"{number:02}{SECRET}" for number in range(17)), "contains over 16 secrets"),
        (SECRET.encode() + b"\xff", "is not UTF-8 text"),
    ],
)
def test_unusable_secrets_are_rejected_by_their_line_and_never_shown(
    content: str | bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"^{reason}") as caught:
        parse_secrets(content)
    text = "".join(traceback.format_exception(caught.value))
    assert not [secret for secret in (SECRET[:31], OTHER[:31]) if secret in text]


def test_repr_shows_no_secret() -> None:
    assert SECRET not in repr(parse_secrets(SECRET))


def test_signing_secrets_may_be_several_in_a_setting_and_a_file(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = f"{SECRET}\n{OTHER} {END}"
    monkeypatch.setenv("KAITEN_AUTH__SECRET", content)
    assert secret_of(load_settings().auth) == content
    monkeypatch.delenv("KAITEN_AUTH__SECRET")
    (secrets / "kaiten_auth__secret").write_text(f"{content}\n")
    assert secret_of(load_settings().auth) == content
    monkeypatch.setenv("KAITEN_AUTH__SECRET", f"{SECRET}\nshort")
    error = settings_error()
    assert fields(error) == ["auth.secret"]
    assert "line 2 is shorter than 32 bytes" in error.message
    assert SECRET not in everything_shown(error)


def test_file_of_the_signing_secret_is_found_unless_a_variable_holds_it(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auth_secret_file(None) is None
    file = secrets / "kaiten_auth__secret"
    file.write_text(SECRET)
    monkeypatch.chdir(secrets.parent)
    monkeypatch.setenv("KAITEN_SECRETS", secrets.name)
    assert auth_secret_file(None) == file
    assert auth_secret_file(Path("mine")) == secrets.parent / "mine"
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    assert auth_secret_file(None) is None


@pytest.mark.parametrize("key", [f"hex:{SECRET}zz", f"hex:{SECRET}0"])
def test_pseudonym_key_that_is_not_hexadecimal_is_rejected(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_LOGGING__PSEUDONYM_KEY", key)
    error = settings_error()
    assert fields(error) == ["logging.pseudonym_key"]
    assert "is not hexadecimal after hex:" in error.message
    assert SECRET not in everything_shown(error)
