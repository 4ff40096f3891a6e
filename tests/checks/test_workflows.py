"""What the workflows hold to that actionlint and zizmor (make check-deploy) do not ask for."""

import re
from typing import Any

import pytest
import yaml

from kaiten.settings.environment import ROOT

FOLDER = ROOT / ".github" / "workflows"
TEXTS = {file.name: file.read_text("utf-8") for file in sorted(FOLDER.iterdir())}
WORKFLOWS: dict[str, Any] = {name: yaml.safe_load(text) for name, text in TEXTS.items()}
RELEASE = WORKFLOWS["release.yaml"]["jobs"]
JOBS: dict[str, Any] = {
    f"{name}:{key}": job
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
}
STEPS: dict[str, Any] = {
    f"{key}:{index}": step
    for key, job in JOBS.items()
    for index, step in enumerate(job.get("steps", []))
}
RUNS = {key: step for key, step in STEPS.items() if "run" in step}
# What each job may do beyond reading the code.
PERMISSIONS = {
    "image": {"packages": "write"},
    "sign": {"packages": "write", "id-token": "write"},
    "staging": {"packages": "read"},
    "production": {"packages": "read"},
}


def triggers(name: str) -> set[str]:
    """Return what starts a workflow."""
    # YAML 1.1 reads `on` as true.
    return set({str(key): value for key, value in WORKFLOWS[name].items()}["True"])


def prerequisites(job: str) -> set[str]:
    """Return the jobs of a release that have to be done before one."""
    needs = set(RELEASE[job].get("needs", []))
    return needs.union(*(prerequisites(need) for need in needs))


def test_there_are_workflows() -> None:
    assert {"ci.yaml", "release.yaml", "rollback.yaml"} <= TEXTS.keys()
    assert len(RUNS) > 20


@pytest.mark.parametrize("name", TEXTS)
def test_every_action_is_pinned_by_digest_and_says_its_version(name: str) -> None:
    for used in re.findall(r"uses: (.+)", TEXTS[name]):
        if not used.startswith("./"):
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), used


def test_an_action_has_one_digest_everywhere() -> None:
    used = set(re.findall(r"uses: ([\w/-]+)@(\w+)", "".join(TEXTS.values())))
    assert len({action for action, _ in used}) == len(used)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_starts_without_any_right(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert not {"pull_request_target", "workflow_run", "issue_comment"} & triggers(name)


@pytest.mark.parametrize("name", RELEASE)
def test_a_job_of_a_release_has_the_rights_that_it_needs_and_no_more(name: str) -> None:
    assert RELEASE[name]["permissions"] == {"contents": "read"} | PERMISSIONS.get(name, {})


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_job_ends(job: dict[str, Any]) -> None:
    assert "uses" in job or 0 < job["timeout-minutes"] <= 90


@pytest.mark.parametrize("step", RUNS.values(), ids=RUNS)
def test_what_is_run_has_no_expression_in_it_and_no_secret_beside_it(step: dict[str, Any]) -> None:
    assert "${{" not in step["run"]
    secret = [key for key, value in step.get("env", {}).items() if "secrets." in str(value)]
    # Written to a file or to standard input, by the shell itself.
    for key in secret:
        assert "umask 077" in step["run"]
        assert all(
            line.lstrip().startswith("printf") for line in step["run"].splitlines() if key in line
        )


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_no_job_has_a_secret_in_its_environment(job: dict[str, Any]) -> None:
    assert "secrets" not in str(job.get("env", {}))
    assert "github.token" not in str(job.get("env", {}))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_a_checkout_leaves_no_credentials(step: dict[str, Any]) -> None:
    if step.get("uses", "").startswith("actions/checkout@"):
        assert step["with"]["persist-credentials"] is False


def test_forks_meet_no_secret() -> None:
    assert "secrets" not in str(WORKFLOWS["ci.yaml"])
    assert triggers("release.yaml") == {"workflow_dispatch"}
    assert triggers("rollback.yaml") == {"workflow_dispatch"}


@pytest.mark.parametrize(
    ("job", "needed"),
    [
        ("image", {"ci", "model"}),
        ("sign", {"image"}),
        ("staging", {"sign", "image", "ci", "model"}),
        ("production", {"staging", "sign"}),
        ("promote", {"production"}),
    ],
)
def test_a_release_goes_step_by_step(job: str, needed: set[str]) -> None:
    assert needed <= prerequisites(job)
    # A condition such as always() would let a job run although one before it had failed.
    assert "if" not in RELEASE[job]


def test_only_the_default_branch_is_released() -> None:
    for job in ("ci", "model"):
        assert RELEASE[job]["if"] == "github.ref_name == github.event.repository.default_branch"


def test_production_gets_the_image_that_staging_proved() -> None:
    staging, production = RELEASE["staging"], RELEASE["production"]
    assert staging["env"]["IMAGE"] == production["env"]["IMAGE"]
    assert staging["env"]["IMAGE"] == "${{ needs.image.outputs.image }}"
    # By digest, as push prints it and deploy.sh asks for it.
    (push,) = [step for step in RELEASE["image"]["steps"] if step.get("id") == "push"]
    assert "image=$(make -s push)" in push["run"]
    assert RELEASE["image"]["outputs"]["image"] == "${{ steps.push.outputs.image }}"


def test_staging_and_production_are_deployed_alike() -> None:
    steps = [yaml.safe_dump(RELEASE[job]["steps"]) for job in ("staging", "production")]
    assert steps[0] == steps[1].replace("production", "staging")


@pytest.mark.parametrize("name", ["staging", "production"])
def test_a_deployment_is_alone_gated_and_interrupted_cleanly(name: str) -> None:
    job = RELEASE[name]
    assert job["environment"]["name"] == name
    assert job["concurrency"] == {"group": f"deploy-{name}", "cancel-in-progress": False}
    (run,) = [step["run"] for step in job["steps"] if "deploy.sh" in step.get("run", "")]
    # The signal of a run that is cancelled has to reach the script.
    assert run.startswith(f"exec deploy/deploy.sh apply {name} ")


def test_a_rollback_does_not_meet_a_deployment() -> None:
    rollback = WORKFLOWS["rollback.yaml"]
    assert rollback["concurrency"] == {
        "group": "deploy-${{ inputs.overlay }}",
        "cancel-in-progress": False,
    }


def test_a_release_does_not_meet_another() -> None:
    assert WORKFLOWS["release.yaml"]["concurrency"] == {
        "group": "release",
        "cancel-in-progress": False,
    }


def test_an_image_is_scanned_before_it_is_pushed() -> None:
    runs = [step.get("run", "") for step in RELEASE["image"]["steps"]]
    (scan,) = [index for index, run in enumerate(runs) if "make scan" in run]
    (push,) = [index for index, run in enumerate(runs) if "make -s push" in run]
    assert scan < push


@pytest.mark.parametrize("step", RUNS.values(), ids=RUNS)
def test_a_target_of_make_that_is_called_exists(step: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in re.findall(r"\bmake (?:-s )?([a-z-]+)", step["run"]):
        assert f"\n.PHONY: {target}\n" in makefile
