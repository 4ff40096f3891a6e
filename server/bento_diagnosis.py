"""Diagnoses a start from a bento: its own code, settings and models, and the packages it pins."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote

from pydantic import TypeAdapter, ValidationError

from kaiten.errors import BuildRefused, Detail, SetupError
from kaiten.installation import install_command
from kaiten.settings.environment import environment_for
from lifecycle.packaging.bento import (
    REQUIREMENTS,
    check_files,
    compare_packages,
    find_bento,
    is_locked,
    pinned_packages,
    read_labels,
    read_tag,
)
from lifecycle.packaging.origin import labelled_models
from lifecycle.store import ModelStore
from server.diagnosis import BentoDiagnosis, Diagnosis, bentoml_service, diagnose_machine

_DIAGNOSIS = TypeAdapter(Diagnosis)


def diagnose_bento(bento: str) -> Diagnosis:
    """Check everything that a start from a bento, given by its tag or its folder, depends on.

    The bento's own code examines the settings, the models and the machine, in the folder and the
    environment of this process, as `bentoml serve` would. It does not run if files of the bento
    have changed.

    Raises:
        SetupError: There is no such bento, or its code cannot run here.

    """
    # BentoML opens its store only with usable settings of its own.
    bentoml_service()
    store = ModelStore()
    folder = find_bento(bento, store)
    locked = is_locked(folder)
    if locked and (file_problems := [*_file_problems(folder)]):
        return diagnose_machine(file_problems)
    pins = pinned_packages(folder) if locked else {}
    missing, mismatches = compare_packages(pins)
    diagnosis = _own_diagnosis(folder, missing)
    labels = read_labels(folder)
    facts = BentoDiagnosis(
        tag=read_tag(folder),
        folder=folder,
        revision=labels.get("revision"),
        packages=len(pins) if locked else None,
        differences=[
            *(f"{name} is pinned, and is not installed here" for name in missing),
            *([_install(folder)] if missing else ()),
            *mismatches,
            *(_model_differences(folder, store) if locked else ()),
        ],
    )
    return replace(diagnosis, bento=facts)


def _own_diagnosis(folder: Path, missing: list[str]) -> Diagnosis:
    """Return the diagnosis that the bento's own code makes."""
    source = {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    # -P keeps the working directory, which may be a checkout, from taking precedence.
    command = [sys.executable, "-P", "-m", "cli", "doctor", "--json"]
    completed = subprocess.run(  # noqa: S603  our own command
        command, env=environment_for(source), capture_output=True, text=True, check=False
    )
    try:
        return _DIAGNOSIS.validate_json(completed.stdout)
    except ValidationError:
        source_folder, python = quote(str(folder / "src")), quote(sys.executable)
        last_line = completed.stderr.strip().rpartition("\n")[2] or "it printed no diagnosis"
        remedy = (
            f"These packages are missing: {', '.join(missing)}. {_install(folder)}"
            if missing
            else f"Run its own doctor: PYTHONPATH={source_folder} {python} -P -m cli doctor"
        )
        raise SetupError(
            f"The code of {read_tag(folder)} cannot be examined here: {last_line}. {remedy}"
        ) from None


def _file_problems(folder: Path) -> Iterator[Detail]:
    try:
        check_files(folder)
    except BuildRefused as error:
        yield Detail("bento", error.message)


def _install(folder: Path) -> str:
    """Return how to install the packages; paths of wheels are relative to their list."""
    requirements = folder / REQUIREMENTS
    command = install_command(["-r", requirements.name])
    return f"Run: cd {quote(str(requirements.parent))} && {command}"


def _model_differences(folder: Path, store: ModelStore) -> Iterator[str]:
    """Yield a line on each model that differs in the store from the one the bento was built with.

    The bento's own code reports versions that are missing or changed. An image holds its models.
    """
    if (folder / "models").is_dir():
        return
    for model_tag, digest, _ in labelled_models(read_labels(folder)):
        try:
            model = store.get(model_tag)
        except SetupError:
            continue
        if f"sha256:{model.digest}" != digest:
            yield (
                f"the files of {model_tag} in the store differ from those that the bento was built "
                "with"
            )
