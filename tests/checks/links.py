"""`make prose`: reject links, and mentions of documents and sources, that lead nowhere."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")
# Folders of sources, as documents name files in them; a placeholder in capitals is none.
_SOURCE = re.compile(
    r"`((?:cli|server|gateway|runners|monitors|lifecycle|kaiten|tests|deploy|benchmarks|examples)"
    r"/(?:[a-z0-9_./-]*(?:/|\.\w+))?)`"
)
_MENTION = re.compile(r"\bdocs/[\w./-]+\.md(?:#[\w-]+)?")
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_TEXT = {".py", ".yaml", ".yml", ".sh", ".toml", ".json", ".conf", ".md", ""}
_SKIPPED = re.compile(r"(^|/)results/|^CHANGELOG\.md$|^tests/(unit/)?checks/|^\.secrets\.baseline$")


def broken_links(root: Path, names: list[str]) -> Iterator[str]:
    """Yield each link that leads nowhere, as ``file:line: target``."""
    for name in names:
        file = root / name
        if _SKIPPED.search(name) or file.suffix not in _TEXT or not file.is_file():
            continue
        text = file.read_text("utf-8", errors="ignore")
        for target, offset in _targets(name, text):
            if not _exists(root, file, target):
                yield f"{name}:{text.count(chr(10), 0, offset) + 1}: {target}"


def _targets(name: str, text: str) -> Iterator[tuple[str, int]]:
    if name.endswith(".md"):
        text = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        for match in _LINK.finditer(text):
            target = match["target"] or match["image"]
            if "://" not in target and not target.startswith("mailto:"):
                yield target, match.start()
        for match in _SOURCE.finditer(text):
            yield f"/{match[1]}", match.start()
    else:
        # Relative to the root, as messages and comments name them.
        yield from ((f"/{match[0]}", match.start()) for match in _MENTION.finditer(text))


def _exists(root: Path, file: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    place = root / path[1:] if path.startswith("/") else (file.parent / path if path else file)
    if not place.exists():
        return False
    return not anchor or place.suffix != ".md" or anchor in anchors(place)


@cache
def anchors(file: Path) -> frozenset[str]:
    """Return the anchors of a document's headings, as GitHub writes them."""
    text = _FENCE.sub("", file.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return frozenset(heading.replace(" ", "-") for heading in plain)


def main() -> int:
    """Print the links that lead nowhere; 1 if there are any."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    # Without git, the documents alone: caches look like sources.
    documents = [file.relative_to(ROOT).as_posix() for file in ROOT.glob("docs/**/*.md")]
    names = listed.stdout.split("\n")[:-1] if listed.returncode == 0 else documents
    lines = list(broken_links(ROOT, names))
    sys.stdout.writelines(f"{line} leads nowhere\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
