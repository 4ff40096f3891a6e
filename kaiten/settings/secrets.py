"""Secret settings: their names, their files in the folder of KAITEN_SECRETS, and their checks.

No message quotes a secret or a part of one.
"""

import math
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
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
# Before a pseudonym key in hexadecimal.
HEX = "hex:"
MIN_SECRET_BYTES = 32
# How similar a misspelled name is to the right one, by difflib.
_MISSPELLED_RATIO = 0.8
# Of one issuer; each costs a token of an unknown secret another verification.
MAX_SECRETS = 16
PLACEHOLDERS = ("change", "placeholder", "example", "secret", "password", "your-")
_UNTIL = re.compile(r"\s+until(?:\s+|$)")
_EXAMPLE = "2026-12-31T12:00:00Z"


def secret_file_names() -> list[str]:
    """Return the file name of each secret setting: its environment variable in lower case."""
    return [f"{PREFIX}{section}__{key}".lower() for section, key in SECRET_SETTINGS]


def read_secret_files() -> dict[str, str]:
    """Return the secrets in the folder of KAITEN_SECRETS by file name, without the final newline.

    A missing folder holds no secrets. Other files are ignored.

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


def secret_file_in_force(variable: str) -> Path | None:
    """Return the file in the folder of KAITEN_SECRETS that stands for a variable, if any."""
    name, folder = variable.lower(), secrets_folder()
    return folder / name if folder is not None and name in read_secret_files() else None


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


@dataclass(frozen=True, slots=True)
class DatedSecret:
    """A secret, and the end of its validity in epoch seconds."""

    value: str = field(repr=False)
    ends_at: float = math.inf


def parse_secrets(content: str | bytes) -> tuple[DatedSecret, ...]:
    """Return the secrets of a setting or a file: one a line, of which the first signs.

    The others verify what they signed earlier, until the instant at the end of their line, if any:
    ``SECRET until 2026-12-31T12:00:00Z``.

    Raises:
        ValueError: Says which line is unusable, and why.

    """
    numbered = enumerate(_decoded(content).split("\n"), start=1)
    lines = {number: line.strip() for number, line in numbered if line.strip()}
    secrets: list[DatedSecret] = []
    for number, line in lines.items():
        try:
            secrets.append(_dated_secret(line, alone=len(lines) == 1))
        except ValueError as error:
            raise ValueError(f"line {number} {error}" if len(lines) > 1 else str(error)) from None
    _check_order(secrets)
    return tuple(secrets)


def auth_secret_file(setting: Path | None) -> Path | None:
    """Return the file of the signing secret; ``setting`` is auth.secret_file.

    Otherwise it is the file in the folder of KAITEN_SECRETS. None if neither exists, or if a
    variable holds the secret.
    """
    if setting is not None:
        return setting.absolute()
    name, folder = f"{PREFIX}AUTH__SECRET", secrets_folder()
    if folder is None or os.environ.get(name):
        return None
    file = folder.absolute() / name.lower()
    return file if file.is_file() else None


def check_secret(secret: str) -> None:
    """Raise ValueError for a secret that is short, repetitive or a placeholder."""
    remedy = "generate one with `openssl rand -hex 32`"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; {remedy}")
    if len(set(secret)) < MIN_SECRET_BYTES // 4 or any(
        word in secret.lower() for word in PLACEHOLDERS
    ):
        raise ValueError(f"looks like a placeholder; {remedy}")


def pseudonym_key_bytes(value: str) -> bytes:
    """Return the bytes of a pseudonym key: those of its text, or the ones after ``hex:``.

    Raises:
        ValueError: No hexadecimal digits follow ``hex:``.

    """
    if not value.startswith(HEX):
        return value.encode()
    try:
        return bytes.fromhex(value.removeprefix(HEX))
    except ValueError:
        raise ValueError(f"is not hexadecimal after {HEX}; correct it, or omit {HEX}") from None


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
    """Return whether an unknown file name is probably a misspelled secret."""
    lowered = name.lower()
    is_close = bool(get_close_matches(lowered, names, n=1, cutoff=_MISSPELLED_RATIO))
    return lowered.startswith(PREFIX.lower()) or is_close


def _unknown_name(name: str, names: Collection[str]) -> str:
    guess = get_close_matches(name.lower(), names, n=1)
    remedy = f"did you mean {guess[0]}?" if guess else f"remove it, or use {', '.join(names)}"
    return f"is not a secret setting; {remedy}"


def _decoded(content: str | bytes) -> str:
    if isinstance(content, str):
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        # The error itself would quote the content.
        raise ValueError("is not UTF-8 text; write one secret a line into it") from None


def _dated_secret(line: str, *, alone: bool) -> DatedSecret:
    """Parse a line; ``alone`` is whether the content has no other."""
    value, *until = _UNTIL.split(line, maxsplit=1)
    if (until or not alone) and len(value.split()) != 1:
        raise ValueError(
            "holds more than a secret; after it, only an end is allowed, written as "
            f"until {_EXAMPLE}"
        )
    check_secret(value)
    return DatedSecret(value, _instant(until[0]) if until else math.inf)


def _instant(text: str) -> float:
    """Parse an instant, in UTC unless it has an offset."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        # Not quoted: it may be a part of a secret.
        raise ValueError(
            f"has an end that is not an instant; write it as until {_EXAMPLE}"
        ) from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _check_order(secrets: Sequence[DatedSecret]) -> None:
    if not secrets:
        raise ValueError("is empty; generate a secret with `openssl rand -hex 32`")
    if secrets[0].ends_at < math.inf:
        raise ValueError(
            "gives its first secret an end, although it signs new tokens; write a new secret above"
        )
    if len({secret.value for secret in secrets}) < len(secrets):
        raise ValueError("contains a secret twice; remove one of the two lines")
    if len(secrets) > MAX_SECRETS:
        raise ValueError(f"contains over {MAX_SECRETS} secrets; remove some that have ended")
