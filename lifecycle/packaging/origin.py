"""The origin of a bento: the commit that it was built from, and its SLSA provenance."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lifecycle.commands import run_git

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"


def source_revision(project: Path, files: Iterable[str]) -> str:
    """Return the commit of a checkout, or "unknown".

    The suffix "-changed" marks a checkout that differs from the commit, or in which one of
    ``files`` (paths in the checkout) is not committed.
    """
    commit = _git(project, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return "unknown"
    # Untracked files count, also if the user's git settings hide them.
    status = _git(project, "status", "--porcelain", "--untracked-files=all")
    tracked = _git(project, "ls-files", "-z")
    clean = status == "" and tracked is not None and {*files} <= {*tracked.split("\0")}
    return commit if clean else f"{commit}-changed"


def provenance_statement(bento: str, digest: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return an in-toto statement with SLSA provenance (v1) for a bento with these labels.

    It names no time and no host, so that two builds of one commit are equal.
    """
    base_image = labels.get("base_image")
    return {
        "_type": _STATEMENT,
        "subject": [{"name": bento, "digest": _digest(digest)}],
        "predicateType": _PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:kaiten:build:v1",
                "externalParameters": {"variant": labels["variant"], "models": labels["models"]},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": labels["revision"]}},
                    *([{"uri": f"docker://{base_image}"}] if base_image else []),
                    *(
                        {
                            "name": f"model:{model_tag}",
                            "digest": _digest(card),
                            "annotations": {"report": report},
                        }
                        for model_tag, card, report in labelled_models(labels)
                    ),
                ],
            },
            "runDetails": {"builder": {"id": f"urn:kaiten:{labels['kaiten']}"}},
        },
    }


def labelled_models(labels: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the tag of each model in a bento's labels, and the digests of its card and report."""
    keys = ("models", "model_digests", "report_digests")
    yield from zip(*(labels[key].split() for key in keys), strict=True)


def _digest(text: str) -> dict[str, str]:
    return {"sha256": text.removeprefix("sha256:")}


def _git(project: Path, *arguments: str) -> str | None:
    # In a container, the checkout may belong to another user.
    return run_git(project, "-c", "safe.directory=*", *arguments)
