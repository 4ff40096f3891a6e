"""Model folders that lead to other files, and settings that YAML would lose, with real commands."""

import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.acceptance.report import Report
from tests.servers import BIN, ROOT, environment

BEFORE = {
    "folders of 6 that were registered": 6,
    "registrations of 6 that did not end": 0,
    "files of the store that held what the maker may not read": 4,
    "settings of 15 that were lost or changed in silence": 10,
    "settings of 15 that ended in a traceback": 3,
    "refusals with file and line": 1,
}
_SECRET = "root:$6$not.for.the.maker"
_LIMIT_S = 120
_CANARY = "KAITEN_FIELD_CANARY_0123456789"

# The content of kaiten.yaml, and the line that the refusal names.
SETTINGS: Mapping[str, tuple[bytes, str]] = {
    "a section twice": (b"batching: {max_padding_ratio: 0.2}\nbatching: {}\n", "line 2"),
    "a key twice": (b"batching:\n  max_padding_ratio: 0.2\n  max_padding_ratio: 0.3\n", "line 3"),
    "another case": (b"Batching:\n  max_padding_ratio: 0.2\n", "line 1"),
    "an anchor": (b"batching: &a\n  max_padding_ratio: 0.2\n", "line 1"),
    "a merge key": (b"batching:\n  <<: {max_padding_ratio: 0.2}\n", "line 2"),
    "a tab": (b"batching:\n\tmax_padding_ratio: 0.2\n", "line 2"),
    "a section below another": (b"serving:\n  batching: {max_padding_ratio: 0.2}\n", "line 2"),
    "base 60": (b"serving:\n  request_timeout_s: 1:30\n", "line 2"),
    "octal": (b"batching:\n  max_queue_items: 0600\n", "line 2"),
    "a word for a number": (b"serving:\n  drain_s: off\n", "line 2"),
    "a number for a date": (b"api_versions:\n  v1: {sunset_at: 86400}\n", "line 2"),
    "a folded line": (b"auth:\n  issuer: a\n    b\n", "line 2"),
    "a number for a key": (b"1: {max_padding_ratio: 0.2}\n", "line 1"),
    "null for a key": (b"~: 1\n", "line 1"),
    "deep nesting": (b"[" * 5000, "line 1"),
}


async def run(report: Report, store: Path, folder: Path) -> None:
    """Register hostile folders, then load hostile settings."""
    _register_folders(report, folder)
    _load_settings(report, folder)


def _register_folders(report: Report, folder: Path) -> None:
    secret = folder / "secret"
    secret.write_text(_SECRET)
    secret.chmod(0o600)
    attacks: Mapping[str, Callable[[Path], object]] = {
        "LICENSE": lambda path: path.symlink_to(secret),
        "merges.txt": lambda path: path.symlink_to("../secret"),
        "environ.json": lambda path: path.symlink_to("/proc/self/environ"),
        "notes.md": lambda path: path.hardlink_to(secret),
        "added_tokens.json": os.mkfifo,
        "talk.json": lambda path: os.mknod(path, stat.S_IFSOCK),
    }
    home = folder / "bentoml"
    env = environment(home, folder / "home", OMP_NUM_THREADS="1", FIELD_CANARY=_CANARY)
    registered, hung, named = [], [], []
    for number, (name, attack) in enumerate(attacks.items()):
        model = folder / f"model-{number}"
        _make_model(model)
        attack(model / name)
        options = ["--name", f"m{number}", "--version", "1.0.0", "--task", "text-classification"]
        try:
            done = _run(["register", str(model), *options], env)
        except subprocess.TimeoutExpired:
            hung.append(name)
            continue
        registered += [name] if done.returncode == 0 else []
        named += [name] if name in done.stderr and "Traceback" not in done.stderr else []
    report.check("folders of 6 that were registered", registered, passed=not registered)
    report.check("registrations of 6 that did not end", hung, passed=not hung)
    report.check("files named by the refusal", len(named), passed=len(named) == len(attacks))
    leaked = [
        path.name
        for path in home.rglob("*")
        if path.is_file()
        and any(marker.encode() in path.read_bytes() for marker in (_SECRET, _CANARY))
    ]
    name = "files of the store that held what the maker may not read"
    report.check(name, leaked, passed=not leaked)


def _load_settings(report: Report, folder: Path) -> None:
    lost, traced, named = [], [], []
    for name, (content, place) in SETTINGS.items():
        file = folder / "kaiten.yaml"
        file.write_bytes(content)
        env = environment(folder / "bentoml", folder / "home", KAITEN_CONFIG=str(file))
        done = _run(["token", "create", "--subject", "a", "--scope", "predict"], env)
        lost += [name] if done.returncode == 0 else []
        traced += [name] if "Traceback" in done.stderr else []
        named += [name] if place in done.stderr and str(file) in done.stderr else []
    report.check("settings of 15 that were lost or changed in silence", lost, passed=not lost)
    report.check("settings of 15 that ended in a traceback", traced, passed=not traced)
    report.check("refusals with file and line", len(named), passed=len(named) == len(SETTINGS))


def _run(arguments: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "kaiten"), *arguments]
    return subprocess.run(
        command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S, check=False
    )


def _make_model(folder: Path) -> None:
    """Save a tiny BERT classifier, which registers in seconds."""
    from transformers import (  # noqa: PLC0415  takes seconds
        BertConfig,
        BertForSequenceClassification,
        BertTokenizerFast,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(9))]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = {word: index for index, word in enumerate(words)}
    BertTokenizerFast(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
