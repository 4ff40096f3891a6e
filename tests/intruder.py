"""Another local account: what it reaches of a server's processes and sockets.

Run as root, ``python tests/intruder.py``, with a JSON object on standard input: ``endpoints``, each
``tcp://HOST:PORT`` or ``ipc://PATH``, and ``processes``, a list of process ids. It changes to the
account ``nobody`` and prints what each attempt gave.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import zmq

NOBODY = 65534
_TIMEOUT_MS = 1500
# Reads the workers, runs a shell and ends the server.
_COMMANDS: tuple[tuple[str, dict[str, object]], ...] = (
    ("list", {}),
    ("stats", {}),
    ("options", {"name": "service"}),
    ("add", {"name": "shell", "cmd": "id", "start": True}),
    ("quit", {}),
)


def main() -> None:
    """Make all attempts."""
    targets = json.load(sys.stdin)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    findings = {
        "commands": {endpoint: _commands(endpoint) for endpoint in targets["endpoints"]},
        "greetings": {endpoint: _greeting(endpoint) for endpoint in targets["endpoints"]},
        "processes": {process: _process(process) for process in targets["processes"]},
    }
    sys.stdout.write(json.dumps(findings))


def _commands(endpoint: str) -> dict[str, object]:
    """Return what circus answers to each command; nothing where it answers none."""
    answers: dict[str, object] = {}
    context = zmq.Context()
    try:
        for command, properties in _COMMANDS:
            with context.socket(zmq.DEALER) as dealer:
                dealer.linger = 0
                dealer.connect(endpoint)
                request = {"id": command, "command": command, "properties": properties}
                dealer.send_json(request)
                answer = _json(dealer.recv()) if dealer.poll(_TIMEOUT_MS) else None
                if answer is not None:
                    answers[command] = answer
                elif not answers:
                    break
    finally:
        context.destroy(linger=0)
    return answers


def _json(message: bytes) -> object:
    """Return a message's value; None for none of circus': ZeroMQ takes HTTP for its version 1."""
    try:
        return json.loads(message)
    except ValueError:
        return None


def _greeting(endpoint: str) -> str:
    """Return how the peer greets: ZeroMQ sends its signature before it is asked."""
    scheme, _, address = endpoint.partition("://")
    if scheme == "tcp":
        host, _, port = address.rpartition(":")
        family, target = socket.AF_INET, (host, int(port))
    with socket.socket(socket.AF_UNIX if scheme == "ipc" else family) as client:
        client.settimeout(_TIMEOUT_MS / 1000)
        try:
            client.connect(address if scheme == "ipc" else target)
            received = client.recv(10)
        except OSError as error:
            return type(error).__name__
    return "zeromq" if received.startswith(b"\xff") else received.decode("latin-1")


def _process(process: int) -> dict[str, str]:
    return {
        "environ": _outcome(lambda: Path(f"/proc/{process}/environ").read_bytes()),
        "memory": _outcome(lambda: Path(f"/proc/{process}/mem").open("rb").close()),
        "descriptors": _outcome(lambda: list(Path(f"/proc/{process}/fd").iterdir())),
        "signal": _outcome(lambda: os.kill(process, 0)),
    }


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except OSError as error:
        return type(error).__name__
    return "done"


if __name__ == "__main__":
    main()
