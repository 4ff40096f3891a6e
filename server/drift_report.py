"""The report on drift: finds windows and references, and writes or prints what they tell."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import structlog
import typer

from kaiten import model_tags
from kaiten.errors import ModelNotFound, SetupError
from kaiten.events import REFERENCE_FILE
from kaiten.files import replace
from kaiten.settings.loader import Settings, load_settings
from lifecycle.store import ModelStore
from monitors.drift.archive.archive import Archive
from monitors.drift.archive.names import Kept
from monitors.drift.archive.target import check_target
from monitors.drift.report import Reference, Report, VersionReport, version_report
from monitors.drift.spool import Source
from monitors.drift.state import NO_REFERENCE
from monitors.drift.whylogs_profiles import Profile

logger = structlog.get_logger("kaiten.drift")


def run(model: str, since: datetime, output: Path | None) -> None:
    """Write the report to a file, or print it as JSON where there is none."""
    render = _renderer() if output is not None else None
    report = _made(model, since)
    if output is None or render is None:
        typer.echo(report.model_dump_json())
        return
    try:
        replace(output, render(report))
    except OSError as error:
        raise SetupError(f"--output: {output} can not be written: {error.strerror}.") from None
    for each in report.versions:
        verdict = {None: f"not judged: {each.reason}", True: "drifted", False: "no drift"}
        name = f"{each.model}:{each.version} ({each.arm})"
        typer.echo(f"{name}, {each.rows} answers in {len(each.windows)} windows: ", nl=False)
        typer.echo(verdict[each.drifted])
    typer.echo(f"Wrote {output}.")


def _renderer() -> Callable[[Report], str]:
    try:
        render: Callable[[Report], str] = import_module("monitors.drift.page").render
    except ModuleNotFoundError as error:
        remedy = "pip install 'kaiten[validate]', or ask for --json"
        raise SetupError(f"{error.name} is not installed: {remedy}.") from None
    return render


def _made(model: str, since: datetime) -> Report:
    settings = load_settings()
    check_target(settings.profiles.target)
    archive = Archive(settings.profiles.target, settings.home)
    where = settings.profiles.target or str(settings.home / "profiles")
    reading = _Reading(archive, settings, since)
    named = _checked(model)
    try:
        versions = [reading.version(source) for source in archive.sources(named)]
    except SetupError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a store's library raises
        raise SetupError(
            f"{where} can not be read ({type(error).__name__}); look at profiles.target, and at "
            "the credentials that its store asks for."
        ) from None
    found = tuple(each for each in versions if each is not None)
    if not found:
        raise SetupError(
            f"There are no profiles of {model or 'any model'} since {since:%Y-%m-%d %H:%M} UTC in "
            f"{where}. A window is archived once it has ended (drift.window_rows, drift.window_s); "
            "ask for more time with --since, or look at profiles.target."
        )
    return Report(
        made_at=datetime.now(UTC),
        since=since,
        archive=where,
        min_effect=settings.drift.min_effect,
        false_discovery_rate=settings.drift.false_discovery_rate,
        unreadable=reading.unreadable,
        versions=found,
    )


class _Reading:
    """Reads the windows of versions, and the references that they are held against."""

    def __init__(self, archive: Archive, settings: Settings, since: datetime) -> None:
        self._archive = archive
        self._drift = settings.drift
        self._store = ModelStore(settings.signatures)
        self._since = since
        self.unreadable = 0

    def version(self, source: Source) -> VersionReport | None:
        """Return what is told of a version and arm; None where it has no windows."""
        reference = self._reference(source.model)
        return version_report(source, self._windows(source), reference, self._drift)

    def _windows(self, source: Source) -> Iterator[tuple[Kept, Profile]]:
        for kept in self._archive.kept(source, self._since):
            try:
                profile = Profile.read(self._archive.read(kept))
            except Exception:
                # Of another make, or damaged: the others tell enough.
                logger.exception("profile_unreadable", profile=str(kept.path))
                self.unreadable += 1
                continue
            yield kept, profile

    def _reference(self, model: str) -> Reference | str:
        try:
            folder = self._store.get(model).reference
        except ModelNotFound:
            # It may have served from another host.
            return "the version is not in this model store, which would have its reference"
        if folder is None:
            return NO_REFERENCE
        return Reference(folder.name, Profile.read((folder / REFERENCE_FILE).read_bytes()))


def _checked(model: str) -> str:
    name, colon, version = model.partition(":")
    if model and not (model_tags.is_name(name) and (not colon or model_tags.is_name(version))):
        raise typer.BadParameter(f"{model!r} names no model", param_hint="--model")
    return model
