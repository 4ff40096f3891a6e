"""Where a bento comes from: the commit that it was built of, and the statement that says so."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lifecycle.git import git

_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://slsa.dev/provenance/v1"


def revision(project: Path, files: Iterable[str]) -> str:
    """Return the commit of a checkout, or "unknown".

    It ends in "-changed" where the checkout differs from it, or one of ``files``, by their paths in
    the checkout, is not in it.
    """
    commit = _git(project, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return "unknown"
    # Whatever a user's own settings leave out.
    status = _git(project, "status", "--porcelain", "--untracked-files=all")
    known = _git(project, "ls-files", "-z")
    clean = status == "" and known is not None and {*files} <= {*known.split("\0")}
    return commit if clean else f"{commit}-changed"


def statement(bento: str, digest: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return an in-toto statement with SLSA provenance (v1) for a bento with these labels.

    It holds no time and no host, so that two builds of one commit agree.
    """
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
                    *({"uri": f"docker://{base}"} for base in [labels.get("base_image")] if base),
                    *(
                        {
                            "name": f"model:{tag}",
                            "digest": _digest(card),
                            "annotations": {"report": report},
                        }
                        for tag, card, report in models_in(labels)
                    ),
                ],
            },
            "runDetails": {"builder": {"id": f"urn:kaiten:{labels['kaiten']}"}},
        },
    }


def models_in(labels: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the tag of each model that labels name, and the digests of its card and its report."""
    keys = ("models", "model_digests", "report_digests")
    yield from zip(*(labels[key].split() for key in keys), strict=True)


def _digest(text: str) -> dict[str, str]:
    return {"sha256": text.removeprefix("sha256:")}


def _git(project: Path, *arguments: str) -> str | None:
    # Whoever owns the checkout: in a container it is somebody else.
    return git(project, "-c", "safe.directory=*", *arguments)
