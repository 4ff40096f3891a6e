"""Starts a project: registers and validates a model, and writes a folder to serve it from."""

import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile

from kaiten import model_tags
from kaiten.errors import SetupError
from kaiten.settings.loader import load_settings
from lifecycle.evaluate.report import ValidationReport
from lifecycle.evaluate.rows import Columns, check_row_count, read_rows
from lifecycle.evaluate.run import ReportProgress
from lifecycle.registration import check_name, check_unused, check_version
from lifecycle.store import ModelStore, StoredModel
from server.project_files import FILE_NAMES, ProjectFacts, render_files
from server.registration import RegistrationRequest, register_source
from server.validation import ValidationRequest, validate_version

_TASK = "text-classification"


@dataclass(frozen=True, slots=True)
class ProjectRequest:
    """A project to start in a ``folder``, which may exist.

    ``source`` is a model as ``kaiten register`` takes it, or a registered version as
    ``name:version``.
    """

    folder: Path
    source: str
    data: Path
    name: str
    version: str
    columns: Columns = field(default_factory=Columns)
    allow_missing_labels: bool = False

    @property
    def model_tag(self) -> str:
        """The version that the project serves."""
        return registered_tag(self.source) or f"{self.name}:{self.version}"

    @property
    def validation_options(self) -> str:
        """The options of `kaiten validate` that differ from its defaults, for a shell."""
        columns, defaults = self.columns, Columns()
        options: list[str] = []
        if columns.text != defaults.text:
            options += ["--text-column", columns.text]
        if columns.label != defaults.label:
            options += ["--label-column", columns.label]
        if self.allow_missing_labels:
            options.append("--allow-missing-labels")
        return shlex.join(options)


@dataclass(frozen=True, slots=True)
class ProjectProgress:
    """Called with a line for each step, with the registered version, and with predicted rows."""

    step: Callable[[str], None]
    registered: Callable[[StoredModel], None]
    rows: ReportProgress


def registered_tag(source: str) -> str | None:
    """Return the source if it is written as name:version and is not the path of a folder."""
    name, _, version = source.partition(":")
    is_tag = model_tags.is_name(name) and model_tags.is_name(version)
    return source if is_tag and not Path(source).exists() else None


def suggest_name(source: str) -> str:
    """Return a model's name for a source: its last part, as far as a name allows; may be empty."""
    last = source.rstrip("/").rpartition("/")[2].partition("@")[0].lower()
    name = re.sub(r"[^a-z0-9._-]+", "-", last).strip("-._")
    return name[: model_tags.NAME_LIMIT].rstrip("-._")


def start_project(
    request: ProjectRequest, progress: ProjectProgress
) -> tuple[ValidationReport, Path]:
    """Register and validate the model, and write the files; return the report and its folder.

    A problem that is known before the registration, which takes a minute, is reported before it.

    Raises:
        SetupError: A file exists already, or the model or the rows cannot be used.

    """
    _check_files(request.folder)
    _check_model(request)
    _check_data(request)
    with _project_folder(request.folder):
        if registered_tag(request.source) is None:
            source = RegistrationRequest(request.source, request.name, request.version, _TASK)
            progress.registered(register_source(source, progress.step))
        report, report_folder = _validate(request, progress)
        _write_files(request, report)
    return report, report_folder


def _validate(request: ProjectRequest, progress: ProjectProgress) -> tuple[ValidationReport, Path]:
    validation = ValidationRequest(
        request.model_tag,
        request.data,
        text_column=request.columns.text,
        label_column=request.columns.label,
        allow_missing_labels=request.allow_missing_labels,
    )
    return validate_version(validation, progress.rows)


def _check_files(folder: Path) -> None:
    """Raise SetupError for a file of the project that exists already."""
    if folder.exists() and not folder.is_dir():
        raise SetupError(f"{folder} is not a folder. Name another one.")
    for name in FILE_NAMES:
        file = folder / name
        if file.exists() or file.is_symlink():
            raise SetupError(
                f"{file} exists already, and kaiten init overwrites no file. Name another folder, "
                "or remove the file."
            )


def _check_model(request: ProjectRequest) -> None:
    """Check the name and the version before the model is fetched."""
    store = ModelStore(load_settings().signatures)
    if registered_tag(request.source) is not None:
        store.get(request.model_tag)
        return
    check_name(request.name)
    check_version(request.version)
    remedy = (
        f"To use it, pass --model {request.model_tag}; to register another version, pass a higher "
        "--version."
    )
    check_unused(request.model_tag, store, remedy)


def _check_data(request: ProjectRequest) -> None:
    """Check the rows, as far as possible without the model's labels."""
    settings = load_settings()
    name, _ = model_tags.split(request.model_tag)
    min_rows, setting = settings.validation.threshold(name, "min_rows")
    rows = read_rows(request.data, request.columns, settings.gateway)
    check_row_count(rows, int(min_rows), request.data, setting)


@contextmanager
def _project_folder(folder: Path) -> Iterator[None]:
    """Create the folder, and remove it again if the project fails.

    Raises:
        SetupError: No file can be written there.

    """
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(
            f"{folder} cannot be written: {error.strerror}. Name another folder, or give it to "
            "this user."
        ) from None
    try:
        yield
    except BaseException:
        if not existed:
            with suppress(OSError):
                folder.rmdir()
        raise


def _write_files(request: ProjectRequest, report: ValidationReport) -> None:
    """Write all files, or none."""
    measures = report.measures
    facts = ProjectFacts(
        request.model_tag,
        request.data.absolute(),
        measures.accuracy,
        measures.macro.f1,
        request.validation_options,
    )
    written: list[Path] = []
    try:
        for name, text in render_files(facts).items():
            path = request.folder / name
            # Never a file that was created in the meantime.
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise SetupError(
            f"{error.filename or request.folder} cannot be written: {error.strerror}. "
            f"{request.model_tag} is registered: run the command again with --model "
            f"{request.model_tag}."
        ) from None
