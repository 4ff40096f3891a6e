"""The name of the distribution, and its extras, in documents and messages."""

import re
import subprocess
import tomllib

import pytest

from kaiten.installation import DISTRIBUTION
from kaiten.settings.environment import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Kaiten is not on an index, where `kaiten` is another project: a wheel or a folder is installed.
INDEX_INSTALL = re.compile(
    r"""\b(?:pip3?|pipx|uv[ ]tool|uv[ ]pip|uv)[ ]+(?:install|inject|add|download)[ ]+
    (?:-{1,2}\S+[ ]+(?:[^-\s]\S*[ ]+)?)*["'`]?kaiten(?:-serving)?(?![\w.]|-client)""",
    re.VERBOSE,
)
EXTRA = re.compile(r"""(?:extra_remedy\(|missing_extra\(error,\s*)["'](\w+)["']\)""")


def visible_files() -> list[str]:
    """Return the files outside of hidden folders, for where git does not know the checkout."""
    paths = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
    return [
        path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)
    ]


def committed_texts() -> dict[str, str]:
    """Return the text of each file by its path, without this one and the records of a day."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others"]
    listing = subprocess.run(
        [*command, "--exclude-standard"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    names = listing.stdout.split("\0") if listing.returncode == 0 else visible_files()
    suffixes = (".md", ".py", ".toml", ".txt", ".yaml", ".yml", ".sh", "Makefile")
    return {
        name: (ROOT / name).read_text("utf-8")
        for name in names
        if name.endswith(suffixes)
        and "results/" not in name
        and name != "tests/checks/test_packaging.py"
        and (ROOT / name).is_file()
    }


@pytest.mark.parametrize(
    "line",
    [
        "pip install kaiten",
        "Run: pip install 'kaiten[build]'",
        "uv tool install kaiten-serving",
        "pipx install --python python3.12 kaiten",
        "`uv pip install -q kaiten[s3]`",
    ],
)
def test_an_installation_from_an_index_is_found(line: str) -> None:
    assert INDEX_INSTALL.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "pip install ./client",
        "pip install dist/kaiten_serving-0.1.0-py3-none-any.whl",
        "pipx install kaiten_serving-0.1.0-py3-none-any.whl",
        "uv pip install -e '.[dev]'",
    ],
)
def test_an_installation_from_a_folder_or_a_wheel_is_not(line: str) -> None:
    assert not INDEX_INSTALL.search(line)


def test_no_document_or_message_installs_kaiten_from_an_index() -> None:
    installs = {
        name: match[0]
        for name, text in committed_texts().items()
        if (match := INDEX_INSTALL.search(text))
    }
    assert installs == {}


def test_the_remedies_name_extras_that_exist() -> None:
    named = {extra for text in committed_texts().values() for extra in EXTRA.findall(text)}
    assert named == {"build", "postgres", "quickstart", "s3", "validate"}
    assert named <= PROJECT["optional-dependencies"].keys()


def test_the_extras_name_the_distribution() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    references = [
        line
        for lines in PROJECT["optional-dependencies"].values()
        for line in lines
        if line.startswith("kaiten")
    ]
    assert references
    assert all(line.startswith(f"{DISTRIBUTION}[") for line in references)
