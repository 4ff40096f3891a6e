"""`make prose`: reject the worst habits of English prose, by file, line and remedy.

It reads documents, docstrings, comments and messages. A folder in `PENDING` is only counted; all
other files must be clean. STYLE: one idea per sentence, the usual word, active voice.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Files that still have findings, which are only counted. Remove an entry once it is clean.
PENDING: tuple[str, ...] = ()
# Results are records of a day, references repeat the code, and this module quotes the habits.
_SKIPPED = re.compile(r"(^|/)results/|^docs/(openapi|reference)/|^tests/checks/(test_)?prose\.py$")
_COMMENTED = {".yaml", ".yml", ".toml", ".sh", ".conf"}
_PEOPLE = {
    "administrator", "anyone", "attacker", "attackers", "author", "engineer", "engineers",
    "everyone", "human", "humans", "maintainer", "maintainers", "one", "operator", "operators",
    "people", "person", "reader", "readers", "reviewer", "reviewers", "someone", "stranger",
    "strangers", "those", "user", "users",
}  # fmt: skip
MAX_SENTENCE_WORDS = 40
# Two lines of a table that is read on a screen.
MAX_CELL_CHARS = 240


@dataclass(frozen=True, slots=True)
class Rule:
    """A habit and its remedy."""

    name: str
    pattern: re.Pattern[str]
    remedy: str
    # A question may ask "who?" or "what is it?".
    in_questions: bool = True


@dataclass(frozen=True, slots=True)
class Passage:
    """One paragraph, list item, table cell or message."""

    path: str
    line: int
    text: str
    is_cell: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A place that breaks a rule."""

    path: str
    line: int
    rule: str
    excerpt: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.excerpt!r}; {self.remedy}"


def _rule(name: str, pattern: str, remedy: str, *, in_questions: bool = True) -> Rule:
    spaced = pattern.replace(" ", r"\s+")
    return Rule(name, re.compile(spaced, re.IGNORECASE), remedy, in_questions)


RULES = (
    _rule("can not", r"\bcan not\b", 'write "cannot"'),
    _rule(
        "what-is as a noun",
        r"\bwhat (is|are|was|were|has|have|had|comes|came|goes|waits|does|did)\b",
        "name the thing",
        in_questions=False,
    ),
    _rule("nobody", r"\b(whoever|nobody|somebody|anybody|whom)\b", "name the actor"),
    _rule("where there is", r"\bwhere there (is|are|was|were)\b", 'write "if"'),
    _rule("told", r"\b(told|is telling)\b", 'write "reports", "logs", "distinguishes" or "says"'),
    _rule("as is", r"(?<!such\x20)\bas is\b", "make it a sentence of its own"),
    _rule("or not be", r"\bor not be\b", "say what happens otherwise"),
    _rule("be had", r"\bbe had\b", 'write "is unavailable" or "is in use"'),
    _rule("away", r"\b(is|are|was|were|be) away\b", 'write "is unavailable"'),
    _rule("mend", r"\bmend(s|ed|ing)?\b", 'write "fix"'),
    _rule("heed", r"\bheed(s|ed|ing)?\b", 'write "honour" or "follow"'),
    _rule("go on", r"\b(go|goes|went|going) on\b", 'write "continue"'),
    _rule(
        "is no",
        r"(?<!there\x20)\b(is|are|was|were) no (?!longer\b|more\b|fewer\b|less\b|later\b|sooner\b)",
        'write "is not a"',
    ),
    # Capitals for emphasis; case is the finding.
    Rule(
        "capitals", re.compile(r"\b(NEVER|ALWAYS|NOTE|WARNING|DO NOT)\b(?![:_=])"), "use lower case"
    ),
)
_WHO = re.compile(r"(?:(?P<noun>[\w'-]+),?\s+)?\bwho\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[)\"*_]*\s+(?=[A-Z`*\[(])|\n\n")


def findings(passages: Iterable[Passage]) -> Iterator[Finding]:
    """Yield each place of the passages that breaks a rule."""
    for passage in passages:
        yield from _habits(passage)
        yield from _who_clauses(passage)
        yield from _lengths(passage)


def _habits(passage: Passage) -> Iterator[Finding]:
    for rule in RULES:
        for match in rule.pattern.finditer(passage.text):
            if rule.in_questions or not _in_question(passage.text, match.start()):
                yield _finding(passage, match.start(), rule.name, match[0], rule.remedy)


def _who_clauses(passage: Passage) -> Iterator[Finding]:
    for match in _WHO.finditer(passage.text):
        noun = (match["noun"] or "").lower()
        if noun not in _PEOPLE and not _in_question(passage.text, match.start()):
            yield _finding(passage, match.end() - 3, "who", match[0], "name the program or caller")


def _lengths(passage: Passage) -> Iterator[Finding]:
    if passage.is_cell and len(passage.text) > MAX_CELL_CHARS:
        excerpt = passage.text[:40]
        yield _finding(passage, 0, "long table cell", excerpt, "move it into a paragraph")
    # Columns are a table or a tree.
    if re.search(r"\S {3,}\S", passage.text):
        return
    offset = 0
    for sentence in _SENTENCE_END.split(passage.text):
        if len(re.findall(r"\w[\w'`.-]*", sentence)) > MAX_SENTENCE_WORDS:
            start = passage.text.find(sentence, offset)
            yield _finding(passage, start, "long sentence", sentence[:40], "split it")
        offset += len(sentence)


def _in_question(text: str, offset: int) -> bool:
    end = re.search(r"[.?!](\s|$)", text[offset:])
    return end is not None and end[0].startswith("?")


def _finding(passage: Passage, offset: int, rule: str, excerpt: str, remedy: str) -> Finding:
    line = passage.line + passage.text.count("\n", 0, max(offset, 0))
    return Finding(passage.path, line, rule, " ".join(excerpt.split()), remedy)


def passages_of(path: str, text: str) -> Iterator[Passage]:
    """Yield the prose of a file, by its kind."""
    suffix = Path(path).suffix
    if suffix == ".md":
        yield from _of_markdown(path, text)
    elif suffix == ".py":
        yield from _of_python(path, text)
    elif suffix in _COMMENTED or Path(path).name == "Makefile":
        lines = {
            number: line.partition("#")[2]
            for number, line in enumerate(text.splitlines(), 1)
            if line.lstrip().startswith("#") and not line.startswith("#!")
        }
        # The help texts of a Makefile's targets.
        targets = re.finditer(r"^[a-z-]+:.*## (.*)$", text, re.MULTILINE)
        yield from (
            Passage(path, text.count("\n", 0, target.start()) + 1, _plain(target[1]))
            for target in targets
        )
        yield from _of_comments(path, lines)


def _of_markdown(path: str, text: str) -> Iterator[Passage]:
    text = re.sub(r"<!--.*?-->", _blank, text, flags=re.DOTALL)
    text = re.sub(r"^( *)```.*?^\1```", _blank, text, flags=re.DOTALL | re.MULTILINE)
    yield from _blocks(path, 1, text)


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _blocks(path: str, line: int, text: str) -> Iterator[Passage]:
    """Yield paragraphs, list items and table cells."""
    block: list[str] = []
    start = line
    for number, content in enumerate([*text.split("\n"), ""], line):
        is_row = content.lstrip().startswith("|")
        begins = re.match(r"\s*([-*]|\d+\.|#+|>)\s", content)
        if block and (not content.strip() or is_row or begins):
            yield Passage(path, start, _plain("\n".join(block)))
            block = []
        if is_row:
            for cell in content.strip().strip("|").split(" | "):
                yield Passage(path, number, _plain(cell.strip()), is_cell=True)
        elif content.strip():
            start = start if block else number
            block.append(content)


def _plain(text: str) -> str:
    """Return text without code and addresses, so that neither is read as prose."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(`+)[^`]+\1", "X", text)


def _of_python(path: str, text: str) -> Iterator[Passage]:
    tree = ast.parse(text)
    docstrings = {id(node): node for node in _docstrings(tree)}
    for node in docstrings.values():
        yield from _blocks(path, node.lineno, str(node.value))
    yield from _of_comments(path, _comments(text))
    if not path.startswith(("tests/", "benchmarks/")):
        yield from _messages(path, tree, docstrings)


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def _messages(
    path: str, tree: ast.Module, docstrings: dict[int, ast.Constant]
) -> Iterator[Passage]:
    """Yield string literals of three words or more."""
    parts: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts |= {id(value) for value in node.values}
            literals = (str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
            value = "".join(literals)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            value = "" if id(node) in parts or id(node) in docstrings else node.value
        else:
            continue
        # Several lines are a page, a script or a file of another program.
        if re.search(r"[a-z]+ [a-z]+ [a-z]+", value) and "\n" not in value:
            yield Passage(path, node.lineno, _plain(value))


def _comments(text: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("#")
        for token in tokens
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:|!)", token.string)
    }


def _of_comments(path: str, lines: dict[int, str]) -> Iterator[Passage]:
    """Yield each run of comment lines as one passage."""
    run: list[int] = []
    for number in [*lines, -1]:
        if run and number != run[-1] + 1:
            text = "\n".join(lines[line] for line in run)
            yield from _blocks(path, run[0], text)
            run = []
        run.append(number)


def read_tree(root: Path) -> Iterator[Passage]:
    """Yield the prose of all committed and new files of a checkout."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    names = listed.stdout.split("\n") if listed.returncode == 0 else _walk(root)
    for name in sorted(filter(None, names)):
        file = root / name
        if not _SKIPPED.search(name) and file.is_file() and not file.is_symlink():
            readable = Path(name).suffix in {".md", ".py", *_COMMENTED} or file.name == "Makefile"
            if readable:
                yield from passages_of(name, file.read_text("utf-8"))


def _walk(root: Path) -> Iterator[str]:
    """Yield the files of a checkout that git does not know, without caches and environments."""
    for file in root.rglob("*"):
        name = file.relative_to(root).as_posix()
        if not re.search(r"(^|/)\.(?!github)|__pycache__|node_modules", name):
            yield name


def main(arguments: list[str]) -> int:
    """Print the findings of clean files and the number in each pending folder; 1 if any is new.

    ``--all`` prints those of pending folders too, and further arguments limit the output to paths
    that begin with them.
    """
    prefixes = tuple(argument for argument in arguments if not argument.startswith("-"))
    all_findings = [
        finding
        for finding in findings(read_tree(ROOT))
        if not prefixes or finding.path.startswith(prefixes)
    ]
    pending = [finding for finding in all_findings if finding.path.startswith(PENDING)]
    failures = [finding for finding in all_findings if not finding.path.startswith(PENDING)]
    for finding in all_findings if "--all" in arguments or prefixes else failures:
        sys.stdout.write(f"{finding}\n")
    counts = Counter(finding.path.partition("/")[0] for finding in pending)
    remaining = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    sys.stdout.write(f"prose: {len(failures)} findings; pending: {remaining or 'none'}\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
