"""Diagnoses a start on this machine: what it would use, and what would prevent it."""

import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import psutil

from gateway.auth.factory import check_keys
from gateway.auth.key_sources import describe_key_sources
from gateway.auth.signing_secret import SigningSecret, configured_secret, signing_secret
from kaiten import __version__, tls
from kaiten.cpus import affinity_cores, available_cores, process_count, quota_cores
from kaiten.errors import Detail, InvalidSettings, SetupError
from kaiten.files import descriptor_limit
from kaiten.settings.environment import configuration_file, secrets_folder, settings_file
from kaiten.settings.handover import threads_per_holder
from kaiten.settings.loader import (
    Settings,
    check_bentoml_timeout,
    describe_sources,
    load_settings,
)
from kaiten.settings.secrets import (
    DEVELOPMENT_SECRET_FILE,
    DatedSecret,
    check_secret_sources,
    read_secret_files,
)
from kaiten.settings.settings_yaml import check_bentoml_configuration
from lifecycle.environment import check_opset, compare_environment, installed_versions
from lifecycle.resolution import resolve_model
from lifecycle.store import ModelStore
from monitors.drift.archive.target import check_target
from monitors.logging.rotating_files import check_folder
from runners.engines import PACKAGES, EngineChoice, choose_engine
from runners.engines.cuda import CudaDevice, details
from runners.engines.placement import holders, places
from runners.tasks import find_task

_SERVICE = "kaiten_service"
_PACKAGES = ("bentoml", "transformers", "tokenizers", "numpy")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware and its limits; ``quota`` is the cgroup's, in cores, None without one.

    ``descriptors`` is the number of files and connections that a process may open.
    """

    cpu: str | None
    cores: int
    affinity: int
    quota: float | None
    memory_bytes: int
    available_bytes: int
    descriptors: int
    cuda: list[CudaDevice]


@dataclass(frozen=True, slots=True)
class EffectiveSettings:
    """The settings that a start would use; ``threads`` are those of each process with a model.

    ``secret_files`` are the files in ``secrets_folder``, which is KAITEN_SECRETS. ``placement``
    lists the CUDA device of each worker, and is empty without one. ``process`` is runners.process.
    ``redis`` and ``database`` say where they are and whether they answer, None if not configured.
    ``issuers`` says where the keys of each issuer come from, and whether they are available.
    """

    settings: Path | None
    bentoml: str
    environment: str
    home: Path
    secret: str | None
    secrets_folder: Path | None
    secret_files: list[str]
    workers: object
    threads: int
    placement: list[str]
    process: str
    redis: str | None
    database: str | None
    issuers: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelDiagnosis:
    """The engine and the number of lanes of a model, None if it would not start.

    ``differences`` are warnings: packages that differ from those at registration, or no stage.
    """

    tag: str
    choice: EngineChoice | None = None
    lanes: int | None = None
    problems: list[Detail] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BentoDiagnosis:
    """The bento that would be started; ``revision`` is the commit that it was built from.

    ``packages`` is the number of packages that it pins, None if BentoML alone has built it.
    ``differences`` are warnings: packages and models that differ from those of the build.
    """

    tag: str
    folder: Path
    revision: str | None
    packages: int | None
    differences: list[str]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The whole diagnosis; the version of a package that is not installed is None.

    ``bento`` is None if no bento was named.
    """

    problems: list[Detail]
    machine: Machine
    engines: dict[str, str | None]
    versions: dict[str, str | None]
    in_force: EffectiveSettings | None
    models: list[ModelDiagnosis]
    bento: BentoDiagnosis | None = None


def diagnose() -> Diagnosis:
    """Check everything that a start depends on, also after a problem; writes nothing."""
    problems: list[Detail] = []
    settings = _attempt(problems, "settings", load_settings)
    effective, models = None, list[ModelDiagnosis]()
    if settings is not None:
        effective = _effective_settings(settings, problems)
    # BentoML opens the model store only with usable settings of its own.
    if settings is not None and effective is not None:
        models = [
            _diagnose_model(tag, settings, effective.threads) for tag in settings.serving.models
        ]
    for model in models:
        problems += model.problems
    # Several models may have the same problem.
    diagnosis = diagnose_machine([*dict.fromkeys(problems)])
    return replace(diagnosis, in_force=effective, models=models)


def diagnose_machine(problems: list[Detail]) -> Diagnosis:
    """Return a diagnosis with these problems, without settings and models."""
    return Diagnosis(
        problems=problems,
        machine=_machine(),
        engines=installed_versions(PACKAGES.values()),
        versions=_versions(),
        in_force=None,
        models=[],
    )


def _attempt(problems: list[Detail], field: str, check: Callable[[], ResultT]) -> ResultT | None:
    """Return the result of a check, or add its error to the problems and return None."""
    try:
        return check()
    except InvalidSettings as error:
        problems.extend(error.details)
    except SetupError as error:
        problems.append(Detail(field, error.message))
    return None


def check_settings() -> str:
    """Check the settings, BentoML's among them; return the files that they come from.

    No model is loaded, and no other server is asked.

    Raises:
        InvalidSettings: Names every problem.

    """
    problems: list[Detail] = []
    settings = _attempt(problems, "settings", load_settings)
    if settings is not None:
        _check_consistency(settings, problems)
    if problems:
        raise InvalidSettings(problems, describe_sources())
    return describe_sources()


def _check_consistency(
    settings: Settings, problems: list[Detail]
) -> tuple[str | None, object] | None:
    """Return where the secret comes from and the workers; None if BentoML's settings are invalid.

    The settings are checked against the files that they name and against BentoML's own.
    """
    secret = _attempt(problems, "auth.secret", partial(_secret, settings))
    _attempt(problems, "KAITEN_SECRETS", check_secret_sources)
    service = _attempt(problems, "BENTOML_CONFIG", bentoml_service)
    if service is None:
        return None
    workers, timeout_s, own_tls = service
    _attempt(problems, "tls", partial(tls.check_tls, settings.tls, own_tls))
    _attempt(problems, "logging.folder", partial(check_folder, settings.logging))
    _attempt(problems, "profiles.target", partial(check_target, settings.profiles.target))
    _attempt(problems, "serving", partial(check_bentoml_timeout, settings, timeout_s))
    return secret, workers


def _effective_settings(settings: Settings, problems: list[Detail]) -> EffectiveSettings | None:
    """Return the settings in force; None if BentoML's own settings cannot be used."""
    checked = _check_consistency(settings, problems)
    if checked is None:
        return None
    secret, workers = checked
    count = process_count(workers)
    placement = _attempt(problems, "runners.device", partial(places, settings.runners, count))
    holding = _attempt([], "runners.device", partial(holders, settings.runners, count))
    return EffectiveSettings(
        settings=settings_file(),
        bentoml=configuration_file(),
        environment=settings.environment,
        home=settings.home.resolve(),
        secret=secret,
        secrets_folder=secrets_folder(),
        secret_files=[*read_secret_files()],
        workers=workers,
        threads=threads_per_holder(settings, holding or 1),
        placement=placement or [],
        process=settings.runners.process,
        redis=_redis(settings),
        database=_attempt(problems, "state.database_url", partial(_database, settings)),
        issuers=describe_key_sources(settings.auth),
    )


def _redis(settings: Settings) -> str | None:
    """Describe the Redis. If it does not answer, a start continues."""
    if settings.state.redis_url is None:
        return None
    # The Redis client is loaded only if it is used.
    from gateway.rate_limit.redis_store import redis_address, redis_fault  # noqa: PLC0415

    url = settings.state.redis_url.get_secret_value()
    fault = redis_fault(url)
    state = f"does not answer ({fault}): each worker would count by itself" if fault else "answers"
    return f"{redis_address(url)} {state}"


def _database(settings: Settings) -> str | None:
    """Describe the database. If it does not answer, a start continues."""
    if not settings.feedback.enabled:
        return None
    # SQLAlchemy is loaded only if predictions are stored.
    from monitors.feedback.database import database_address, database_fault, database_url  # noqa: PLC0415

    url = database_url(settings.state, settings.home)
    fault = database_fault(url)
    state = f"cannot be used ({fault}): feedback would be refused" if fault else "can be used"
    return f"{database_address(url)} {state}"


def _secret(settings: Settings) -> str:
    """Return where the signing secret comes from, without creating one.

    Raises:
        InvalidSettings: The secret or the key of an issuer cannot be used.

    """
    check_keys(settings.auth)
    if configured_secret(settings) is None and settings.auth.issuers:
        issuers = ", ".join(trusted.issuer for trusted in settings.auth.issuers)
        return f"none: tokens come from {issuers}"
    if configured_secret(settings) is not None:
        source = "auth.secret_file" if settings.auth.secret_file else "auth.secret"
        return f"from {source}{_describe_older(signing_secret(settings))}"
    file = settings.home.resolve() / DEVELOPMENT_SECRET_FILE
    if not file.exists():
        return f"{file}, created on first use"
    signing_secret(settings)
    return str(file)


def _describe_older(secret: SigningSecret) -> str:
    """Return until when older secrets verify tokens, as an addition to their source."""
    ends = [_describe_end(older) for older in secret.older]
    return f", with {len(ends)} older: {', '.join(ends)}" if ends else ""


def _describe_end(secret: DatedSecret) -> str:
    if secret.ends_at == math.inf:
        return "valid without an end"
    end = f"{datetime.fromtimestamp(secret.ends_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return f"valid until {end}" if time.time() < secret.ends_at else f"ended at {end}"


def bentoml_service() -> tuple[object, float | None, dict[str, object] | None]:
    """Return the service's workers, timeout in seconds and TLS from BentoML's settings.

    Raises:
        InvalidSettings: The settings cannot be used.

    """
    file = configuration_file()
    check_bentoml_configuration()
    try:
        # Importing it reads BENTOML_CONFIG, on which no other command should fail.
        configuration = import_module("bentoml._internal.configuration")
        containers = import_module("bentoml._internal.configuration.containers")
        # As BentoML merges them: service.py, overridden by the file, overridden by the environment.
        services = containers.BentoMLConfiguration(
            override_defaults={"services": {_SERVICE: {"workers": 1, "traffic": {"timeout": 60}}}},
            override_config_file=file,
            override_config_values=configuration.get_bentoml_override_config_from_env(),
            override_config_json=configuration.get_bentoml_override_config_json_from_env(),
            use_version=2,
        ).to_dict()["services"]
        service = services[_SERVICE]
        import_module("server.bentoml_config").check_services(services)
        timeout_s, own_tls = service["traffic"]["timeout"], service["ssl"]
        timeout_s = None if timeout_s is None else float(timeout_s)
        own_tls = own_tls if own_tls.get("enabled") or own_tls.get("certfile") else None
        return service["workers"], timeout_s, own_tls
    except InvalidSettings:
        raise
    except Exception as error:  # noqa: BLE001  BentoML raises errors of many kinds
        # After a brace BentoML quotes whole sections, which may hold a key's password.
        message = " ".join(str(error).partition("{")[0].split())
        reason = (
            f"{file} cannot be used: {message} ({type(error).__name__}); see configuration.yaml"
        )
        raise InvalidSettings([Detail("BENTOML_CONFIG", reason)], "environment") from None


def _diagnose_model(model_tag: str, settings: Settings, threads: int) -> ModelDiagnosis:
    problems: list[Detail] = []
    differences: list[str] = []

    def choose() -> EngineChoice:
        store = ModelStore(settings.signatures)
        resolved = resolve_model(model_tag, store, in_production=settings.in_production)
        model = resolved.model
        if not resolved.promoted:
            differences.append("promoted to no stage: it serves only in development")
        find_task(model.card.task)
        choice = choose_engine(model.folder, settings.runners)
        installed = installed_versions(choice.packages)
        differences.extend(map(str, compare_environment(model.card, installed)))
        check_opset(model.card, choice.newest_opset)
        return choice

    choice = _attempt(problems, "serving.models", choose)
    lanes = choice.lanes(threads) if choice else None
    return ModelDiagnosis(model_tag, choice, lanes, problems, differences)


def _machine() -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        cpu=_cpu(),
        cores=available_cores(),
        affinity=affinity_cores(),
        quota=quota_cores(),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        descriptors=descriptor_limit(),
        cuda=details(),
    )


def _cpu() -> str | None:
    """Return the processor's model, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor()) or None


def _versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(),
        "kaiten": __version__,
        **installed_versions(_PACKAGES),
    }
