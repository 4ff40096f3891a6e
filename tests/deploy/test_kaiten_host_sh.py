"""kaiten-host.sh on a host whose programs only record calls; tests/e2e runs it with real ones."""

import fcntl
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

import pytest

from kaiten.settings.environment import ROOT
from tests.servers import free_port

SYSTEMD = ROOT / "deploy" / "systemd"
PROFILE = ROOT / "deploy" / "nginx" / "kaiten.conf"
# Writes its calls down, interrupts the script at one that contains INTERRUPT, and fails at those
# that contain a line of FAIL.
FAKE = """#!/bin/bash
call="${0##*/} $*"
echo "$call" >> "$CALLS"
[[ -n $INTERRUPT && $call == *"$INTERRUPT"* ]] && kill -"$SIGNAL" "$PPID"
while read -r part; do
    [[ -n $part && $call == *"$part"* ]] && exit 1
done <<< "$FAIL"
:
"""
PROGRAMS = {
    "systemctl": 'echo "active"\n',
    "curl": "",
    # The last request of an old worker ends while the script waits for it.
    "sleep": '[[ -z $OLD_WORKER ]] || kill "$OLD_WORKER" 2>/dev/null || :\n',
    # A reload starts workers, unless nginx rejects the new configuration in its log only.
    "nginx": """\
[[ "$*" == "-s reload" && -z $IGNORES_RELOAD ]] || exit 0
echo "$(($(tail -n 1 "$WORKERS") + 1))" > "$WORKERS"
""",
    "pgrep": 'cat "$WORKERS"\n',
    "runuser": 'shift 3\nexec "$@"\n',
    "python": """\
echo "  with PYTHONPATH=$PYTHONPATH BENTO=$BENTO KAITEN_HOME=$KAITEN_HOME in $PWD" >> "$CALLS"
read -ra status < /proc/$$/stat
[[ ${status[5]} == $$ ]] && echo "  leads a session" >> "$CALLS"
[[ -e /proc/$$/fd/9 ]] && echo "  holds the lock" >> "$CALLS"
env | sed -n 's/^KAITEN_RATE/  &/p' >> "$CALLS"
[[ $* != *"--token-file -"* ]] || echo "  reads $(cat)" >> "$CALLS"
""",
}


STOPS = ("systemctl stop", "systemctl disable")
_DETAILS = ("pgrep", "runuser", "sleep", "  ")


@dataclass(frozen=True)
class Host:
    """A host with the shipped files, on which nginx reaches blue."""

    root: Path
    ports: Mapping[str, int]

    @property
    def etc(self) -> Path:
        return self.root / "etc"

    @property
    def profile(self) -> Path:
        return self.root / "kaiten.conf"

    @property
    def green_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['green']}"

    @property
    def calls(self) -> list[str]:
        """The calls that change something or decide on it."""
        return [line for line in self._lines if not line.startswith(_DETAILS)]

    @property
    def details(self) -> list[str]:
        return [line.strip() for line in self._lines if line.startswith("  ")]

    @property
    def _lines(self) -> list[str]:
        file = self.root / "calls"
        return file.read_text("utf-8").splitlines() if file.exists() else []

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run_at(PIPE, *arguments, **variables)

    def run_at(
        self, terminal: int, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run the script with a descriptor for its messages."""
        environment = {
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(self.root / "calls"),
            "WORKERS": str(self.root / "workers"),
            "HOST_ETC": str(self.etc),
            "HOST_LOCK": str(self.root / "lock"),
            "HOST_OPT": str(self.root / "opt"),
            "NGINX_PROFILE": str(self.profile),
            "NGINX_PID": str(self.root / "nginx.pid"),
            "FAIL": "",
            "INTERRUPT": "",
            "SIGNAL": "TERM",
            "IGNORES_RELOAD": "",
            "OLD_WORKER": "",
            # This shell's own, not an instance's.
            "PORT": "1",
            **variables,
        }
        command = [str(SYSTEMD / "kaiten-host.sh"), *arguments]
        return subprocess.run(
            command,
            env=environment,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=terminal,
            text=True,
            check=False,
            timeout=60,
        )


def point(profile: Path, port: int) -> None:
    """Let nginx's profile name another port than the one that it names."""
    text = profile.read_text("utf-8")
    text, count = re.subn(r"server 127\.0\.0\.1:\d+;", f"server 127.0.0.1:{port};", text)
    assert count == 1
    profile.write_text(text, "utf-8")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    host = Host(tmp_path, {"blue": free_port(), "green": free_port()})
    host.etc.mkdir()
    for file in SYSTEMD.glob("*.env"):
        text = file.read_text("utf-8").replace("/var/lib/kaiten", str(tmp_path / "home"))
        port = host.ports.get(file.stem)
        text = re.sub(r"(?m)^PORT=\d+$", f"PORT={port}", text)
        (host.etc / file.name).write_text(text.replace(":VERSION", f":of-{file.stem}"), "utf-8")
    for name in ("blue", "green"):
        (tmp_path / "home/bentoml/bentos/kaiten_service" / f"of-{name}").mkdir(parents=True)
    shutil.copy(PROFILE, host.profile)
    point(host.profile, host.ports["blue"])
    (tmp_path / "nginx.pid").write_text("1\n")
    (tmp_path / "workers").write_text("99999990\n99999991\n")
    folders = {"python": [tmp_path / "opt" / name / "bin" for name in ("blue", "green")]}
    for name, body in PROGRAMS.items():
        for folder in folders.get(name, [tmp_path / "bin"]):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(FAKE + body, "utf-8")
            (folder / name).chmod(0o755)
    return host


def test_instance_is_examined_started_tested_and_reached_before_the_other_stops(host: Host) -> None:
    done = host.run("switch", "green")
    assert done.returncode == 0, done.stderr
    assert "kaiten@green serves kaiten_service:of-green. To go back:" in done.stderr
    assert host.calls == [
        "nginx -t -q",
        "python -P -m cli doctor kaiten_service:of-green",
        "systemctl stop kaiten@green",
        "systemctl start kaiten@green",
        "systemctl is-active --quiet kaiten@green",
        f"curl --silent --fail --noproxy * --max-time 5 --output /dev/null {host.green_url}/readyz",
        f"python -P -m cli smoke {host.green_url}",
        "systemctl is-active --quiet kaiten@green",
        "nginx -t -q",
        "nginx -s reload",
        "systemctl enable --quiet kaiten@green",
        "systemctl disable --quiet kaiten@blue",
        "systemctl stop kaiten@blue",
    ]
    home = host.root / "home"
    source = home / "bentoml/bentos/kaiten_service/of-green/src"
    variables = f"PYTHONPATH={source} BENTO=kaiten_service:of-green KAITEN_HOME={home}"
    # Without root's terminal and without the lock.
    assert {*host.details} == {f"with {variables} in {home}", "leads a session"}


def test_only_the_port_of_the_upstream_changes_and_the_way_back_restores_it(host: Host) -> None:
    before = host.profile.read_text("utf-8")
    assert host.run("switch", "green").returncode == 0
    assert host.profile.read_text("utf-8") == before.replace(
        f":{host.ports['blue']};", f":{host.ports['green']};", 1
    )
    assert host.run("switch", "blue").returncode == 0
    assert host.profile.read_text("utf-8") == before
    assert [*host.root.glob("kaiten.conf*")] == [host.profile]
    assert host.calls[-1] == "systemctl stop kaiten@green"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"FAIL": "systemctl start"}, ""),
        ({"FAIL": "is-active"}, "kaiten@green has ended: journalctl"),
        ({"FAIL": "curl", "READY_TIMEOUT_S": "0"}, "was not ready within 0 s"),
        ({"FAIL": "cli smoke"}, "set TOKEN_FILE to a file with one of its issuer"),
        # A signal at these calls arrives before nginx has another port.
        ({"INTERRUPT": "curl"}, "Interrupted."),
        ({"INTERRUPT": "systemctl start"}, "Interrupted."),
        ({"FAIL": "nginx -s reload"}, ""),
        ({"IGNORES_RELOAD": "yes"}, "nginx has not read its configuration again"),
    ],
    ids=str,
)
def test_instance_that_fails_is_stopped_and_the_other_one_serves_as_before(
    host: Host, variables: Mapping[str, str], message: str
) -> None:
    before = host.profile.read_text("utf-8")
    done = host.run("switch", "green", **variables)
    assert done.returncode == 1, done.stderr
    assert message in done.stderr
    assert "kaiten@green is stopped. kaiten@blue serves as before." in done.stderr
    assert host.profile.read_text("utf-8") == before
    assert [*host.root.glob("kaiten.conf*")] == [host.profile]
    stops = [call for call in host.calls if call.startswith(STOPS)]
    # Once before its start.
    assert stops == ["systemctl stop kaiten@green"] * 2


def test_profile_behind_a_link_is_restored_in_its_place(host: Host) -> None:
    folder = host.root / "available"
    folder.mkdir()
    file = host.profile.rename(folder / "kaiten.conf")
    file.chmod(0o640)
    host.profile.symlink_to(file)
    before = file.read_text("utf-8")
    assert host.run("switch", "green", FAIL="nginx -s reload").returncode == 1
    assert host.profile.readlink() == file
    assert file.read_text("utf-8") == before
    assert file.stat().st_mode & 0o777 == 0o640


def test_port_of_another_process_fails_the_switch_before_it_gets_a_token(host: Host) -> None:
    with socket.create_server(("127.0.0.1", host.ports["green"])):
        done = host.run("switch", "green")
    assert done.returncode == 1
    assert f"Port {host.ports['green']} is in use by another process" in done.stderr
    assert not [call for call in host.calls if "curl" in call or "smoke" in call]


@pytest.mark.parametrize(
    "call", ["nginx -s reload", "systemctl enable", "systemctl stop kaiten@blue"]
)
def test_interruption_once_nginx_has_the_port_says_how_to_finish(host: Host, call: str) -> None:
    done = host.run("switch", "green", INTERRUPT=call)
    assert done.returncode == 3
    assert "Finish with: nginx -s reload && systemctl disable --now kaiten@blue" in done.stderr
    assert f"server 127.0.0.1:{host.ports['green']};" in host.profile.read_text("utf-8")
    assert host.calls[-1].startswith(call)
    assert [*host.root.glob("kaiten.conf*")] == [host.profile]


def test_switch_ends_although_its_terminal_is_gone(host: Host) -> None:
    reader, terminal = os.pipe()
    os.close(reader)
    done = host.run_at(terminal, "switch", "green", INTERRUPT="curl", SIGNAL="HUP")
    os.close(terminal)
    assert done.returncode == 0
    assert host.calls[-1] == "systemctl stop kaiten@blue"


def test_old_instance_serves_until_the_old_workers_of_nginx_have_ended(host: Host) -> None:
    command = ["bash", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = parent.stdout.readline().strip()
        (host.root / "workers").write_text(f"{worker}\n")
        assert host.run("switch", "green", OLD_WORKER=worker).returncode == 0
        assert parent.wait(10) == 0
    lines = (host.root / "calls").read_text("utf-8").splitlines()
    assert lines.index("sleep 0.1") < lines.index("systemctl stop kaiten@blue")


def remove_green(host: Host) -> None:
    (host.etc / "green.env").unlink()


def remove_port(host: Host) -> None:
    (host.etc / "green.env").write_text("BENTO=kaiten_service:latest\n")


def remove_bento(host: Host) -> None:
    (host.root / "home/bentoml/bentos/kaiten_service/of-green").rmdir()


def remove_environment(host: Host) -> None:
    shutil.rmtree(host.root / "opt" / "green")


def name_a_host(host: Host) -> None:
    text = host.profile.read_text("utf-8")
    host.profile.write_text(text.replace("server 127.0.0.1:", "server kaiten.internal:"))


def write_backslash(host: Host) -> None:
    with (host.etc / "kaiten.env").open("a") as file:
        file.write(r"KAITEN_LOGGING__FOLDER=/var/log/a\ folder" + "\n")


@pytest.mark.parametrize(
    ("arguments", "failing_call", "change", "message"),
    [
        (("switch", "red"), "", None, "kaiten-host switch blue|green"),
        (("switch",), "", None, "kaiten-host switch blue|green"),
        ((), "", None, "kaiten-host run COMMAND"),
        (("run",), "", None, "kaiten-host run COMMAND"),
        (("switch", "blue"), "", None, "blue serves already"),
        (("switch", "green"), "nginx -t", None, "correct it first"),
        (("switch", "green"), "cli doctor", None, "kaiten_service:of-green would not start"),
        (("switch", "green"), "", remove_green, "green.env; docs/deploy.md has the installation"),
        (("switch", "green"), "", remove_port, "green.env has no PORT"),
        (
            ("switch", "green"),
            "",
            remove_bento,
            "green.env names the bento kaiten_service:of-green",
        ),
        (("switch", "green"), "", remove_environment, "opt/green/bin/python with its packages"),
        (("switch", "green"), "", name_a_host, "has no line 'server 127.0.0.1:PORT;'"),
        (("switch", "green"), "", write_backslash, "KAITEN_LOGGING__FOLDER in "),
    ],
)
def test_refusal_changes_nothing(
    host: Host, arguments: tuple[str, ...], failing_call: str, change: object, message: str
) -> None:
    if callable(change):
        change(host)
    before = host.profile.read_text("utf-8")
    done = host.run(*arguments, FAIL=failing_call)
    assert done.returncode == 2
    assert message in done.stderr
    assert not [call for call in host.calls if call.startswith(("systemctl", "nginx -s"))]
    assert host.profile.read_text("utf-8") == before


def test_two_switches_at_once_are_refused(host: Host) -> None:
    with (host.root / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = host.run("switch", "green")
    assert done.returncode == 2
    assert "another switch is running" in done.stderr
    assert host.calls == []


def test_lock_that_cannot_be_written_asks_for_root(host: Host) -> None:
    done = host.run("switch", "green", HOST_LOCK=str(host.root / "missing" / "lock"))
    assert (done.returncode, "run this as root" in done.stderr) == (2, True)


def test_first_instance_has_no_other_to_stop(host: Host) -> None:
    point(host.profile, free_port())
    done = host.run("switch", "blue")
    assert done.returncode == 0, done.stderr
    assert f"server 127.0.0.1:{host.ports['blue']};" in host.profile.read_text("utf-8")
    assert host.calls[-1] == "systemctl enable --quiet kaiten@blue"


def test_token_of_another_issuer_can_be_given(host: Host, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("of-another", "utf-8")
    assert host.run("switch", "green", TOKEN_FILE=str(token)).returncode == 0
    assert f"python -P -m cli smoke {host.green_url} --token-file -" in host.calls
    assert "reads of-another" in host.details


def test_missing_token_file_is_refused_before_the_start(host: Host) -> None:
    done = host.run("switch", "green", TOKEN_FILE=str(host.root / "missing"))
    assert (done.returncode, "which cannot be read" in done.stderr) == (2, True)
    assert not [call for call in host.calls if "systemctl" in call]


def test_values_are_those_that_systemd_reads(host: Host) -> None:
    values = {
        "KAITEN_RATE_LIMIT__REQUESTS": "5000 per 2 hours",
        "KAITEN_RATE_LIMIT__PLANS": '{"nightly": {"tokens": "off"}}',
        "KAITEN_RATE_LIMIT__SUBJECTS": '{"https://login/?a=1&b=$HOME|*": "nightly"}',
    }
    lines = [f"{name}={value}  " for name, value in values.items()]
    lines[-1] = f"KAITEN_RATE_LIMIT__SUBJECTS='{values['KAITEN_RATE_LIMIT__SUBJECTS']}'"
    with (host.etc / "kaiten.env").open("a") as file:
        # The last line needs no newline.
        file.write("\n".join(["; a comment", "  # another", *lines]))
    text = (host.etc / "green.env").read_text("utf-8")
    (host.etc / "green.env").write_text(re.sub(r"(?m)^PORT=(\d+)$", r'PORT="\1"', text))
    done = host.run("switch", "green")
    assert done.returncode == 0, done.stderr
    assert {f"{name}={value}" for name, value in values.items()} < {*host.details}
    assert f"python -P -m cli smoke {host.green_url}" in host.calls


def test_command_runs_with_the_environment_of_the_serving_instance(host: Host) -> None:
    create = ("run", "token", "create", "--subject", "two words")
    assert host.run(*create).returncode == 0
    assert host.calls == ["python -P -m cli token create --subject two words"]
    assert " BENTO=kaiten_service:of-blue " in host.details[0]
    assert host.run(*create, INSTANCE="green").returncode == 0
    assert " BENTO=kaiten_service:of-green " in host.details[2]
    point(host.profile, free_port())
    done = host.run(*create)
    assert (done.returncode, "set INSTANCE to blue or green" in done.stderr) == (2, True)


def test_status_shows_which_instance_nginx_reaches(host: Host) -> None:
    assert host.run("status").stdout.splitlines() == [
        f"blue   active    port {host.ports['blue']}  kaiten_service:of-blue  <- nginx",
        f"green  active    port {host.ports['green']}  kaiten_service:of-green",
    ]
