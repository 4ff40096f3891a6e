"""The secret that tokens are signed with: configured, or in development one made on first use."""

import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.loader import Settings
from kaiten.settings.models import AuthSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE, check_secret
from kaiten.settings.snapshot import read_key_file

ALGORITHM = "HS256"


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """The secret, and whether it is the development one, which serves this machine only."""

    value: str = field(repr=False)
    development: bool


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
        return SigningSecret(configured, development=False)
    if settings.auth.issuers:
        reason = "is not set: the tokens come from auth.issuers, and none are made here"
        raise InvalidSettings([Detail("auth.secret", reason)], "auth")
    try:
        return SigningSecret(_development_secret(settings.home), development=True)
    except OSError as error:
        problem = Detail("home", f"{settings.home} cannot be written: {error.strerror}")
    except ValueError:
        file = settings.home / DEVELOPMENT_SECRET_FILE
        problem = Detail("home", f"{file} is broken; delete it, and a new one is made")
    raise InvalidSettings([problem], "KAITEN_HOME")


def configured_secret(settings: Settings) -> str | None:
    """Return the configured secret; None if development makes one, which this does not do.

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
    """Return the configured signing secret, from the setting or its file; None without either.

    Raises:
        InvalidSettings: The file cannot be read, or holds a placeholder.

    """
    if auth.secret is not None:
        return auth.secret.get_secret_value()
    if auth.secret_file is None:
        return None
    try:
        secret = read_key_file(auth.secret_file).decode().strip()
        check_secret(secret)
    except (OSError, ValueError) as error:
        problem = Detail("auth.secret_file", f"{auth.secret_file}: {error}")
        raise InvalidSettings([problem], "secret file") from None
    return secret


def _development_secret(home: Path) -> str:
    """Return the machine's development secret; processes that make it at once agree on one."""
    path = home / DEVELOPMENT_SECRET_FILE
    try:
        secret = read_key_file(path).decode("ascii")
    except FileNotFoundError:
        secret = _new_development_secret(home)
    check_secret(secret)
    return secret


def _new_development_secret(home: Path) -> str:
    path = home / DEVELOPMENT_SECRET_FILE
    home.mkdir(parents=True, exist_ok=True)
    # mkstemp gives mode 0600. A link to a complete file appears whole or fails as it exists.
    descriptor, name = tempfile.mkstemp(dir=home, prefix=f".{DEVELOPMENT_SECRET_FILE}-")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        Path(path).hardlink_to(name)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()
    return path.read_text(encoding="ascii")
