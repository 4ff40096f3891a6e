"""The secrets of this service's tokens: configured, or in development one made on first use."""

import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from kaiten.errors import Detail, InvalidSettings
from kaiten.pseudonyms import Pseudonyms, pseudonym_key
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings
from kaiten.settings.secrets import (
    DEVELOPMENT_SECRET_FILE,
    DatedSecret,
    auth_secret_file,
    parse_secrets,
)
from kaiten.settings.snapshot import read_key_file

ALGORITHM = "HS256"
logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """The secret that signs tokens, and older ones that verify what they signed.

    The development secret serves this machine only. ``file`` is where the secrets come from, None
    if it is a variable.
    """

    value: str = field(repr=False)
    development: bool
    older: tuple[DatedSecret, ...] = ()
    file: Path | None = None

    @classmethod
    def parsed(cls, text: str, file: Path | None, *, development: bool) -> "SigningSecret":
        """Parse the secrets of a setting or a file.

        Raises:
            ValueError: As parse_secrets.

        """
        first, *older = parse_secrets(text)
        return cls(first.value, development, tuple(older), file)

    @property
    def dated(self) -> tuple[DatedSecret, ...]:
        """All secrets, the one that signs first."""
        return (DatedSecret(self.value), *self.older)

    @property
    def oldest(self) -> str:
        """The last secret, from which the key of the pseudonyms is derived."""
        return self.dated[-1].value


def find_pseudonyms(settings: Settings, secret: SigningSecret | None) -> Pseudonyms | None:
    """Return the pseudonyms of subjects; None if no key is set and there is no signing secret."""
    key = pseudonym_key(settings.logging, secret.oldest if secret else None)
    return Pseudonyms(key) if key else None


def secret_in_force(settings: Settings) -> SigningSecret | None:
    """Return the secret in force; None if only the issuers of auth.issuers sign tokens.

    Raises:
        InvalidSettings: There is neither, in production.

    """
    if configured_secret(settings) is None and settings.auth.issuers:
        return None
    return signing_secret(settings)


def signing_secret(settings: Settings) -> SigningSecret:
    """Return the secret to sign with.

    Raises:
        InvalidSettings: There is no secret, or it cannot be read or written.

    """
    configured = configured_secret(settings)
    if configured is not None:
        file = auth_secret_file(settings.auth.secret_file)
        return SigningSecret.parsed(configured, file, development=False)
    if settings.auth.issuers:
        reason = "is not set: the tokens come from auth.issuers, and none are made here"
        raise InvalidSettings([Detail("auth.secret", reason)], "auth")
    file = settings.home.resolve() / DEVELOPMENT_SECRET_FILE
    try:
        return SigningSecret.parsed(_development_secret(file), file, development=True)
    except OSError as error:
        reason = f"{settings.home} cannot be written: {error.strerror}; name another in KAITEN_HOME"
        problem = Detail("home", reason)
    except ValueError:
        problem = Detail("home", f"{file} is broken; delete it, and a new one is made")
    raise InvalidSettings([problem], "KAITEN_HOME")


def configured_secret(settings: Settings) -> str | None:
    """Return the configured secrets; None if development makes one, which this does not do.

    Raises:
        InvalidSettings: There is none, in production; or as secret_of.

    """
    configured = secret_of(settings.auth)
    if configured is None and settings.in_production and not settings.auth.issuers:
        reason = (
            "is not set, and production does not start without one; set KAITEN_AUTH__SECRET or"
            " KAITEN_AUTH__SECRET_FILE, for example to the output of `openssl rand -hex 32`. Or"
            " write it to the file kaiten_auth__secret in the folder that KAITEN_SECRETS names, or"
            " name other issuers of tokens in auth.issuers"
        )
        raise InvalidSettings([Detail("auth.secret", reason)], "production")
    return configured


def secret_of(auth: AuthSettings) -> str | None:
    """Return the configured signing secrets, one a line, from the setting or its file.

    Returns None without either.

    Raises:
        InvalidSettings: The file cannot be read, or does not hold secrets.

    """
    if auth.secret is not None:
        return auth.secret.get_secret_value()
    if auth.secret_file is None:
        return None
    try:
        content = read_key_file(auth.secret_file)
        parse_secrets(content)
    except OSError as error:
        reason = f"{auth.secret_file} cannot be read: {error.strerror}"
    except ValueError as error:
        reason = f"{auth.secret_file} {error}"
    else:
        return content.decode().strip()
    raise InvalidSettings([Detail("auth.secret_file", reason)], "secret file")


def _development_secret(file: Path) -> str:
    """Return the development secret; processes that make it at once agree on one."""
    try:
        return read_key_file(file).decode("ascii")
    except FileNotFoundError:
        return _new_development_secret(file)


def _new_development_secret(path: Path) -> str:
    home = path.parent
    home.mkdir(parents=True, exist_ok=True)
    # mkstemp gives mode 0600. A link to a complete file appears whole or fails as it exists.
    descriptor, name = tempfile.mkstemp(dir=home, prefix=f".{DEVELOPMENT_SECRET_FILE}-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        path.hardlink_to(name)
        logger.warning(
            "development_secret_created",
            file=str(path),
            remark="its tokens are accepted from this machine only",
        )
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
    return path.read_text(encoding="ascii")
