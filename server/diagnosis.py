"""What a start on this machine would find, choose, and stop at."""

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import psutil

from gateway.auth.factory import check_keys
from gateway.auth.key_sources import describe_key_sources
from gateway.auth.signing_secret import configured_secret, signing_secret
from kaiten import tls
from kaiten.cpus import affinity, cores, count_of, quota
from kaiten.errors import Detail, InvalidSettings, SetupError
from kaiten.files import descriptor_limit
from kaiten.settings.environment import configuration_file, secrets_folder, settings_file
from kaiten.settings.handover import threads_per_holder
from kaiten.settings.loader import Settings, check_bentoml_timeout, load_settings
from kaiten.settings.secrets import DEVELOPMENT_SECRET_FILE, check_secret_sources, read_secret_files
from kaiten.settings.settings_yaml import check_bentoml_configuration
from lifecycle.environment import check, check_opset, installed_versions
from lifecycle.resolution import resolve
from lifecycle.store import ModelStore
from monitors.drift.archive.target import check_target
from monitors.logging.rotating_files import check_folder
from runners.engines import PACKAGES, EngineChoice, choose_engine
from runners.engines.cuda import CudaDevice, details
from runners.engines.placement import holders, places
from runners.tasks import find_task

_SERVICE = "kaiten_service"
_PACKAGES = ("kaiten", "bentoml", "transformers", "tokenizers", "numpy")
FoundT = TypeVar("FoundT")


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to compute on; ``quota`` is the cgroup's, in cores, None without one.

    ``descriptors`` are the files and connections that a process may open.
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
class InForce:
    """What a start would go by; ``threads`` are those of each process that holds a model.

    ``secret_files`` are those found in ``secrets_folder``, which is KAITEN_SECRETS; ``placement``
    names the CUDA device of each worker in turn, and is empty where there is none; ``process`` is
    runners.process; ``redis`` where it is and whether it answers, None without; ``database``
    likewise, where predictions and labels are kept; ``issuers`` where the keys of each come from,
    and whether they can be had now.
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
class Served:
    """What a model would be computed by, in so many lanes; None where it would not start.

    ``differences`` are what to mind: another environment than it was registered in, or no stage.
    """

    tag: str
    choice: EngineChoice | None = None
    lanes: int | None = None
    problems: list[Detail] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found; a version is None for what is not installed."""

    problems: list[Detail]
    machine: Machine
    engines: dict[str, str | None]
    versions: dict[str, str | None]
    in_force: InForce | None
    models: list[Served]


def examine() -> Report:
    """Look at everything that a start depends on, past the first problem; nothing is written."""
    problems: list[Detail] = []
    settings = _attempt(problems, "settings", load_settings)
    in_force, models = None, list[Served]()
    if settings is not None:
        in_force = _in_force(settings, problems)
    # BentoML opens no model store while its own settings are not usable.
    if settings is not None and in_force is not None:
        models = [_served(tag, settings, in_force.threads) for tag in settings.serving.models]
    for model in models:
        problems += model.problems
    return Report(
        # Several models may lack the same device.
        problems=[*dict.fromkeys(problems)],
        machine=_machine(),
        engines=installed_versions(PACKAGES.values()),
        versions=_versions(),
        in_force=in_force,
        models=models,
    )


def _attempt(problems: list[Detail], where: str, check: Callable[[], FoundT]) -> FoundT | None:
    """Return what a check gives; what it raises is kept, so that the checks after it still run."""
    try:
        return check()
    except InvalidSettings as error:
        problems.extend(error.details)
    except SetupError as error:
        problems.append(Detail(where, error.message))
    return None


def _in_force(settings: Settings, problems: list[Detail]) -> InForce | None:
    """Return what a start would go by; None where BentoML's own settings are not usable."""
    secret = _attempt(problems, "auth.secret", partial(_secret, settings))
    _attempt(problems, "KAITEN_SECRETS", check_secret_sources)
    service = _attempt(problems, "BENTOML_CONFIG", _bentoml_service)
    if service is None:
        return None
    workers, timeout_s, own_tls = service
    _attempt(problems, "tls", partial(tls.check, settings.tls, own_tls))
    _attempt(problems, "logging.folder", partial(check_folder, settings.logging))
    _attempt(problems, "profiles.target", partial(check_target, settings.profiles.target))
    _attempt(problems, "serving", partial(check_bentoml_timeout, settings, timeout_s))
    count = count_of(workers)
    placement = _attempt(problems, "runners.device", partial(places, settings.runners, count))
    holding = _attempt([], "runners.device", partial(holders, settings.runners, count))
    return InForce(
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
    """Return what a worker would find. No problem where it does not answer: a start goes on."""
    if settings.state.redis_url is None:
        return None
    # Who shares no Redis loads none.
    from gateway.rate_limit.redis_store import redis_address, redis_fault  # noqa: PLC0415

    url = settings.state.redis_url.get_secret_value()
    fault = redis_fault(url)
    told = f"does not answer ({fault}): each worker would count by itself" if fault else "answers"
    return f"{redis_address(url)} {told}"


def _database(settings: Settings) -> str | None:
    """Return what a start would find; as above, it goes on where nothing answers."""
    if not settings.feedback.enabled:
        return None
    # Who keeps no predictions loads no database.
    from monitors.feedback.database import database_address, database_fault, database_url  # noqa: PLC0415

    url = database_url(settings.state, settings.home)
    fault = database_fault(url)
    told = f"can not be used ({fault}): feedback would be refused" if fault else "can be used"
    return f"{database_address(url)} {told}"


def _secret(settings: Settings) -> str:
    """Return where the secret comes from; InvalidSettings where it does not hold. Makes none."""
    # The keys of others are read as well.
    check_keys(settings.auth)
    if configured_secret(settings) is None and settings.auth.issuers:
        return f"none: tokens come from {', '.join(each.issuer for each in settings.auth.issuers)}"
    if configured_secret(settings) is not None:
        return f"from {'auth.secret_file' if settings.auth.secret_file else 'auth.secret'}"
    file = settings.home.resolve() / DEVELOPMENT_SECRET_FILE
    if not file.exists():
        return f"{file}, made on first use"
    signing_secret(settings)
    return str(file)


def _bentoml_service() -> tuple[object, float | None, dict[str, object] | None]:
    """Return what BentoML's settings give our service: workers, timeout in seconds, TLS if any.

    InvalidSettings where they are not usable.
    """
    file = configuration_file()
    check_bentoml_configuration()
    try:
        # Importing it reads BENTOML_CONFIG: no other command should fail with that file.
        configuration = import_module("bentoml._internal.configuration")
        containers = import_module("bentoml._internal.configuration.containers")
        # As BentoML does it: what service.py says, over it the file, and the environment over both.
        services = containers.BentoMLConfiguration(
            override_defaults={"services": {_SERVICE: {"workers": 1, "traffic": {"timeout": 60}}}},
            override_config_file=file,
            override_config_values=configuration.get_bentoml_override_config_from_env(),
            override_config_json=configuration.get_bentoml_override_config_json_from_env(),
            use_version=2,
        ).to_dict()["services"]
        service = services[_SERVICE]
        import_module("server.bentoml_config").check(services, _SERVICE)
        timeout_s, own_tls = service["traffic"]["timeout"], service["ssl"]
        timeout_s = None if timeout_s is None else float(timeout_s)
        own_tls = own_tls if own_tls.get("enabled") or own_tls.get("certfile") else None
        return service["workers"], timeout_s, own_tls
    except InvalidSettings:
        raise
    except Exception as error:  # noqa: BLE001  whatever BentoML, and we, trip over in a file
        # BentoML quotes whole sections after a brace, and they may hold a key's password.
        told = " ".join(str(error).partition("{")[0].split())
        reason = f"{file} is not usable: {told} ({type(error).__name__}); see configuration.yaml"
        raise InvalidSettings([Detail("BENTOML_CONFIG", reason)], "environment") from None


def _served(tag: str, settings: Settings, threads: int) -> Served:
    problems: list[Detail] = []
    differences: list[str] = []

    def choose() -> EngineChoice:
        store = ModelStore(settings.signatures)
        resolved = resolve(tag, store, in_production=settings.in_production)
        model = resolved.model
        if not resolved.promoted:
            differences.append("promoted to no stage: it serves in development only")
        find_task(model.card.task)
        found = choose_engine(model.folder, settings.runners)
        installed = installed_versions(found.packages)
        differences.extend(map(str, check(model.card, installed)))
        check_opset(model.card, found.newest_opset)
        return found

    choice = _attempt(problems, "serving.models", choose)
    lanes = choice.lanes(threads) if choice else None
    return Served(tag, choice, lanes, problems, differences)


def _machine() -> Machine:
    memory = psutil.virtual_memory()
    return Machine(
        cpu=_cpu(),
        cores=cores(),
        affinity=affinity(),
        quota=quota(),
        memory_bytes=memory.total,
        available_bytes=memory.available,
        descriptors=descriptor_limit(),
        cuda=details(),
    )


def _cpu(information: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the processor's model, where the system tells it."""
    try:
        lines = information.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor()) or None


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **installed_versions(_PACKAGES)}
