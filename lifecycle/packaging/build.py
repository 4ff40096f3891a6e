"""Builds a bento with BentoML's own build, from files and packages that the commit determines."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from filelock import FileLock, Timeout

from kaiten import __version__, model_tags
from kaiten.errors import BuildRefused, PromotionRefused
from kaiten.files import replace_file
from lifecycle.commands import run_command
from lifecycle.packaging.bento import (
    PROVENANCE,
    SBOM,
    SERVICE,
    bento_files,
    bento_folder,
    check_bento,
    is_locked,
)
from lifecycle.packaging.context import (
    BENTOFILE,
    combine_digests,
    included_files,
    read_bentofile,
    sha256_by_path,
    stage_files,
)
from lifecycle.packaging.origin import provenance_statement, source_revision
from lifecycle.packaging.packages import (
    WHEELS,
    LockFile,
    Variant,
    lock_packages,
    optional_packages,
    read_requirements,
)
from lifecycle.packaging.sbom import make_sbom
from lifecycle.promotion import passing_report
from lifecycle.resolution import resolve_model
from lifecycle.store import ModelStore, StoredModel

_CONSTRAINTS, _REQUIREMENTS = "constraints.txt", "requirements.txt"
# All that a setting may name must be installed: nothing can be added to a read-only image.
_EXTRAS = ("postgres", "s3")
_DIGEST_CHARS = 12
_LOCK_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The bento to build from the checkout in ``project``.

    ``models`` are written as in serving.models; ``torch`` includes it even if no model needs it.
    ``torch_source`` None means the sources that pip is configured with, ``base_image`` None means
    Python's own image.
    """

    project: Path
    models: tuple[str, ...]
    variant: Variant = "cpu"
    torch: bool = False
    torch_source: str | None = None
    base_image: str | None = None


@dataclass(frozen=True, slots=True)
class Bento:
    """A bento in the store; ``digest`` (sha256:...) covers all files but the creation time.

    ``existed`` tells whether an earlier build had made it: equal contents have equal versions.
    """

    tag: str
    folder: Path
    digest: str
    labels: dict[str, str]
    existed: bool


def build_bento(request: BuildRequest, store: ModelStore, environment: Mapping[str, str]) -> Bento:
    """Build a bento in the store beside the models, unless the same one exists.

    Its version consists of the first model's version, the variant and the digest of all inputs.
    ``environment`` is that of BentoML's build.

    Raises:
        BuildRefused: A model may not serve, the packages cannot be resolved, or BentoML fails.

    """
    models_and_reports = [_check_model(reference, store) for reference in request.models]
    models = [model for model, _ in models_and_reports]
    names = [model.card.name for model in models]
    if len({*names}) < len(names):
        raise BuildRefused(f"--model: a bento serves one version of each model, not {names}.")
    locked = _lock(request, models)
    # Listed once, because it walks the whole checkout.
    files = included_files(request.project)
    labels = _bento_labels(request, models_and_reports, files)
    with TemporaryDirectory(prefix="kaiten-") as folder:
        context = Path(folder)
        stage_files(request.project, files, context, [model.card.tag for model in models])
        (context / _REQUIREMENTS).write_text(locked.text, encoding="utf-8")
        bentofile = yaml.safe_dump(_bentofile(request, models, labels), sort_keys=False)
        (context / BENTOFILE).write_text(bentofile, encoding="utf-8")
        tag = f"{SERVICE}:{_bento_version(request, models[0], context)}"
        target = bento_folder(tag, store)
        with _locked(store):
            # The file that locks it is written last.
            existed = is_locked(target)
            if not existed:
                _run_bentoml(context, tag, target, environment)
                _add_attachments(target, tag, locked, models, labels)
    return Bento(tag, target, check_bento(tag, store), labels, existed)


def _check_model(reference: str, store: ModelStore) -> tuple[StoredModel, str]:
    """Return a version that may serve in production, and the digest of its passing report."""
    resolved = resolve_model(reference, store, in_production=False)
    model_tag = resolved.model.card.tag
    try:
        report = _report_digest(resolved.model, store)
    except PromotionRefused as error:
        raise BuildRefused(
            f"{model_tag} cannot go into a bento: {error.details[0].reason}. "
            f"First: kaiten validate {model_tag} --data FILE."
        ) from None
    if not resolved.promoted:
        raise BuildRefused(
            f"{model_tag} cannot go into a bento: it was promoted to no stage, so the bento would "
            f"not start. First: kaiten promote {model_tag} --to staging --reason REASON."
        )
    return resolved.model, report


def _report_digest(model: StoredModel, store: ModelStore) -> str:
    """Return the digest of the report that lets a version serve.

    An imported version has no audit log; it carries its promotions, which name their reports.
    """
    entries = store.audit_log(model.card.name).entries()
    if entries:
        return passing_report(entries, model).report or ""
    for promotion in reversed(model.promotions):
        if promotion.report is not None and model.has_report(promotion.report):
            return promotion.report
    raise PromotionRefused(model.card.tag, "it has no passing report", "Validate it.")


def _lock(request: BuildRequest, models: Sequence[StoredModel]) -> LockFile:
    variant: Variant = "cuda" if request.torch else request.variant
    packages = optional_packages([model.card for model in models], variant)
    return lock_packages(
        read_requirements(request.project, _EXTRAS, packages),
        request.project / _CONSTRAINTS,
        variant=request.variant,
        source=request.torch_source,
    )


def _bento_labels(
    request: BuildRequest,
    models_and_reports: Sequence[tuple[StoredModel, str]],
    files: Sequence[str],
) -> dict[str, str]:
    """Return the labels of a bento, which its images carry too."""
    return {
        "kaiten": __version__,
        "revision": source_revision(request.project, files),
        "variant": request.variant,
        # If it is a tag without a digest, what it stood for is unknown.
        **({"base_image": request.base_image} if request.base_image else {}),
        "models": " ".join(model.card.tag for model, _ in models_and_reports),
        "model_digests": " ".join(f"sha256:{model.digest}" for model, _ in models_and_reports),
        "report_digests": " ".join(f"sha256:{report}" for _, report in models_and_reports),
    }


def _bentofile(
    request: BuildRequest, models: Sequence[StoredModel], labels: Mapping[str, str]
) -> dict[str, Any]:
    bentofile = read_bentofile(request.project)
    image = {"docker": {"base_image": request.base_image}} if request.base_image else {}
    return {
        **{key: bentofile[key] for key in ("service", "description", "include")},
        "labels": dict(labels),
        "models": [model.card.tag for model in models],
        # Locked already, with hashes, which BentoML's own lock leaves out.
        "python": {"requirements_txt": f"./{_REQUIREMENTS}", "lock_packages": False},
        **image,
    }


@contextmanager
def _locked(store: ModelStore) -> Iterator[None]:
    """Let one build at a time write to the store: two may make the same bento."""
    path = store.folder.parent / "kaiten" / ".build.lock"
    path.parent.mkdir(exist_ok=True)
    try:
        with FileLock(path, timeout=_LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise BuildRefused("Another build is running. Wait for its end, and try again.") from None


def _bento_version(request: BuildRequest, first: StoredModel, context: Path) -> str:
    digest = combine_digests(sha256_by_path(context))
    version = f"{first.card.version}-{request.variant}-{digest[:_DIGEST_CHARS]}"
    if not model_tags.is_name(version):
        raise BuildRefused(
            f"The bento's version {version} is over {model_tags.NAME_LIMIT} characters. Give the "
            "model a shorter version."
        )
    return version


def _run_bentoml(context: Path, tag: str, target: Path, environment: Mapping[str, str]) -> None:
    # A build that was killed leaves a part of a bento.
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "bentoml", "build", "--version", model_tags.split(tag)[1]]
    refusal = f"BentoML could not build {tag}"
    run_command([*command, str(context)], refusal, environment, context)
    if not target.is_dir():
        raise BuildRefused(f"{refusal}: it reported success, and {target} does not exist.")


def _add_attachments(
    target: Path,
    tag: str,
    locked: LockFile,
    models: Sequence[StoredModel],
    labels: Mapping[str, str],
) -> None:
    """Add the wheel that the lock names, the SBOM and the provenance."""
    if locked.wheel is not None:
        # The bento's Dockerfile installs from this folder.
        folder = target / "env" / "python" / WHEELS
        folder.mkdir()
        shutil.copyfile(locked.wheel, folder / locked.wheel.name)
    digest = combine_digests(bento_files(target))
    replace_file(target / SBOM, make_sbom(tag, digest, locked.text, models))
    statement = provenance_statement(tag, digest, labels)
    replace_file(target / PROVENANCE, json.dumps(statement, indent=2) + "\n")
