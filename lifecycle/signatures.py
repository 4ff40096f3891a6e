"""Signs versions and verifies their signatures with OpenSSF model-signing (ADR 12)."""

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import structlog

from kaiten.errors import Detail, InvalidSettings, ModelRejected
from kaiten.files import replace_file
from kaiten.settings.models import SignatureSettings
from lifecycle.card import BENTOML_FILE, REPORTS, SIGNATURE_FILE

logger = structlog.get_logger(__name__)
_PROGRAM = Path(__file__).with_name("signer.py")
# The program hashes the folder; even the largest models are read within minutes.
_TIMEOUT_S = 1800
# Files that change after registration, and those of BentoML.
_UNSIGNED = (REPORTS, BENTOML_FILE, SIGNATURE_FILE)


def sign_version(folder: Path, settings: SignatureSettings) -> None:
    """Sign the files of a version, if ``private_key`` is set.

    Raises:
        InvalidSettings: The key cannot be used.

    """
    if settings.private_key is None:
        return
    with TemporaryDirectory(prefix="kaiten-") as temporary:
        signature = Path(temporary) / SIGNATURE_FILE
        problem = _run("sign", folder, signature, settings.private_key, settings)
        if problem is not None:
            raise _invalid_setting("private_key", problem["reason"])
        replace_file(folder / SIGNATURE_FILE, signature.read_text(encoding="utf-8"))


def verify_version(folder: Path, model_tag: str, settings: SignatureSettings) -> None:
    """Verify the signature of a version, if ``public_key`` is set.

    A version without a signature is accepted with a warning, unless signatures are ``required``.

    Raises:
        ModelRejected: The signature is missing or not valid.
        InvalidSettings: The key cannot be used.

    """
    if settings.public_key is None:
        return
    if not (folder / SIGNATURE_FILE).is_file():
        if settings.required:
            raise ModelRejected(
                SIGNATURE_FILE,
                f"is missing: {model_tag} is not signed",
                "Copy the version from where it was signed, or sign it (kaiten model sign) if you "
                "know it to be yours.",
            )
        logger.warning("unsigned_version", model=model_tag)
        return
    problem = _run("verify", folder, folder / SIGNATURE_FILE, settings.public_key, settings)
    if problem is None:
        return
    if problem["part"] == "key":
        raise _invalid_setting("public_key", problem["reason"])
    raise ModelRejected(
        SIGNATURE_FILE,
        f"is not valid for {model_tag}: {problem['reason']}",
        "Copy the version from where it was signed, or compare signatures.public_key with the key "
        "that signed it.",
    )


def _run(
    action: Literal["sign", "verify"],
    folder: Path,
    signature: Path,
    key: Path,
    settings: SignatureSettings,
) -> dict[str, str] | None:
    """Run signer.py with the Python that has model-signing; return the problem, if any."""
    password = settings.password if action == "sign" else None
    request = {
        "action": action,
        "folder": str(folder.resolve()),
        "signature": str(signature.resolve()),
        "key": str(key.resolve()),
        "password": password.get_secret_value() if password else None,
        "ignored": _UNSIGNED,
    }
    # Absolute, because workers run in another folder; symbolic links are not followed, because a
    # virtual environment's Python is one. -I keeps the program from importing our modules.
    python = settings.python.absolute() if settings.python else Path()
    try:
        completed = subprocess.run(  # noqa: S603  the operator names the program
            [str(python), "-I", str(_PROGRAM)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        problem: dict[str, str] | None = json.loads(completed.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise _invalid_setting("python", _describe_failure(error)) from None
    return problem


def _invalid_setting(field: str, reason: str) -> InvalidSettings:
    return InvalidSettings([Detail(f"signatures.{field}", reason)], "signatures")


def _describe_failure(error: Exception) -> str:
    last_line = ""
    if isinstance(error, subprocess.CalledProcessError):
        last_line = (error.stderr or "").strip().rpartition("\n")[2]
    return (
        f"cannot run model-signing ({last_line or error}); create an environment for it with `make "
        "signatures` and name its Python"
    )
