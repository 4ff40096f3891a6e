"""The files that are made from the code: each version's document, and the table of failures."""

import json
from pathlib import Path
from typing import Any

from gateway.api_versions import DOCUMENTS
from gateway.app import route_table
from gateway.error_reference import table
from gateway.openapi import Json, document
from kaiten.settings.loader import Settings
from tests.contract.compatibility import breaks

ROOT = Path(__file__).resolve().parents[2]
MAKE = "make contract"
_INTRODUCTION = f"""# Errors

Generated from the code by `{MAKE}`; do not edit. Every failure has the form
`{{"error": {{"code", "message", "details", "request_id"}}}}`; `details` name the field. Later
releases may add codes: treat an unknown one by its status. If BentoML itself rejects a request for
the docs page, the code is the phrase of the status. Requests and responses of each version are in
{", ".join(f"[v{version}](../openapi/v{version}.json)" for version in DOCUMENTS)}.

"""


def generated_files() -> dict[Path, str]:
    """Return what each file is to hold, with the default settings."""
    texts = {
        path_of(version): json.dumps(document_of(version), indent=2, ensure_ascii=True)
        for version in DOCUMENTS
    }
    texts = {path: f"{text}\n" for path, text in texts.items()}
    return {**texts, ROOT / "docs" / "reference" / "errors.md": _INTRODUCTION + table()}


def document_of(version: str, **sections: Any) -> Json:  # noqa: ANN401
    """Return a version's document, with the default settings but for these sections."""
    settings = Settings.model_construct(None, **sections)
    return document(version, route_table(settings), settings)


def path_of(version: str) -> Path:
    """Return where a version's document is committed."""
    return ROOT / "docs" / "openapi" / f"v{version}.json"


def breaking_changes(version: str) -> list[str]:
    """Return what callers of the committed version would miss in the one that is made now."""
    path = path_of(version)
    return breaks(read(path), document_of(version)) if path.exists() else []


def read(path: Path) -> Json:
    content: Json = json.loads(path.read_text(encoding="utf-8"))
    return content


def breaking_change_message(version: str, changes: list[str]) -> str:
    """Return the next step after a change of the wire format."""
    lines = "".join(f"\n  {change}" for change in changes)
    specs = route_table(Settings.model_construct()).specs
    routes = ", ".join(spec.path for spec in specs if spec.api_version == version)
    return (
        f"The wire of version {version} ({routes}) would break its callers:{lines}\n"
        "Take it back, or give the change a new version. Only a version that nobody calls yet may "
        f"be written anew: remove {path_of(version).relative_to(ROOT)}, then run `{MAKE}`."
    )
