"""Every `kaiten` command, option and setting that documents, workflows and scripts show exists."""

import re
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import yaml
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cli import app
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings

FILES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md", "Makefile")),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "docs" / "adr").glob("*.md"),
    *(ROOT / ".github" / "workflows").glob("*"),
    *(ROOT / "deploy").rglob("*.sh"),
]
KAITEN = cast("TyperGroup", get_command(app))
# At the start of a command, by whatever it is started: a prompt, settings, a container, a folder.
CALL = re.compile(
    r"(?:(?:^|[|;&(`>]|\$\(|--|exec kaiten|\brun\b|!|time)\s*|^\s*\$\s+|\{\s)"
    r"(?:\w+=\S*\s+)*(?:\$\(BIN\)/|\.venv/bin/)?kaiten[ ]+"
    r"(?P<rest>[a-z](?:[^`|;&)#>\n]|(?<=\S)#)*)",
    re.MULTILINE,
)


def commands(text: str) -> list[list[str]]:
    """Return the words after `kaiten` of each call in a text, after joining continued lines."""
    joined = re.sub(r"\\\n\s*|>-\n\s*|(?<=\S)\n\s+(?=--)", " ", text)
    return [words(call["rest"]) for call in CALL.finditer(joined)]


def words(rest: str) -> list[str]:
    # What may be left out is in brackets.
    line = rest.replace("[", "").replace("]", "")
    try:
        return shlex.split(line)
    except ValueError:  # prose, with an apostrophe in it
        return line.split()


def resolve(arguments: Sequence[str]) -> tuple[TyperCommand, list[str]] | None:
    """Return the command that is named and the words after it; None where it does not exist."""
    command, rest = KAITEN.commands.get(arguments[0]), list(arguments[1:])
    if isinstance(command, TyperGroup) and rest:
        command = command.commands.get(rest.pop(0))
    return (command, rest) if isinstance(command, TyperCommand) else None


CALLS = sorted(
    {
        (str(file.relative_to(ROOT)), tuple(call))
        for file in FILES
        for call in commands(file.read_text("utf-8"))
        if call
    }
)


def test_calls_are_found() -> None:
    assert {file for file, _ in CALLS} >= {
        "docs/serve.md",
        "docs/runbook.md",
        ".github/workflows/release.yaml",
        "deploy/deploy.sh",
    }
    assert len(CALLS) > 45


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("$ kaiten doctor --json", [["doctor", "--json"]]),
        ("A=1 B=2 kaiten serve --port 1 # x", [["serve", "--port", "1"]]),
        (
            "exec deployment/kaiten -- kaiten token create --ttl 5m",
            [["token", "create", "--ttl", "5m"]],
        ),
        ("docker compose exec kaiten kaiten doctor", [["doctor"]]),
        ("get deployment kaiten --ignore-not-found", []),
        ("T=$(.venv/bin/kaiten token create --subject a)", [["token", "create", "--subject", "a"]]),
        ("say `kaiten promote N --to staging` or", [["promote", "N", "--to", "staging"]]),
        ("kaiten promote N \\\n  --to staging", [["promote", "N", "--to", "staging"]]),
        ("docker compose restart kaiten", []),
        ('kaiten model sign "${M#*:}" --force # x', [["model", "sign", "${M#*:}", "--force"]]),
        ("kaiten serve\nkaiten model list", [["serve"], ["model", "list"]]),
    ],
)
def test_how_calls_are_found(text: str, calls: list[list[str]]) -> None:
    assert commands(text) == calls


@pytest.mark.parametrize("call", ["promot a", "api-key remove x", "doctr", "api-key"])
def test_a_command_that_does_not_exist_is_rejected(call: str) -> None:
    assert resolve(call.split()) is None


@pytest.mark.parametrize(("file", "call"), CALLS, ids=[f"{f}: {' '.join(c)}" for f, c in CALLS])
def test_a_command_and_its_options_are_there(file: str, call: tuple[str, ...]) -> None:
    resolution = resolve(call)
    assert resolution is not None, f"{file}: kaiten {' '.join(call)}"
    command, rest = resolution
    options = {option for parameter in command.params for option in parameter.opts}
    named = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert named <= options | {"--help"}, file


YAML_BLOCK = re.compile(
    r"^(?P<fence> *```+)ya?ml\b[^\n]*\n(?P<text>.*?)^(?P=fence)\s*$", re.MULTILINE | re.DOTALL
)
# A block with one of these keys at its top level is a file of Kubernetes, kustomize or Compose.
# Every other block holds settings: a kaiten.yaml, or, if it is a list, entries of auth.issuers.
OF_OTHERS = {"apiVersion", "kind", "resources", "services"}


def settings_blocks() -> list[tuple[str, str]]:
    """Return the settings in the documents' YAML blocks, each with the place of the block."""
    blocks: list[tuple[str, str]] = []
    for file in sorted((ROOT / "docs").glob("*.md")):
        document = file.read_text("utf-8")
        for block in YAML_BLOCK.finditer(document):
            text = textwrap.dedent(block["text"])
            if isinstance(content := yaml.safe_load(text), list):
                text = f"auth:\n  issuers:\n{textwrap.indent(text, '  ')}"
            elif OF_OTHERS & content.keys():
                continue
            blocks.append((f"{file.name}:{document.count(chr(10), 0, block.start()) + 1}", text))
    return blocks


SETTINGS_BLOCKS = settings_blocks()


def test_settings_are_found() -> None:
    assert len(SETTINGS_BLOCKS) >= 7


@pytest.mark.parametrize(
    "text",
    [text for _, text in SETTINGS_BLOCKS],
    ids=[place for place, _ in SETTINGS_BLOCKS],
)
def test_settings_that_a_document_shows_are_accepted(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "kaiten.yaml"
    file.write_text(text)
    monkeypatch.setenv("KAITEN_CONFIG", str(file))
    load_settings()
