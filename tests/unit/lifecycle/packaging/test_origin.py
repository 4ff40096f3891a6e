"""Where a bento comes from."""

import json
import subprocess
from pathlib import Path

import pytest

from lifecycle.packaging.origin import provenance_statement, source_revision
from lifecycle.packaging.sbom import make_sbom
from lifecycle.store import ModelStore
from tests.unit.lifecycle.cards import store_model

DIGEST = "d" * 64
LABELS = {
    "kaiten": "0.1.0",
    "revision": "c" * 40,
    "variant": "cpu",
    "models": "ours:1.0.0 theirs:2.0.0",
    "model_digests": f"sha256:{'a' * 64} sha256:{'b' * 64}",
    "report_digests": f"sha256:{'e' * 64} sha256:{'f' * 64}",
}
LOCK = f"""\
a-package==1.10.10 \\
    --hash=sha256:{DIGEST} \\
    --hash=sha256:{DIGEST}
other==2 ; sys_platform == 'linux' \\
    --hash=sha256:{DIGEST}
torch @ https://example.org/whl/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl \\
    --hash=sha256:{DIGEST}
./wheels/more-1.0+cpu-py3-none-any.whl \\
    --hash=sha256:{DIGEST}
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@localhost"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_revision_is_the_commit_and_whether_files_differ_from_it(tmp_path: Path) -> None:
    assert source_revision(tmp_path, []) == "unknown"
    git(tmp_path, "init", "--quiet")
    assert source_revision(tmp_path, []) == "unknown"
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert source_revision(tmp_path, ["file"]) == commit
    (tmp_path / "file").write_text("two")
    assert source_revision(tmp_path, ["file"]) == f"{commit}-changed"


def test_file_that_git_does_not_know_is_a_change(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "local.py").write_text("one")
    git(tmp_path, "config", "status.showUntrackedFiles", "no")
    assert source_revision(tmp_path, []) == f"{commit}-changed"
    (tmp_path / ".git" / "info" / "exclude").write_text("local.py\n")
    assert source_revision(tmp_path, []) == commit
    # An ignored file matters only if the bento includes it.
    assert source_revision(tmp_path, ["local.py"]) == f"{commit}-changed"


def test_checkout_that_git_can_not_compare_counts_as_changed(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / ".git" / "index").write_bytes(b"DIRC")
    assert source_revision(tmp_path, []) == f"{commit}-changed"


def test_statement_names_the_bento_its_commit_and_its_models() -> None:
    statement = provenance_statement("kaiten_service:1", DIGEST, LABELS)
    assert statement["subject"] == [{"name": "kaiten_service:1", "digest": {"sha256": DIGEST}}]
    parts = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert parts[0]["digest"] == {"gitCommit": "c" * 40}
    assert [part["name"] for part in parts[1:]] == ["model:ours:1.0.0", "model:theirs:2.0.0"]
    assert parts[2]["digest"] == {"sha256": "b" * 64}
    assert parts[2]["annotations"] == {"report": f"sha256:{'f' * 64}"}


@pytest.mark.usefixtures("model_store")
def test_bill_has_every_package_and_model_and_no_time(tmp_path: Path) -> None:
    model = store_model(ModelStore(), "ours:1.0.0", tmp_path)
    sbom = json.loads(make_sbom("kaiten_service:1", DIGEST, LOCK, [model]))
    assert {(part["type"], part["name"], part["version"]) for part in sbom["components"]} == {
        ("library", "a-package", "1.10.10"),
        ("library", "other", "2"),
        ("library", "torch", "2.13.0+cpu"),
        ("library", "more", "1.0+cpu"),
        ("machine-learning-model", "ours", "1.0.0"),
    }
    assert "pkg:pypi/torch@2.13.0%2Bcpu" in {part.get("purl") for part in sbom["components"]}
    assert sbom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": DIGEST}]
    assert "timestamp" not in sbom["metadata"]
    assert make_sbom("kaiten_service:1", DIGEST, LOCK, [model]) == make_sbom(
        "kaiten_service:1", DIGEST, LOCK, [model]
    )
