"""Every string that the secret scan ignores is known, and not a secret."""

import json
from fnmatch import fnmatch

from kaiten.settings.environment import ROOT

# What looks like a secret and is none, by where it stands.
REASONS = {
    "tests/unit/*": "keys made up for tests, and W3C's own example of a trace",
    "tests/e2e/*": "keys made up for tests, and W3C's own example of a trace",
    "tests/acceptance/field/*": "secrets made up for attacks on a server",
    "kaiten/settings/reference.py": "a URL with a placeholder for the password",
    "tests/acceptance/results/*": "digests of what was measured",
    "benchmarks/results/*": "digests of what was measured",
    "docs/image-test.log": "digests of images, cut short",
    "examples/quickstart/train.py": "the digest of a file that it loads",
    "kaiten/settings/secrets.py": "the name of a file",
    "runners/probe_texts.py": "a digest that stands for any, in a text to tokenise",
}


def baseline() -> dict[str, list[dict[str, object]]]:
    document = json.loads((ROOT / ".secrets.baseline").read_text(encoding="utf-8"))
    results: dict[str, list[dict[str, object]]] = document["results"]
    return results


def test_what_the_scan_passes_over_has_a_reason() -> None:
    unexplained = [
        file for file in baseline() if not any(fnmatch(file, pattern) for pattern in REASONS)
    ]
    assert unexplained == []


def test_no_reason_is_left_over() -> None:
    unused = [
        pattern for pattern in REASONS if not any(fnmatch(file, pattern) for file in baseline())
    ]
    assert unused == []


def test_what_is_passed_over_is_still_there() -> None:
    assert [file for file in baseline() if not (ROOT / file).is_file()] == []
