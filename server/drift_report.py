"""Builds the drift report from archived windows and the baselines of their versions."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

import structlog

from kaiten.errors import ModelNotFound, SetupError
from kaiten.events import BASELINE_FILE
from kaiten.files import replace_file
from kaiten.installation import extra_remedy
from kaiten.settings.loader import Settings, load_settings
from lifecycle.store import ModelStore
from monitors.drift.archive.archive import Archive
from monitors.drift.archive.names import ArchivedProfile
from monitors.drift.archive.target import check_target
from monitors.drift.report import Baseline, DriftReport, VersionReport, version_report
from monitors.drift.spool import Source
from monitors.drift.state import NO_BASELINE
from monitors.drift.whylogs_profiles import Profile

logger = structlog.get_logger("kaiten.drift")


def load_page_renderer() -> Callable[[DriftReport], str]:
    """Return what renders a report as HTML.

    Raises:
        SetupError: A package for it is not installed.

    """
    try:
        render: Callable[[DriftReport], str] = import_module("monitors.drift.page").render
    except ModuleNotFoundError as error:
        missing = f"{error.name}, which draws the page, is not installed."
        raise SetupError(f"{missing} Pass --json, or add it. {extra_remedy('validate')}") from None
    return render


def write_page(path: Path, page: str) -> None:
    """Write the page, replacing the file as a whole."""
    try:
        replace_file(path, page)
    except OSError as error:
        message = f"--output: {path} cannot be written: {error.strerror}. Choose another path."
        raise SetupError(message) from None


def summary_lines(report: DriftReport) -> Iterator[str]:
    """Yield one line for each version and arm."""
    for version in report.versions:
        verdict = "drifted" if version.drifted else "no drift"
        if version.drifted is None:
            verdict = f"not judged: {version.reason}"
        name = f"{version.model}:{version.version} ({version.arm})"
        yield f"{name}, {version.rows} predictions in {len(version.windows)} windows: {verdict}"


def build_drift_report(model: str, since: datetime) -> DriftReport:
    """Compare all windows since then with their baselines.

    ``model`` is a name, a model tag, or empty for all models.

    Raises:
        SetupError: The archive cannot be read, or has no such windows.

    """
    settings = load_settings()
    target = settings.profiles.target
    check_target(target)
    archive = Archive(target, settings.home)
    place = target or str(settings.home / "profiles")
    reader = _WindowReader(archive, settings, since)
    try:
        reports = [reader.report(source) for source in archive.sources(model)]
    except SetupError:
        raise
    except Exception as error:  # noqa: BLE001  object stores raise errors of many kinds
        raise SetupError(
            f"{place} cannot be read ({type(error).__name__}). Check profiles.target and the "
            "credentials that its store requires."
        ) from None
    versions = tuple(report for report in reports if report is not None)
    if not versions:
        raise SetupError(
            f"There are no profiles of {model or 'any model'} since {since:%Y-%m-%d %H:%M} UTC in "
            f"{place}. A window is archived once it has ended (drift.window_rows, drift.window_s): "
            "pass an earlier --since, or check profiles.target."
        )
    return DriftReport(
        made_at=datetime.now(UTC),
        since=since,
        archive=place,
        min_effect=settings.drift.min_effect,
        false_discovery_rate=settings.drift.false_discovery_rate,
        unreadable=reader.unreadable,
        versions=versions,
    )


class _WindowReader:
    """Reads the archived windows of versions, and the baselines that they are compared with."""

    def __init__(self, archive: Archive, settings: Settings, since: datetime) -> None:
        self._archive = archive
        self._drift = settings.drift
        self._store = ModelStore(settings.signatures)
        self._since = since
        self.unreadable = 0

    def report(self, source: Source) -> VersionReport | None:
        """Return the report on a version and arm, None if it has no windows."""
        return version_report(
            source, self._windows(source), self._baseline(source.model), self._drift
        )

    def _windows(self, source: Source) -> Iterator[tuple[ArchivedProfile, Profile]]:
        for window in self._archive.profiles(source, self._since):
            try:
                profile = Profile.read(self._archive.read(window))
            except Exception:
                # Damaged, or of another format: the other windows still make a report.
                logger.exception("profile_unreadable", profile=str(window.path))
                self.unreadable += 1
                continue
            yield window, profile

    def _baseline(self, model_tag: str) -> Baseline | str:
        """Return the baseline of a version, or why there is none."""
        try:
            folder = self._store.get(model_tag).baseline
        except ModelNotFound:
            # It may have served from another host.
            return "the version is not in this model store, which would hold its baseline"
        if folder is None:
            return NO_BASELINE
        return Baseline(folder.name, Profile.read((folder / BASELINE_FILE).read_bytes()))
