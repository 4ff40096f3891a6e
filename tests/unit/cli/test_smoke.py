import json
import ssl
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any

import jwt
import pytest
from typer.testing import CliRunner, Result

from cli import app
from gateway.auth.minting import mint
from kaiten.errors import SetupError
from kaiten.settings.models import AuthSettings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE
from tests.certificates import Authority
from tests.unit.server.smoke.deployment import (
    PREDICT,
    TAG,
    TOKEN,
    Answer,
    Deployment,
    labelled_prediction,
    serve_deployment,
)

SECRET = token_hex(32)
WORD = "canary"


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    with serve_deployment() as deployment:
        yield deployment


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return str(path)


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["smoke", *arguments, "--wait", "0"], input=stdin)


def refusal(result: Result) -> str:
    """Return what `main` would send to standard error."""
    assert result.exit_code == 1
    assert isinstance(result.exception, SetupError)
    return result.exception.message


def test_good_deployment_is_shown_row_by_row(deployment: Deployment, token_file: str) -> None:
    result = run(deployment.url, "--token-file", token_file, "--model", TAG)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines() if " ok " in line]
    assert len(rows) == 10
    assert ["version", "ok", TAG] in rows


def test_json_holds_every_check(deployment: Deployment, token_file: str) -> None:
    result = run(f"{deployment.url}/", "--token-file", token_file, "--json")
    output = json.loads(result.stdout)
    assert (output["ok"], output["url"], len(output["checks"])) == (True, deployment.url, 10)
    assert output["checks"][0] == {
        "name": "liveness",
        "outcome": "ok",
        "seen": "200",
        "remedy": "",
    }


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_failed_check_is_reported_with_its_remedy(
    option: list[str], deployment: Deployment, token_file: str
) -> None:
    options = ["--token-file", token_file, "--model", "intent:2.0.0", *option]
    result = run(deployment.url, *options)
    message = refusal(result)
    assert message == (
        f"{deployment.url} fails 1 of 10 checks:\n"
        "  version: intent:1.0.0 answers, not intent:2.0.0. "
        "Wait for the rollout to end, or deploy the version again."
    )
    assert "failed" in result.stdout
    assert TOKEN not in result.output


def test_golden_rows_are_read_as_for_validation(
    deployment: Deployment, token_file: str, tmp_path: Path
) -> None:
    deployment.rules[PREDICT] = labelled_prediction
    rows = tmp_path / "golden.csv"
    rows.write_text("words,right\nthis is a,a\nthis is b,c\n")
    golden = ["--golden", str(rows), "--text-column", "words", "--label-column", "right"]
    message = refusal(run(deployment.url, "--token-file", token_file, *golden))
    assert "predictions: 1 of 2 rows differ: row 2: 'b', not 'c'. Roll back" in message
    assert "this is" not in message


def test_golden_rows_must_be_some(deployment: Deployment, token_file: str, tmp_path: Path) -> None:
    (tmp_path / "golden.csv").write_text("text,label\n")
    golden = ["--golden", str(tmp_path / "golden.csv")]
    assert "has no rows" in refusal(run(deployment.url, "--token-file", token_file, *golden))
    assert deployment.requests == []


def test_token_comes_by_standard_input(deployment: Deployment) -> None:
    assert run(deployment.url, "--token-file", "-", stdin=f"{TOKEN}\n").exit_code == 0


def token_claims(deployment: Deployment) -> dict[str, Any]:
    """Return the claims of the last token of a prediction, which this server does not know."""
    token = [request.token for request in deployment.requests if request.path == PREDICT][-1]
    claims: dict[str, Any] = jwt.decode(
        token, SECRET, algorithms=["HS256"], audience="kaiten", issuer="kaiten"
    )
    return claims


def test_token_is_made_for_five_minutes_where_the_secret_is_known(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAITEN_AUTH__SECRET", SECRET)
    # The forged one is refused as well.
    refusal(run(deployment.url))
    claims = token_claims(deployment)
    assert (claims["sub"], claims["scope"]) == ("smoke", "predict ops")
    assert claims["exp"] - claims["iat"] == 300


def test_token_is_made_with_a_development_secret_that_is_there_and_with_no_new_one(
    deployment: Deployment, tmp_path: Path
) -> None:
    message = refusal(run(deployment.url))
    assert "no signing secret here" in message
    assert "--token-file" in message
    assert not [*tmp_path.iterdir()]
    assert deployment.requests == []
    (tmp_path / DEVELOPMENT_SECRET_FILE).write_text(SECRET)
    refusal(run(deployment.url))
    assert token_claims(deployment)["sub"] == "smoke"


@pytest.mark.parametrize("content", [None, b"", b"not a token", b"\xff.\xff.\xff", b"a.b.c\nd.e.f"])
def test_file_that_holds_no_token_is_named_and_not_quoted(
    content: bytes | None, deployment: Deployment, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    message = refusal(run(deployment.url, "--token-file", str(file)))
    assert message.startswith(f"--token-file {file} ")
    assert "not a token" not in message
    assert deployment.requests == []


def test_real_token_has_the_form_that_is_asked_for(deployment: Deployment, tmp_path: Path) -> None:
    token = mint("me", ["predict"], timedelta(minutes=1), AuthSettings(), SECRET)
    deployment.rules[PREDICT] = lambda _: Answer(200, "")
    refusal(run(deployment.url, "--token-file", "-", stdin=token))
    assert token in [request.token for request in deployment.requests]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["intent.example.org"], "is not a URL"),
        (["ftp://a"], "is not a URL"),
        (["https://"], "is not a URL"),
        (["http://[::"], "is not a URL"),
        ([f"https://me:{WORD}@a"], "holds more than an address"),
        ([f"https://a?token={WORD}"], "holds more than an address"),
        (["https://a", "--model", "intent"], "write name:version"),
        (["https://a", "--model", "Intent:1"], "write name:version"),
    ],
)
def test_what_is_no_address_and_no_version_is_refused(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert WORD not in result.stderr


def test_certificate_is_verified_by_the_authority_that_is_named(
    token_file: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "authority")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*authority.issue("server", "127.0.0.1"))
    with serve_deployment(context) as deployment:
        options = [deployment.url, "--token-file", token_file]
        assert run(*options, "--ca", str(authority.file)).exit_code == 0
        # Waiting does not cure a certificate, so the check fails at once.
        message = refusal(CliRunner().invoke(app, ["smoke", *options, "--wait", "3600"]))
    assert "CERTIFICATE_VERIFY_FAILED" in message
    assert "Name the authority of its certificate (--ca)" in message


@pytest.mark.parametrize("content", [None, "no PEM"])
def test_authority_that_can_not_be_used_is_named(
    content: str | None, deployment: Deployment, token_file: str, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    message = refusal(run(deployment.url, "--token-file", token_file, "--ca", str(file)))
    assert message.startswith(f"--ca {file} cannot be used: ")
