"""Secret settings: their names, their files in the folder of KAITEN_SECRETS, and their checks.

No message quotes a secret or a part of one.
"""

import os
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlsplit

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.environment import PREFIX, secrets_folder

# Settings that come from the environment or from a file of their own, never from kaiten.yaml.
SECRET_SETTINGS = (
    ("auth", "secret"),
    ("signatures", "password"),
    ("state", "redis_url"),
    ("state", "database_url"),
    ("logging", "pseudonym_key"),
)
# In KAITEN_HOME; created on first use if a development server has no signing secret.
DEVELOPMENT_SECRET_FILE = "development.secret"  # noqa: S105  the file's name
MIN_SECRET_BYTES = 32
# How similar a name is, by difflib, to one of ours that it misspells.
_MISSPELLED_RATIO = 0.8
PLACEHOLDERS = ("change", "placeholder", "example", "secret", "password", "your-")


def secret_file_names() -> list[str]:
    """Return the file name of each secret setting: its environment variable in lower case."""
    return [f"{PREFIX}{section}__{key}".lower() for section, key in SECRET_SETTINGS]


def read_secret_files() -> dict[str, str]:
    """Return the secrets in the folder of KAITEN_SECRETS by file name, without the final newline.

    A missing folder holds no secrets. Files of others are ignored.

    Raises:
        InvalidSettings: The folder or a file in it cannot be read, or a file name is unknown.

    """
    folder = secrets_folder()
    if folder is None:
        return {}
    names, secrets = secret_file_names(), dict[str, str]()
    problems: list[Detail] = []
    for name in _file_names(folder):
        if name in names:
            try:
                secrets[name] = _read_secret(folder / name)
            except ValueError as error:
                problems.append(Detail(name, str(error)))
        elif _is_misspelled(name, names):
            problems.append(Detail(name, _unknown_name(name, names)))
    if problems:
        raise InvalidSettings(problems, str(folder))
    return secrets


def check_secret_sources() -> None:
    """Check that no secret has one value in a variable and another in a file.

    Raises:
        InvalidSettings: A secret has two values.

    """
    problems = [
        Detail(name, f"differs from {name.upper()}, which takes precedence; remove one of the two")
        for name, secret in read_secret_files().items()
        if os.environ.get(name.upper()) not in (None, "", secret)
    ]
    if problems:
        raise InvalidSettings(problems, str(secrets_folder()))


def check_secret(secret: str) -> None:
    """Raise ValueError for a secret that is short, repetitive or a placeholder."""
    remedy = "generate one with `openssl rand -hex 32`"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; {remedy}")
    if len(set(secret)) < MIN_SECRET_BYTES // 4 or any(
        word in secret.lower() for word in PLACEHOLDERS
    ):
        raise ValueError(f"looks like a placeholder; {remedy}")


def check_redis_url(url: str) -> None:
    """Raise ValueError for a URL that does not name a Redis."""
    try:
        parts = urlsplit(url)
        # An unescaped slash in a password ends the address early, and leaves no valid port.
        valid = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:
        valid = False
    if not valid or parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "is not a Redis URL; write it as redis://:PASSWORD@HOST:6379/0, and percent-encode "
            "special characters in the password"
        )


def check_database_url(url: str) -> None:
    """Raise ValueError for a URL that does not name a PostgreSQL database."""
    try:
        parts = urlsplit(url)
        # As above for a slash in the password. If digits precede it, or the password has an @, some
        # parsers take a part of it for the host or the database, and quote that in their errors.
        valid = bool(parts.hostname and parts.path.strip("/") and parts.port != 0)
        valid = valid and url.count("@") == parts.netloc.count("@") <= 1
    except ValueError:
        valid = False
    if not valid or parts.scheme not in {"postgresql", "postgresql+psycopg", "postgres"}:
        raise ValueError(
            "is not a PostgreSQL URL; write it as "
            "postgresql+psycopg://USER:<PASSWORD>@HOST:5432/NAME, and percent-encode special "
            "characters in the password, or leave it empty to use an SQLite file"
        )


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = (
            f"{folder} cannot be read: {error.strerror}; name a folder that the server can read"
        )
        raise InvalidSettings([Detail("KAITEN_SECRETS", reason)], "environment") from None


def _read_secret(path: Path) -> str:
    """Return a file's content without the final newline; ValueError says why it is unusable."""
    try:
        content = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        # The error itself would quote the content.
        raise ValueError("is not UTF-8 text; write the secret alone into the file") from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; give the server's user read access"
        raise ValueError(reason) from None
    if not content.strip():
        raise ValueError("is empty; write the secret into it, or remove the file")
    return content


def _is_misspelled(name: str, names: Collection[str]) -> bool:
    """Return whether a file that is none of ours is named so much like one that it was meant."""
    lowered = name.lower()
    is_close = bool(get_close_matches(lowered, names, n=1, cutoff=_MISSPELLED_RATIO))
    return lowered.startswith(PREFIX.lower()) or is_close


def _unknown_name(name: str, names: Collection[str]) -> str:
    guess = get_close_matches(name.lower(), names, n=1)
    remedy = f"did you mean {guess[0]}?" if guess else f"remove it, or use {', '.join(names)}"
    return f"is not a secret setting; {remedy}"
