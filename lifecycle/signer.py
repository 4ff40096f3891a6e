"""Signs a folder with OpenSSF model-signing, or verifies it. A program, not a module to import.

It is run by a Python that has model-signing, which can not be installed beside us (ADR 12), so it
takes nothing from here. A request comes as JSON on standard input: ``action`` (sign or verify),
``folder``, ``signature`` and ``key`` (paths), ``password`` (of the key, or null; as an argument
anyone could read it) and ``ignored`` (paths inside the folder). It answers with JSON on standard
output: null, or what is wrong, with the part (``key`` or ``signature``) that it is wrong with.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from model_signing import hashing, signing, verifying


def main() -> None:
    """Do what the request asks, and answer."""
    request = json.load(sys.stdin)
    # The library prints warnings.
    with redirect_stdout(sys.stderr):
        answer = _attempt(request)
    json.dump(answer, sys.stdout)


def _attempt(request: dict[str, Any]) -> dict[str, str] | None:
    folder, signature, key = (Path(request[each]) for each in ("folder", "signature", "key"))
    ignored = [folder / each for each in request["ignored"]]
    hashed = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    part = "key"
    try:
        if request["action"] == "sign":
            # It is annotated as text, and handed to a function that takes bytes.
            password = request["password"].encode() if request["password"] else None
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
            part = "signature"
            signer.set_hashing_config(hashed).sign(folder, signature)
        else:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
            part = "signature"
            verifier.set_hashing_config(hashed).verify(folder, signature)
    except Exception as error:  # noqa: BLE001  it lets those of all that it uses through
        # Some have no text.
        return {"part": part, "reason": str(error).strip(" .") or type(error).__name__}
    return None


if __name__ == "__main__":
    main()
