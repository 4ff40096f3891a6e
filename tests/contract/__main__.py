"""`make contract`: write the generated files, unless a version's wire format would break."""

import sys

from gateway.api_versions import DOCUMENTS
from tests.contract.written import ROOT, broken, made, told


def main() -> int:
    """Write the files; 1, and none of them, if a caller of a version would break."""
    faults = [told(version, found) for version in DOCUMENTS if (found := broken(version))]
    if faults:
        sys.stderr.write("\n".join(faults) + "\n")
        return 1
    for path, text in made().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
