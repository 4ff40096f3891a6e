"""Files that hold state."""

import os
import secrets
from pathlib import Path


def replace(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    """Replace a file whole, on the disk before anybody can see it: never half of it is there.

    ``mode`` is less what the umask takes away: who writes and who reads need not be one user.
    """
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
