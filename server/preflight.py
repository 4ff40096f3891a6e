"""Runs once before the workers start: checks everything that may stop them, and hands it down."""

import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import structlog
from bentoml._internal.configuration.containers import BentoMLContainer

from gateway.auth.credential_stores import FILE as CREDENTIALS_FILE
from gateway.auth.factory import Tokens, guard_credentials, guard_secrets
from gateway.auth.factory import build as build_tokens
from gateway.auth.signing_secret import SigningSecret, find_pseudonyms, secret_in_force
from kaiten import tls
from kaiten.cpus import process_count
from kaiten.errors import DatabaseUnavailable, Detail, InvalidSettings
from kaiten.files import ENOUGH_DESCRIPTORS, is_disk_full, raise_descriptor_limit
from kaiten.pseudonyms import Pseudonyms, key_setting
from kaiten.settings.environment import bentoml_configuration
from kaiten.settings.handover import hand_down_settings, with_credentials_copy, with_pseudonym_key
from kaiten.settings.loader import Settings, check_bentoml_timeout
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE, check_secret_sources
from kaiten.settings.settings_yaml import check_bentoml_configuration
from lifecycle.store import ModelStore, StoredModel
from monitors.drift.archive.target import check_target
from monitors.drift.state import NO_BASELINE
from monitors.logging import writer
from monitors.logging.rotating_files import check_folder
from monitors.logging.setup import configure_logging
from runners.device_process.processes import DeviceProcesses, make_socket_folder
from runners.engines import choose_engine
from runners.engines.placement import devices, holders
from runners.tasks import find_task
from server.bentoml_config import SERVICE_NAME, check_services
from server.models import find_baselines, find_models

logger = structlog.get_logger("kaiten.service")
# Written at every level.
start_logger = structlog.get_logger("kaiten.start")
# The minimum on average in most languages.
_CHARS_PER_TOKEN = 3
# Files and folders of the state, by which an unused one is recognised.
_STATE = (CREDENTIALS_FILE, DEVELOPMENT_SECRET_FILE, "quality.sqlite", "profiles")


def prepare(settings: Settings, file: Path | None) -> None:
    """Check settings, secrets, models and engines, and hand them down to the workers.

    ``file`` is the settings file that was read, for the log.

    Raises:
        SetupError: The server cannot start.

    """
    # The workers' supervisor logs too, and must not wait for the console either.
    writer.detach_console()
    configure_logging(settings.logging)
    check_bentoml_configuration()
    services = BentoMLContainer.config.services.get()
    check_services(services)
    check_secret_sources()
    bentoml_settings = services[SERVICE_NAME]
    workers = process_count(bentoml_settings["workers"])
    _log_configuration(settings, file, workers)
    _raise_descriptor_limit()
    secret = secret_in_force(settings)
    tokens = _check(settings, secret, bentoml_settings)
    _prepare_database(settings)
    settings, pseudonym_secret = _with_pseudonym_key(settings, secret)
    models = find_models(settings)
    for model in models:
        _check_model(model, settings)
    _hand_down(settings, workers, find_baselines(models, settings))
    guard_secrets(tokens, pseudonym_secret)


def _hand_down(settings: Settings, workers: int, baselines: Mapping[str, Path | None]) -> None:
    """Hand the settings down to the workers, and start the device processes, if any."""
    folder = make_socket_folder()
    sockets = folder if settings.runners.process == "device" else None
    credentials_copy = folder / CREDENTIALS_FILE
    settings = with_credentials_copy(settings, credentials_copy)
    erased = hand_down_settings(
        settings,
        holders(settings.runners, workers),
        devices(settings.runners),
        sockets,
        baselines,
        workers,
    )
    guard_credentials(settings, credentials_copy)
    if not erased:
        logger.warning("environment_not_erased", process=os.getpid(), remedy="KAITEN_SECRETS")
    if sockets is not None:
        metrics = Path(BentoMLContainer.prometheus_multiproc_dir.get()).resolve()
        folders = sockets, ModelStore().folder, metrics
        DeviceProcesses(settings.runners, workers, *folders).start()


def _with_pseudonym_key(
    settings: Settings, secret: SigningSecret | None
) -> tuple[Settings, SigningSecret | None]:
    """Return the settings with the key of the pseudonyms, which all workers of this start share.

    Returns the secret too if the key is derived from it.
    """
    if settings.logging.pseudonym_key is not None:
        return settings, None
    pseudonyms = find_pseudonyms(settings, secret)
    if pseudonyms is None:
        logger.warning("pseudonyms_change_with_each_start", remedy="logging.pseudonym_key")
        pseudonyms = Pseudonyms(secrets.token_bytes())
    return with_pseudonym_key(settings, key_setting(pseudonyms.key)), secret


def _log_configuration(settings: Settings, file: Path | None, workers: int) -> None:
    start_logger.info(
        "configuration_in_force",
        settings=str(file or "none: the values in kaiten/settings/models.py"),
        bentoml=bentoml_configuration() or "none named: the values in server/bentoml_config.py",
        environment=settings.environment,
        workers=workers,
        process=settings.runners.process,
    )


def _raise_descriptor_limit() -> None:
    limit = raise_descriptor_limit()
    if limit < ENOUGH_DESCRIPTORS:
        remedy = f"raise it to {ENOUGH_DESCRIPTORS} or more: ulimit -n, LimitNOFILE= of systemd"
        logger.warning("few_descriptors", limit=limit, remedy=remedy)


def _check(
    settings: Settings, secret: SigningSecret | None, bentoml_settings: Mapping[str, Any]
) -> Tokens:
    check_bentoml_timeout(settings, bentoml_settings["traffic"]["timeout"])
    tokens = build_tokens(settings, secret)
    tls.check_tls(settings.tls, bentoml_settings["ssl"])
    _check_home(settings.home)
    _check_state_elsewhere(settings)
    check_folder(settings.logging)
    check_target(settings.profiles.target)
    return tokens


def _check_state_elsewhere(settings: Settings) -> None:
    """Warn of unused state in the working directory, where earlier versions kept it.

    Raises:
        InvalidSettings: There is such state in production: its revocations would not be in force.

    """
    state = Path(".kaiten").absolute()
    unused = "home" not in settings.model_fields_set and state != settings.home
    names = [name for name in _STATE if (state / name).exists()]
    if unused and names:
        remedy = f"{', '.join(names)} in it are not in force: set KAITEN_HOME={state}, or move it"
        if settings.in_production:
            reason = f"is not set, and {state} is not used; {remedy}"
            raise InvalidSettings([Detail("KAITEN_HOME", reason)], "production")
        logger.warning("state_elsewhere", unused=str(state), home=str(settings.home), remedy=remedy)


def _check_home(home: Path) -> None:
    """Check that state can be stored. A full disk stops no start: predictions need no room on it.

    Raises:
        InvalidSettings: The folder is not writable.

    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        if is_disk_full(error):
            remedy = "make room: labels, drift and new credentials are lost until then"
            logger.warning("home_full", home=str(home.absolute()), remedy=remedy)
            return
        reason = (
            f"{home.absolute()} cannot be written: {error.strerror}; name another folder, or give "
            f"it to user {os.getuid()}"
        )
        raise InvalidSettings([Detail("KAITEN_HOME", reason)], "the folder of the state") from None


def _check_model(model: StoredModel, settings: Settings) -> None:
    find_task(model.card.task)
    if settings.profiles.enabled and model.baseline is None:
        logger.warning("drift_not_watched", model=model.card.tag, reason=NO_BASELINE)
    if settings.gateway.max_text_chars < _CHARS_PER_TOKEN * model.card.max_length:
        logger.warning(
            "long_texts_refused",
            model=model.card.tag,
            max_length_tokens=model.card.max_length,
            max_text_chars=settings.gateway.max_text_chars,
            remedy="raise gateway.max_text_chars, or register the model with --max-length",
        )
    choice = choose_engine(model.folder, settings.runners)
    start_logger.info("engine_chosen", model=model.card.tag, **asdict(choice))


def _prepare_database(settings: Settings) -> None:
    """Create the tables before any worker uses them.

    An unavailable database stops no start: the first worker that reaches it creates them.
    """
    if not settings.feedback.enabled:
        return
    from monitors.feedback.database import Database, database_url  # noqa: PLC0415

    database = Database(database_url(settings.state, settings.home))
    try:
        database.migrate()
    except DatabaseUnavailable:
        logger.warning("started_without_database", remedy="state.database_url")
    finally:
        database.close()
