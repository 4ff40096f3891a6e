"""Builds a bento: BentoML's own build, of a folder and of packages that follow from the commit."""

import hashlib
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
from kaiten.files import replace
from lifecycle.packaging.commands import run
from lifecycle.packaging.context import (
    BENTOFILE,
    digest_of,
    digests,
    files_of,
    read_bentofile,
    stage,
)
from lifecycle.packaging.origin import models_in, revision, statement
from lifecycle.packaging.packages import WHEELS, Lock, Variant, lock, packages_for, requirements
from lifecycle.packaging.sbom import bill
from lifecycle.promotion import passing_report
from lifecycle.resolution import resolve
from lifecycle.store import ModelStore, StoredModel

SERVICE = "kaiten_service"
SBOM, PROVENANCE = "sbom.cdx.json", "provenance.json"
_CONSTRAINTS, _REQUIREMENTS, _BENTO_YAML = "constraints.txt", "requirements.txt", "bento.yaml"
# Whatever a setting may name has to be there: nobody can add to a read-only image.
_EXTRAS = ("postgres", "s3")
_SHOWN = 12
_PATIENCE_S = 600


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built, of the checkout in ``project``.

    ``models`` are references as in serving.models; ``torch`` asks for it where no model does.
    Without ``torch_source``, it is what pip is set up to find; without ``base_image``, the base is
    Python's own.
    """

    project: Path
    models: tuple[str, ...]
    variant: Variant = "cpu"
    torch: bool = False
    torch_source: str | None = None
    base_image: str | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """A bento in the store; ``digest`` (sha256:...) is over all files but the time it was made."""

    bento: str
    folder: Path
    digest: str
    labels: dict[str, str]
    # It was there already, as the same content has the same version.
    existed: bool


def build(order: Order, store: ModelStore, environment: Mapping[str, str]) -> Built:
    """Build a bento in the store beside the models', unless the very same one is there.

    Its version is made of that of the first model, the variant and the digest of all that goes in.
    ``environment`` is that of BentoML's build. BuildRefused, or another SetupError, where a model
    may not serve, the packages can not be had, or BentoML fails.
    """
    examined = [_examined(each, store) for each in order.models]
    models = [model for model, _ in examined]
    names = [model.card.name for model in models]
    if len({*names}) < len(names):
        raise BuildRefused(f"--model: a bento serves one version of a model, not {names}.")
    needed = packages_for(
        [model.card for model in models], "cuda" if order.torch else order.variant
    )
    wanted = requirements(order.project, _EXTRAS, needed)
    locked = lock(
        wanted, order.project / _CONSTRAINTS, variant=order.variant, source=order.torch_source
    )
    # Once: it walks the whole checkout.
    files = files_of(order.project)
    labels = _labels(order, examined, files)
    with TemporaryDirectory(prefix="kaiten-") as folder:
        context = Path(folder)
        stage(order.project, files, context, [model.card.tag for model in models])
        (context / _REQUIREMENTS).write_text(locked.text, encoding="utf-8")
        bentofile = yaml.safe_dump(_bentofile(order, models, labels), sort_keys=False)
        (context / BENTOFILE).write_text(bentofile, encoding="utf-8")
        bento = f"{SERVICE}:{_version(order, models[0], context)}"
        target = folder_of(bento, store)
        with _alone(store):
            # Written last.
            existed = (target / PROVENANCE).is_file()
            if not existed:
                _run_bentoml(context, bento, target, environment)
                _complete(target, bento, locked, models, labels)
    return Built(bento, target, check(bento, store), labels, existed)


def folder_of(bento: str, store: ModelStore) -> Path:
    """Return where a bento is, or would be, in BentoML's home, by its tag."""
    return store.folder.parent / "bentos" / Path(*model_tags.split(bento))


def check(bento: str, store: ModelStore) -> str:
    """Return the digest (sha256:...) of a bento of ours; BuildRefused where it is not as built."""
    folder = folder_of(bento, store)
    if model_tags.split(bento)[0] != SERVICE or not (folder / PROVENANCE).is_file():
        raise BuildRefused(f"{bento} is no bento of kaiten build. Make one: kaiten build --help.")
    subject = json.loads((folder / PROVENANCE).read_bytes())["subject"][0]
    digest = digest_of(bento_files(folder))
    if subject["digest"]["sha256"] != digest:
        raise BuildRefused(
            f"{bento} was changed since it was built. Delete it (bentoml delete {bento}), and "
            "build it again."
        )
    return f"sha256:{digest}"


def labels_of(bento: str, store: ModelStore) -> dict[str, str]:
    """Return the labels of a bento."""
    told = yaml.safe_load((folder_of(bento, store) / _BENTO_YAML).read_text(encoding="utf-8"))
    labels: dict[str, str] = told["labels"]
    return labels


def check_models(labels: Mapping[str, str], store: ModelStore) -> None:
    """Raise BuildRefused unless the models in the store are those that a bento was built with.

    An image takes them from there, by name and version only.
    """
    for tag, digest, report in models_in(labels):
        model = store.get(tag)
        if f"sha256:{model.digest}" != digest or not model.has_report(report[len("sha256:") :]):
            raise BuildRefused(
                f"{tag} is not in the store as it was when the bento was built: it was registered "
                "again, or lost its report. Build the bento again."
            )


def bento_files(bento: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a bento, by its path, with what is told of it left out.

    That is the time in bento.yaml, and the files that hold the digest of all others.
    """
    told = yaml.safe_load((bento / _BENTO_YAML).read_text(encoding="utf-8"))
    del told["creation_time"]
    lines = yaml.safe_dump(told).encode()
    others = digests(bento, without=(_BENTO_YAML, SBOM, PROVENANCE))
    return others | {_BENTO_YAML: hashlib.sha256(lines).hexdigest()}


def _examined(reference: str, store: ModelStore) -> tuple[StoredModel, str]:
    """Return a version that may serve in production, and the digest of its passing report."""
    found = resolve(reference, store, in_production=False)
    tag = found.model.card.tag
    try:
        report = _report(found.model, store)
    except PromotionRefused as error:
        raise BuildRefused(
            f"No bento is built with {tag}: {error.details[0].reason}. "
            f"First: kaiten validate {tag} --data FILE."
        ) from None
    if not found.promoted:
        raise BuildRefused(
            f"No bento is built with {tag}: it was promoted to no stage, so the bento would not "
            f"start. First: kaiten promote {tag} --to staging --reason REASON."
        )
    return found.model, report


def _report(model: StoredModel, store: ModelStore) -> str:
    """Return the digest of the report that lets a version serve, by the trail if there is one.

    A version that was imported has left it behind, and carries the promotions that rest on one.
    """
    entries = store.history(model.card.name).entries()
    if entries:
        return passing_report(entries, model).report or ""
    for promotion in reversed(model.promotions):
        if promotion.report is not None and model.has_report(promotion.report):
            return promotion.report
    raise PromotionRefused(model.card.tag, "it has no passing report", "Validate it.")


def _labels(
    order: Order, examined: Sequence[tuple[StoredModel, str]], files: Sequence[str]
) -> dict[str, str]:
    """Return what a bento, and an image of it, say of themselves."""
    return {
        "kaiten": __version__,
        "revision": revision(order.project, files),
        "variant": order.variant,
        # Which bytes a tag stood for, only a digest tells.
        **({"base_image": order.base_image} if order.base_image else {}),
        "models": " ".join(model.card.tag for model, _ in examined),
        "model_digests": " ".join(f"sha256:{model.digest}" for model, _ in examined),
        "report_digests": " ".join(f"sha256:{report}" for _, report in examined),
    }


def _bentofile(
    order: Order, models: Sequence[StoredModel], labels: Mapping[str, str]
) -> dict[str, Any]:
    told = read_bentofile(order.project)
    image = {"docker": {"base_image": order.base_image}} if order.base_image else {}
    return {
        **{key: told[key] for key in ("service", "description", "include")},
        "labels": dict(labels),
        "models": [model.card.tag for model in models],
        # Locked already, with hashes, which BentoML's own lock leaves out.
        "python": {"requirements_txt": f"./{_REQUIREMENTS}", "lock_packages": False},
        **image,
    }


@contextmanager
def _alone(store: ModelStore) -> Iterator[None]:
    """Let one build at a time write to the store: two may make the very same bento."""
    path = store.folder.parent / "kaiten" / ".build.lock"
    path.parent.mkdir(exist_ok=True)
    try:
        with FileLock(path, timeout=_PATIENCE_S):
            yield
    except Timeout:
        raise BuildRefused("Somebody else is building. Wait for them, and try again.") from None


def _version(order: Order, first: StoredModel, context: Path) -> str:
    version = f"{first.card.version}-{order.variant}-{digest_of(digests(context))[:_SHOWN]}"
    if not model_tags.is_name(version):
        raise BuildRefused(
            f"{version} is no version of a bento: over {model_tags.NAME_LIMIT} characters, most "
            "likely. Give the model a shorter version."
        )
    return version


def _run_bentoml(context: Path, bento: str, target: Path, environment: Mapping[str, str]) -> None:
    # A build that was killed before the last file was written.
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "bentoml", "build", "--version", model_tags.split(bento)[1]]
    refusal = f"BentoML could not build {bento}"
    run([*command, str(context)], refusal, environment, context)
    if not target.is_dir():
        raise BuildRefused(f"{refusal}: it said that it has, and there is none.")


def _complete(
    target: Path, bento: str, locked: Lock, models: Sequence[StoredModel], labels: Mapping[str, str]
) -> None:
    """Add the wheel that the lock names, the bill of materials and the provenance."""
    if locked.wheel is not None:
        # Where its Dockerfile installs from.
        folder = target / "env" / "python" / WHEELS
        folder.mkdir()
        shutil.copyfile(locked.wheel, folder / locked.wheel.name)
    digest = digest_of(bento_files(target))
    replace(target / SBOM, bill(bento, digest, locked.text, models))
    told = statement(bento, digest, labels)
    replace(target / PROVENANCE, json.dumps(told, indent=2) + "\n")
