import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import jwt
import pytest
from rich.live import Live
from structlog.testing import capture_logs
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from cli import app, main
from gateway.auth.signing_secret import signing_secret
from kaiten import __version__
from kaiten.settings.environment import ROOT
from kaiten.settings.loader import load_settings
from lifecycle.card import ModelCard, sha256
from lifecycle.store import ModelStore

SECRET = "8f14e45fceea167a5a36dedd4bea2543"


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep lines whole, whatever the terminal."""
    monkeypatch.setenv("COLUMNS", "400")


def run(*arguments: str) -> Result:
    # What `main` would send to standard error.
    with capture_logs():
        return CliRunner().invoke(app, arguments)


def claims_of(output: str, secret: str) -> dict[str, object]:
    return jwt.decode(
        output, secret, algorithms=["HS256"], issuer="kaiten", audience="kaiten", leeway=5
    )


def add(tag: str, folder: Path) -> None:
    """Put a version into the store whose files are of no matter."""
    source = folder / "weights.safetensors"
    source.write_text(tag)
    name, _, version = tag.partition(":")
    card = ModelCard(
        name=name,
        version=version,
        task="text-classification",
        labels=("yes", "no", "perhaps"),
        max_length=128,
        architecture="BertForSequenceClassification",
        framework_versions={},
        files={source.name: sha256(source)},
    )
    ModelStore().add(card, {source.name: source})


def test_token_is_alone_on_standard_output_and_verifies() -> None:
    result = run("token", "create", "--subject", "alice", "--scope", "predict", "--ttl", "30m")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.count("\n") == 1
    claims = claims_of(result.stdout.strip(), signing_secret(load_settings()).value)
    assert claims.keys() == {"sub", "scope", "iss", "aud", "iat", "exp", "jti"}
    assert (claims["sub"], claims["scope"]) == ("alice", "predict")


def test_token_is_signed_with_the_configured_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    result = run("token", "create", "--subject", "alice", "--scope", "predict")
    assert claims_of(result.stdout.strip(), SECRET)["sub"] == "alice"


def test_token_names_the_configured_issuer_and_audience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_AUTH__ISSUER", "ours")
    monkeypatch.setenv("KAITEN_AUTH__AUDIENCE", "theirs")
    output = run("token", "create", "--subject", "alice", "--scope", "predict").stdout.strip()
    claims = jwt.decode(output, SECRET, algorithms=["HS256"], issuer="ours", audience="theirs")
    assert (claims["iss"], claims["aud"]) == ("ours", "theirs")


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("1s", 1), ("30m", 1800), ("1h", 3600), ("7d", 604_800), ("", 3600)]
)
def test_token_holds_for_its_ttl(ttl: str, seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    option = ["--ttl", ttl] if ttl else []
    result = run("token", "create", "--subject", "alice", "--scope", "predict", *option)
    claims = jwt.decode(result.stdout.strip(), options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == seconds


def test_token_joins_repeated_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    scopes = ["predict", "predict:support-intent", "feedback", "feedback:support-intent"]
    scopes += ["ops", "admin"]
    options = [part for scope in scopes for part in ("--scope", scope)]
    result = run("token", "create", "--subject", "alice", *options)
    assert claims_of(result.stdout.strip(), SECRET)["scope"] == " ".join(scopes)


@pytest.mark.parametrize(
    "scope",
    [
        "",
        "root",
        "Predict",
        "predict:",
        "predict:-a",
        "predict ops",
        "ops:a",
        "predict:A",
        "feedback:",
    ],
)
def test_token_refuses_an_unknown_scope(scope: str) -> None:
    result = run("token", "create", "--subject", "alice", "--scope", "predict", "--scope", scope)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--scope" in result.stderr
    assert "is not a scope" in result.stderr


@pytest.mark.parametrize(
    "ttl",
    [
        "",
        "0h",
        "1",
        "h",
        "1w",
        "-1h",
        "1.5h",
        "1h30m",
        "99999999999d",
        "9999999d",
    ],
)
def test_token_refuses_a_bad_ttl(ttl: str) -> None:
    result = run("token", "create", "--subject", "alice", "--scope", "predict", "--ttl", ttl)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "--ttl" in result.stderr


@pytest.mark.parametrize("command", ["token", "api-key"])
@pytest.mark.parametrize("ttl", ["401d", "9601h", "9999d", "99999999999d"])
def test_lifetime_beyond_the_memory_of_revocations_is_refused_with_the_limit(
    command: str, ttl: str
) -> None:
    result = run(command, "create", "--subject", "alice", "--scope", "predict", "--ttl", ttl)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"'{ttl}' is longer than the maximum; give at most 400d" in result.stderr
    longest = run(command, "create", "--subject", "alice", "--scope", "predict", "--ttl", "400d")
    assert longest.exit_code == 0


@pytest.mark.parametrize("missing", ["--subject", "--scope"])
def test_token_needs_a_subject_and_a_scope(missing: str) -> None:
    values = {"--subject": "alice", "--scope": "predict"}
    del values[missing]
    result = run("token", "create", *(part for option in values.items() for part in option))
    assert result.exit_code == 2
    assert missing in result.stderr


@pytest.mark.usefixtures("model_store")
def test_models_says_how_to_make_the_first() -> None:
    result = run("model", "list")
    assert result.exit_code == 0
    assert result.stdout == (
        "No models yet. Add yours with `kaiten register`, or make the quickstart model with `make "
        "quickstart` in a checkout.\n"
    )
    assert json.loads(run("model", "list", "--json").stdout) == []


@pytest.mark.usefixtures("model_store")
def test_models_lists_each_version(tmp_path: Path) -> None:
    for tag in ("b:1.0.0", "a:2.0.0"):
        add(tag, tmp_path)
    rows = [
        line for line in run("model", "list").stdout.splitlines() if "text-classification" in line
    ]
    cells = [row.split() for row in rows]
    assert cells == [
        ["a:2.0.0", "text-classification", "3", "-", "-", "-", "no"],
        ["b:1.0.0", "text-classification", "3", "-", "-", "-", "no"],
    ]


@pytest.mark.usefixtures("model_store")
def test_models_prints_the_cards_as_json(tmp_path: Path) -> None:
    add("a:2.0.0", tmp_path)
    (version,) = json.loads(run("model", "list", "--json").stdout)
    overview = {name: version.pop(name) for name in ("stages", "serves", "report")}
    assert overview == {"stages": [], "serves": False, "report": None}
    assert [ModelCard.model_validate(version)] == [model.card for model in ModelStore()]


@pytest.mark.usefixtures("model_store")
def test_register_says_what_and_where(tiny_classifier: Path) -> None:
    options = ["--name", "tiny", "--version", "1.0.0", "--task", "text-classification"]
    result = run("register", str(tiny_classifier), *options)
    stored = ModelStore().get("tiny:1.0.0")
    assert result.exit_code == 0
    assert stored.card.engine is not None
    assert result.stdout.splitlines() == [
        f"Registered tiny:1.0.0 in {stored.folder}",
        f"On a CPU it is served by onnx: {stored.card.engine.reason}.",
    ]
    assert stored.card.labels == ("billing", "delivery", "other")


@pytest.mark.usefixtures("model_store")
def test_register_prints_the_card_as_json(tiny_classifier: Path) -> None:
    options = ["--name", "tiny", "--version", "1.0.0", "--task", "text-classification", "--json"]
    result = run("register", str(tiny_classifier), *options)
    assert result.exit_code == 0
    assert ModelCard.model_validate_json(result.stdout) == ModelStore().get("tiny:1.0.0").card


def registering(folder: str, **changes: str) -> list[str]:
    values = {"name": "tiny", "version": "1.0.0", "task": "text-classification", **changes}
    options = [part for name, value in values.items() for part in (f"--{name}", value)]
    return ["kaiten", "register", folder, *options]


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (registering("/missing"), "folder: /missing is not a folder."),
        (registering("/missing", name="Tiny"), "name: 'Tiny' is not a model name."),
        (registering("/missing", version="1.0"), "version: '1.0' is not a SemVer version."),
        (registering("/missing", task="poetry"), "task: 'poetry' is not known."),
        (registering("/[/missing]"), "folder: /[/missing] is not a folder."),
    ],
)
def test_main_reports_the_error_in_a_sentence(
    command: list[str],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as caught:
        main()
    output = capsys.readouterr()
    assert caught.value.code == 1
    assert output.out == ""
    assert output.err.startswith(f"error: {sentence} ")
    assert output.err.count("\n") == 1


def test_main_reports_unusable_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAITEN_RUNNERS__DEVICE", "tpu")
    monkeypatch.setattr(
        sys, "argv", ["kaiten", "token", "create", "--subject", "a", "--scope", "predict"]
    )
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "runners.device: " in capsys.readouterr().err


def test_version_is_printed_without_a_command() -> None:
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"kaiten {__version__}\n")


def test_every_command_is_in_a_panel_of_the_help() -> None:
    commands = cast("TyperGroup", get_command(app)).commands.values()
    entries = [cast("TyperCommand | TyperGroup", command) for command in commands]
    panels = [entry.rich_help_panel for entry in entries if not entry.hidden]
    assert None not in panels
    page = run("--help").stdout
    assert all(str(panel) in page for panel in panels)


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("kaiten pr", {"promote"}),
        ("kaiten model au", {"audit-log"}),
        ("kaiten serve --mo", {"--model"}),
        ("kaiten promote --to ", {"staging", "production"}),
    ],
)
def test_shell_completes_commands_options_and_their_values(
    words: str, completions: set[str]
) -> None:
    env = {
        "_KAITEN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = CliRunner().invoke(app, [], env=env, prog_name="kaiten")
    assert set(result.stdout.split()) == completions


def test_command_says_what_it_did_and_logs_it_to_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    command = [sys.executable, "-m", "cli", "api-key", "create", "--subject", "job"]
    command += ["--scope", "predict"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("kaiten_")
    assert done.stderr == ""
    (line,) = (tmp_path / "audit.log").read_text("utf-8").splitlines()
    assert json.loads(line)["event"] == "api_key_created"


class Reached(Exception):
    """Raised in place of the slow part of a command."""


@pytest.mark.usefixtures("model_store")
@pytest.mark.parametrize(
    ("command", "slow"),
    [
        (("doctor",), "cli.doctor.diagnose"),
        (("doctor", "kaiten_service:1"), "server.bento_diagnosis.diagnose_bento"),
        (("smoke", "http://127.0.0.1:3000"), "cli.smoke.run_smoke_checks"),
        (
            ("init", "--model", "./tiny", "--data", "rows.csv", "--name", "tiny"),
            "server.project.start_project",
        ),
        (tuple(registering("./tiny")[1:]), "cli.register.register_source"),
        (("validate", "a:1.0.0", "--data", "rows.csv"), "server.validation.validate_version"),
        (
            ("promote", "a:1.0.0", "--to", "staging", "--reason", "a try"),
            "lifecycle.store.ModelStore.get",
        ),
        (("rollback", "a", "--reason", "a try"), "lifecycle.promotion.PromotionGate.rollback"),
        (("model", "show", "a:1.0.0"), "lifecycle.store.ModelStore.get"),
        (("model", "diff", "a:1.0.0", "a:1.1.0"), "lifecycle.store.ModelStore.get"),
        (("model", "sign", "a:1.0.0"), "lifecycle.store.ModelStore.sign"),
        (("build", "--model", "a:1.0.0"), "lifecycle.packaging.build.build_bento"),
        (("containerize", "kaiten_service:1"), "cli.containerize.containerize_bento"),
        (("drift", "report", "--json"), "server.drift_report.build_drift_report"),
    ],
)
def test_command_shows_a_spinner_while_its_slow_part_runs(
    command: tuple[str, ...], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    displays: list[Live] = []

    def reach(*_: object, **__: object) -> None:
        raise Reached(len(displays))

    def start(display: Live, refresh: bool = False) -> None:  # noqa: FBT001, FBT002  rich's
        displays.append(display)

    def stop(display: Live) -> None:
        displays.remove(display)

    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    monkeypatch.setenv("KAITEN_SIGNATURES__PRIVATE_KEY", "release.key")
    monkeypatch.setenv("KAITEN_SIGNATURES__PYTHON", sys.executable)
    monkeypatch.setattr(Live, "start", start)
    monkeypatch.setattr(Live, "stop", stop)
    monkeypatch.setattr(slow, reach)
    assert repr(run(*command).exception) == "Reached(1)"
    assert displays == []


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["serve", "--modle", "a:1.0.0"], "No such option: --modle (Possible options: --model"),
        (["promote", "a:1.0.0", "--to", "prodction"], "is not one of 'staging', 'production'"),
        (["regster"], "Did you mean 'register'?"),
        (["api-key", "creat"], "Did you mean 'create'?"),
    ],
)
def test_a_misspelled_command_or_option_is_answered_with_what_is_meant(
    arguments: list[str], suggestion: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert suggestion in result.stderr
