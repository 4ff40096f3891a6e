"""Signs a folder with OpenSSF model-signing, or verifies it. A program, not a module to import.

A Python that has model-signing runs it. That package cannot be installed beside Kaiten (ADR 12), so
the program imports nothing of Kaiten. It reads a request as JSON from standard input: ``action``
(sign or verify), ``folder``, ``signature`` and ``key`` (paths), ``password`` (of the key, or null;
as an argument, other users could read it) and ``ignored`` (paths inside the folder). It writes JSON
to standard output: null, or the problem as ``part`` (``key`` or ``signature``) and ``reason``.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from model_signing import hashing, signing, verifying


def main() -> None:
    """Carry out the request, and write the outcome."""
    request = json.load(sys.stdin)
    # The library prints warnings to standard output.
    with redirect_stdout(sys.stderr):
        problem = _carry_out(request)
    json.dump(problem, sys.stdout)


def _carry_out(request: dict[str, Any]) -> dict[str, str] | None:
    folder, signature, key = (Path(request[name]) for name in ("folder", "signature", "key"))
    ignored = [folder / path for path in request["ignored"]]
    hashing_config = hashing.Config().set_ignored_paths(paths=ignored, ignore_git_paths=False)
    part = "key"
    try:
        if request["action"] == "sign":
            # The parameter is annotated as text, but the library passes it on as bytes.
            password = request["password"].encode() if request["password"] else None
            signer = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
            part = "signature"
            signer.set_hashing_config(hashing_config).sign(folder, signature)
        else:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
            part = "signature"
            verifier.set_hashing_config(hashing_config).verify(folder, signature)
    except Exception as error:  # noqa: BLE001  the library raises errors of its dependencies
        # Some have no message.
        return {"part": part, "reason": str(error).strip(" .") or type(error).__name__}
    return None


if __name__ == "__main__":
    main()
