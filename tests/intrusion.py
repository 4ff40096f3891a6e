"""What another local account finds of a server: its sockets, listed, and each of them tried."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

_SCRIPT = Path(__file__).with_name("intruder.py")


@dataclass(frozen=True)
class Findings:
    """What an intruder was given, empty where all was refused.

    ``commands`` are those that circus answered, by endpoint, ``supervisors`` the endpoints where
    ZeroMQ greets, ``processes`` what it could do to each process, ``answers`` all bytes of answers.
    """

    endpoints: Sequence[str]
    commands: dict[str, list[str]] = field(default_factory=dict)
    supervisors: list[str] = field(default_factory=list)
    processes: dict[str, list[str]] = field(default_factory=dict)
    answers: str = ""

    @property
    def is_empty(self) -> bool:
        return not (self.commands or self.supervisors or self.processes)


def processes_of(pid: int) -> list[psutil.Process]:
    """Return a process and all below it."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def endpoints_of(pid: int) -> list[str]:
    """Return every address that a server's processes listen on, of all families."""
    endpoints = set()
    for process in processes_of(pid):
        for row in process.net_connections("all"):
            address: object = row.laddr
            if row.status == psutil.CONN_LISTEN:
                host = row.laddr.ip if row.laddr.ip not in {"0.0.0.0", "::"} else "127.0.0.1"
                endpoints.add(f"tcp://{host}:{row.laddr.port}")
            elif address and isinstance(address, str):
                endpoints.add(f"ipc://{address}")
    return sorted(endpoints)


def listening_sockets(pid: int) -> list[str]:
    """Return what listens in the network namespace of a process, as ``ss`` lists it."""
    options = ("--no-header", "--listening", "--tcp", "--unix", "--numeric")
    command = [*nsenter_command(pid), "ss", *options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = (line.split() for line in output.splitlines())
    return sorted({f"{row[0].replace('u_str', 'unix')} {row[4]}" for row in rows})


def nsenter_command(pid: int) -> list[str]:
    """Return the command that runs another in the network namespace of a process."""
    return ["nsenter", "--target", str(pid), "--net"]


def attack(
    endpoints: Sequence[str], processes: Sequence[int], within: Sequence[str] = ()
) -> Findings:
    """Try all as the account ``nobody``; ``within`` is a command that enters another namespace."""
    request = json.dumps({"endpoints": endpoints, "processes": processes})
    command = [*within, sys.executable, str(_SCRIPT)]
    output = subprocess.run(
        command, input=request, check=True, capture_output=True, text=True
    ).stdout
    findings: dict[str, Any] = json.loads(output)
    return Findings(
        endpoints,
        {endpoint: [*answers] for endpoint, answers in findings["commands"].items() if answers},
        [endpoint for endpoint, greeting in findings["greetings"].items() if greeting == "zeromq"],
        {
            process: done
            for process, outcomes in findings["processes"].items()
            if (done := [name for name, outcome in outcomes.items() if outcome == "done"])
        },
        output,
    )


def may_change_account() -> bool:
    """Return whether this process may change its account."""
    return os.geteuid() == 0


def environments_and_commands(pid: int) -> str:
    """Return what /proc shows of the processes' environments and command lines to their account."""
    files = ("environ", "cmdline")
    return "\n".join(
        Path(f"/proc/{process.pid}/{file}").read_bytes().decode("latin-1")
        for process in processes_of(pid)
        for file in files
    )
