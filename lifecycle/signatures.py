"""Signatures of versions, made and verified with OpenSSF model-signing (ADR 12)."""

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import structlog

from kaiten.errors import Detail, InvalidSettings, ModelRejected
from kaiten.files import replace
from kaiten.settings.models import SignatureSettings
from lifecycle.card import BENTOML_FILE, REPORTS, SIGNATURE_FILE

logger = structlog.get_logger(__name__)
_PROGRAM = Path(__file__).with_name("signer.py")
# Of a folder that it hashes; the largest models are read at a gigabyte in a few seconds.
_TIMEOUT_S = 1800
# What is found out about a version later, and what BentoML writes; all else is signed.
_UNSIGNED = (REPORTS, BENTOML_FILE, SIGNATURE_FILE)


def sign(folder: Path, settings: SignatureSettings) -> None:
    """Sign all that a version is made of; InvalidSettings where the key does not serve.

    Without a ``private_key``, nothing is done.
    """
    if settings.private_key is None:
        return
    with TemporaryDirectory(prefix="kaiten-") as made:
        signature = Path(made) / SIGNATURE_FILE
        problem = _run("sign", folder, signature, settings.private_key, settings)
        if problem is not None:
            raise _unusable("private_key", problem["reason"])
        replace(folder / SIGNATURE_FILE, signature.read_text(encoding="utf-8"))


def verify(folder: Path, tag: str, settings: SignatureSettings) -> None:
    """Raise ModelRejected, naming the file, unless a version is signed as the settings ask.

    Without a ``public_key`` nothing is compared; with one, a version that has no signature is
    refused where signatures are ``required``.
    """
    if settings.public_key is None:
        return
    if not (folder / SIGNATURE_FILE).is_file():
        if settings.required:
            reason = f"is missing: {tag} is not signed"
            raise ModelRejected(
                SIGNATURE_FILE,
                reason,
                "Take the version from where it was signed, or sign it (kaiten model sign) if you "
                "know it to be yours.",
            )
        logger.warning("unsigned_version", model=tag)
        return
    problem = _run("verify", folder, folder / SIGNATURE_FILE, settings.public_key, settings)
    if problem is None:
        return
    if problem["part"] == "key":
        raise _unusable("public_key", problem["reason"])
    raise ModelRejected(
        SIGNATURE_FILE,
        f"does not hold for {tag}: {problem['reason']}",
        "Take the version from where it was signed, or compare signatures.public_key with the key "
        "that signed it.",
    )


def _run(
    action: Literal["sign", "verify"],
    folder: Path,
    signature: Path,
    key: Path,
    settings: SignatureSettings,
) -> dict[str, str] | None:
    """Run the program by the Python that has model-signing; return what is wrong, if anything."""
    secret = settings.password if action == "sign" else None
    password = secret.get_secret_value() if secret else None
    request = {
        "action": action,
        "folder": str(folder.resolve()),
        "signature": str(signature.resolve()),
        "key": str(key.resolve()),
        "password": password,
        "ignored": _UNSIGNED,
    }
    # -I: nothing of ours, or of the working directory's, is imported by it.
    # Absolute, as it is handed down to workers that stand elsewhere; a link, if it is one, stays.
    python = settings.python.absolute() if settings.python else Path()
    command = [str(python), "-I", str(_PROGRAM)]
    try:
        done = subprocess.run(  # noqa: S603  the operator names the program
            command,
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        problem: dict[str, str] | None = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise _unusable("python", _why(error)) from None
    return problem


def _unusable(field: str, reason: str) -> InvalidSettings:
    return InvalidSettings([Detail(f"signatures.{field}", reason)], "signatures")


def _why(error: Exception) -> str:
    last = ""
    if isinstance(error, subprocess.CalledProcessError):
        last = (error.stderr or "").strip().rpartition("\n")[2]
    told = last or str(error)
    return (
        f"can not run model-signing ({told}); make an environment for it with `make signatures`, "
        "or see the guide, and name its Python"
    )
