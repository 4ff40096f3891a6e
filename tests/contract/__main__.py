"""`make contract`: write the generated files, unless a version's wire format would break."""

import sys

from gateway.api_versions import DOCUMENTS
from tests.contract.written import ROOT, breaking_change_message, breaking_changes, generated_files


def main() -> int:
    """Write the files; 1, and none of them, if a caller of a version would break."""
    faults = [
        breaking_change_message(version, changes)
        for version in DOCUMENTS
        if (changes := breaking_changes(version))
    ]
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    for path, text in generated_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
