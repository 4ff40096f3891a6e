"""The settings: one typed, frozen object, read once. The only reader of the environment.

Order of precedence: environment (``KAITEN_SECTION__KEY``), then, for secrets, the files in the
folder that ``KAITEN_SECRETS`` names, then kaiten.yaml, then the values here. What would be lost in
silence is refused: a key that stands twice or where no setting does, and a value that YAML reads as
another. A worker reads the snapshot that its parent took (``hand_down``) in place of the files.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from kaiten.cpus import share
from kaiten.errors import Detail, InvalidSettings
from kaiten.settings import secret_files, strict_yaml
from kaiten.settings.handover import Roster, Snapshot, erase_variables, memory_file
from kaiten.settings.models import (
    ApiVersionSettings,
    AuthSettings,
    BatchingSettings,
    DriftSettings,
    Environment,
    FeedbackSettings,
    GatewaySettings,
    IssuerSettings,
    LoggingSettings,
    ProfileSettings,
    RateLimitSettings,
    RunnerSettings,
    ServingSettings,
    SignatureSettings,
    StateSettings,
    TlsSettings,
    ValidationSettings,
    VersioningSettings,
)
from kaiten.settings.paths import (
    UnknownSetting,
    accepts,
    annotation_at,
    find_by_name,
    section_of,
)

ROOT = Path(__file__).resolve().parents[2]
# A batch that takes longer is not slow: the longest takes a second or two on a slow CPU.
_HANG_TIMEOUT_S = 30.0
PREFIX = "KAITEN_"
# In KAITEN_HOME; made on first use, where development is given no secret.
DEVELOPMENT_SECRET_FILE = "development.secret"  # noqa: S105  the file's name
# Taken from the environment and from files of their own only.
_SECRETS = (
    ("auth", "secret"),
    ("signatures", "password"),
    ("state", "redis_url"),
    ("state", "database_url"),
    ("logging", "pseudonym_key"),
)
# Of files that lie where a worker, which may stand in another folder, must find them.
_PATHS = (
    ("auth", "secret_file"),
    ("signatures", "private_key"),
    ("signatures", "public_key"),
    ("signatures", "python"),
    ("tls", "certificate"),
    ("tls", "private_key"),
    ("tls", "client_ca"),
    ("logging", "folder"),
)

# The descriptor of the snapshot, for a worker.
_SNAPSHOT = f"{PREFIX}SNAPSHOT"

# What Kubernetes sets for a Service whose name begins with "kaiten".
_FROM_KUBERNETES = re.compile(r"(.+_)?(SERVICE_(HOST|PORT.*)|PORT(_\d.*)?)")


class _SecretFiles(InitSettingsSource):
    """The files in the folder that KAITEN_SECRETS names, each named like its variable."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        found: dict[str, dict[str, Any]] = {}
        for name, secret in read_secret_files().items():
            section, _, key = name.removeprefix(PREFIX.lower()).partition("__")
            found.setdefault(section, {})[key] = secret
        super().__init__(settings_cls, init_kwargs=found)


class _SettingsFile(YamlConfigSettingsSource):
    """kaiten.yaml. It goes into every bento, so it may hold no secret."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:  # noqa: ANN401  the library's own
        document = _read_yaml(file_path)
        if problems := [*_misplaced(document)]:
            raise InvalidSettings(problems, str(file_path))
        for section, key in _SECRETS:
            if (section, key) in {entry.path for entry in document.entries}:
                variable = f"{PREFIX}{section}__{key}".upper()
                reason = (
                    f"may not stand in a file that is shipped; set {variable} instead, or give it "
                    f"as the file {variable.lower()} in the folder that KAITEN_SECRETS names"
                )
                raise InvalidSettings([Detail(f"{section}.{key}", reason)], str(file_path))
        return _without_empty(document)


class Settings(BaseSettings):
    """All settings, checked together. Build it with load_settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        # A compose file passes on what is not set as an empty string.
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
    )

    environment: Environment = "development"
    home: Path = Path(".kaiten")
    serving: ServingSettings = ServingSettings()
    gateway: GatewaySettings = GatewaySettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    api_versions: ApiVersionSettings = ApiVersionSettings()
    batching: BatchingSettings = BatchingSettings()
    runners: RunnerSettings = RunnerSettings()
    versioning: VersioningSettings = VersioningSettings()
    validation: ValidationSettings = ValidationSettings()
    signatures: SignatureSettings = SignatureSettings()
    state: StateSettings = StateSettings()
    auth: AuthSettings = AuthSettings()
    tls: TlsSettings = TlsSettings()
    profiles: ProfileSettings = ProfileSettings()
    drift: DriftSettings = DriftSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    logging: LoggingSettings = LoggingSettings()

    @property
    def batching_in_force(self) -> BatchingSettings:
        """The batching, with the timeout that is left empty: no answer takes longer than that."""
        if self.batching.hang_timeout_s is not None:
            return self.batching
        timeout_s = max(_HANG_TIMEOUT_S, self.serving.request_timeout_s)
        return self.batching.model_copy(update={"hang_timeout_s": timeout_s})

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.gateway.max_inputs > self.batching.max_queue_items:
            raise ValueError(
                "gateway.max_inputs is over batching.max_queue_items, so the largest request could "
                "never be queued; lower the first or raise the second"
            )
        for each in self.auth.issuers:
            if each.issuer == self.auth.issuer:
                raise ValueError("auth.issuers names auth.issuer, this service's own; rename one")
            if self.in_production and (each.jwks_url or "").startswith("http:"):
                raise ValueError(
                    f"auth.issuers: the jwks_url of {each.issuer} is not https, and whoever is on "
                    "the way could put keys of their own there"
                )
        if self.auth.secret and self.auth.secret_file:
            raise ValueError("auth.secret and auth.secret_file are both set; keep one")
        return self

    @property
    def in_production(self) -> bool:
        """Whether only what is safe in public is allowed."""
        return self.environment == "production"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment above the secrets' files, both above kaiten.yaml; read no more.

        A snapshot stands in for both kinds of file.
        """
        if (snapshot := _snapshot()) is not None:
            return env_settings, InitSettingsSource(settings_cls, {**snapshot.settings})
        file = _SettingsFile(settings_cls, yaml_file=settings_file())
        return env_settings, _SecretFiles(settings_cls), file, init_settings


def load_settings() -> Settings:
    """Read and check the settings; InvalidSettings names each field and the remedy."""
    sources = [str(each) for each in (settings_file(), secrets_folder()) if each]
    source = " and ".join(sources) or "environment only"
    unknown = [*_unknown_variables(), *_misspelled_variables()]
    if unknown:
        raise InvalidSettings(unknown, source)
    try:
        # What is passed here ranks lowest: the default that depends on where the code lies.
        settings = Settings(environment=_default_environment())
    except ValidationError as error:
        lines = _lines_in_file()
        details = [_detail(each, lines) for each in error.errors()]
        raise InvalidSettings(details, source) from None
    except SettingsError as error:
        # Its cause quotes the variable's value, which may be a secret.
        reason = f"{error}; a section is set key by key, as KAITEN_SECTION__KEY"
        raise InvalidSettings([Detail("environment", reason)], source) from None
    except OSError as error:
        raise InvalidSettings([Detail("file", f"cannot be read: {error}")], source) from None
    return settings


def settings_file() -> Path | None:
    """Return the kaiten.yaml in force: KAITEN_CONFIG, else the one beside service.py, if any."""
    named = os.environ.get("KAITEN_CONFIG")
    if named is None:
        default = ROOT / "kaiten.yaml"
        return default if default.exists() else None
    if not Path(named).is_file():
        problem = Detail("KAITEN_CONFIG", f"names no file: {named}; give an absolute path")
        raise InvalidSettings([problem], "environment")
    return Path(named)


def check_bentoml_configuration() -> None:
    """Raise InvalidSettings for what BentoML would lose of its own configuration file."""
    if file := bentoml_configuration():
        try:
            _read_yaml(Path(file), "BENTOML_CONFIG")
        except OSError as error:
            problem = Detail("BENTOML_CONFIG", f"{file} cannot be read: {error.strerror}")
            raise InvalidSettings([problem], "environment") from None


def check_secret_sources() -> None:
    """Raise InvalidSettings for a secret that a variable and a file both give, and not alike."""
    problems = [
        Detail(
            name,
            f"is not what {name.upper()} says, and that variable would win; keep one of the two",
        )
        for name, secret in read_secret_files().items()
        if os.environ.get(name.upper()) not in (None, "", secret)
    ]
    if problems:
        raise InvalidSettings(problems, str(secrets_folder()))


def secrets_folder() -> Path | None:
    """Return the folder of secrets, KAITEN_SECRETS; None where none is named."""
    named = os.environ.get("KAITEN_SECRETS")
    return Path(named) if named else None


def read_secret_files() -> dict[str, str]:
    """Return the secrets in that folder by their files' names; InvalidSettings as secret_files."""
    folder = secrets_folder()
    names = [f"{PREFIX}{section}__{key}".lower() for section, key in _SECRETS]
    return secret_files.read(folder, names) if folder else {}


def bentoml_configuration() -> str | None:
    """Return the path of BentoML's own configuration file in force, if one is named."""
    return os.environ.get("BENTOML_CONFIG")


def configuration_file() -> str:
    """Return BentoML's configuration file: the one named, else ours."""
    named = bentoml_configuration()
    if named is not None and not Path(named).is_file():
        raise InvalidSettings([Detail("BENTOML_CONFIG", f"names no file: {named}")], "environment")
    return named or str(ROOT / "configuration.yaml")


def metrics_directory() -> str | None:
    """Return the directory that the workers' metrics share, where BentoML has set one."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR")


def cuda_visible_devices() -> str | None:
    """Return the CUDA devices that this process may use, as they were named to it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def show_cuda_devices(names: Sequence[str]) -> None:
    """Let this process, before it asks CUDA, and those that it starts use these devices only."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names)


def check_back_stop(settings: Settings, timeout_s: float | None) -> None:
    """Raise InvalidSettings if BentoML would end a request before we do, in a form of its own."""
    if timeout_s is not None and timeout_s <= settings.serving.request_timeout_s:
        reason = (
            f"is {settings.serving.request_timeout_s:g}, not under the {timeout_s:g} of "
            "services.kaiten_service.traffic.timeout; lower the first or raise the second"
        )
        raise InvalidSettings([Detail("serving.request_timeout_s", reason)], "BentoML's settings")


def hand_down(
    settings: Settings,
    holders: object,
    devices: Sequence[str] = (),
    sockets: Path | None = None,
    models: Mapping[str, Path | None] = MappingProxyType({}),
    workers: int = 1,
) -> bool:
    """Give the processes started from here a snapshot of the settings in place of the environment.

    So all of them, those that replace others too, have the same settings, secrets and key files.
    The snapshot adds what a worker cannot work out itself: where the home and other files lie,
    since a worker that serves a bento stands in the bento's own folder; each one's share of the
    cores, where the setting leaves it open; the CUDA devices to share out; where the device
    processes listen; and the versions that a model's name alone stands for, with the folders of
    their references: a promotion or a validation must not make two workers differ. ``holders`` is
    how many processes hold the models, as share takes it.

    Returns False where /proc still shows the secrets that this process was started with.
    """
    values = settings.model_dump(exclude_unset=True)

    def put(section: str, **fields: object) -> None:
        values.setdefault(section, {}).update(fields)

    if devices:
        show_cuda_devices(devices)
        if settings.runners.device == "auto":
            # A worker that finds no device any more must fail, and not serve from a CPU.
            put("runners", device="cuda")
    values["home"] = settings.home.resolve()
    _put_paths(settings, put)
    put("runners", threads=threads_of_each(settings, holders))
    if sockets is not None:
        put("runners", sockets=sockets)
    if models:
        references = {tag: folder.name if folder else "" for tag, folder in models.items()}
        put("serving", models=[*models], references=references)
    files = {str(path): path.read_bytes() for path in _key_files(settings)}
    snapshot = Snapshot(values, files, workers, memory_file())
    erased = forget_environment()
    os.environ[_SNAPSHOT] = str(snapshot.write())
    return erased


def _key_files(settings: Settings) -> list[Path]:
    """Return the files with the keys of tokens, where the workers look for them."""
    auth = settings.auth
    named = [auth.secret_file, *(each.secret_file or each.public_key_file for each in auth.issuers)]
    development = settings.home.resolve() / DEVELOPMENT_SECRET_FILE
    files = [development, *(file.absolute() for file in named if file is not None)]
    # What is missing is reported by what needs it.
    return [file for file in files if file.is_file()]


def _put_paths(settings: Settings, put: Callable[..., None]) -> None:
    for section, key in _PATHS:
        path: Path | None = getattr(getattr(settings, section), key)
        if path is not None:
            # Not resolved: the Python of an environment is a link, and what it links to has none.
            put(section, **{key: path.absolute()})
    target = settings.profiles.target
    if target is not None and "://" not in target:
        put("profiles", target=Path(target).absolute())
    if settings.auth.issuers:
        put("auth", issuers=[*map(_found_anywhere, settings.auth.issuers)])


def _found_anywhere(issuer: IssuerSettings) -> dict[str, Any]:
    """Return an issuer as it is set, its file by an absolute path."""
    fields = issuer.model_dump(mode="json", exclude_none=True)
    return {k: str(Path(v).absolute()) if k.endswith("_file") else v for k, v in fields.items()}


def with_pseudonym_key(settings: Settings, key: str) -> Settings:
    """Return the settings with one key for all workers, so that their logs name a subject alike."""
    logging = settings.logging.model_copy(update={"pseudonym_key": SecretStr(key)})
    return settings.model_copy(update={"logging": logging})


def with_credentials_copy(settings: Settings, file: Path) -> Settings:
    """Return the settings with the file that workers copy known credentials to."""
    state = settings.state.model_copy(update={"credentials_copy": file})
    return settings.model_copy(update={"state": state})


def forget_environment() -> bool:
    """Remove the settings from this process's environment, also as /proc shows it.

    Processes started from here then inherit none. Returns False where /proc still shows them.
    """
    known = {*Settings.model_fields, "config", "secrets"}
    prefix = PREFIX.lower()
    # In any case: pydantic takes kaiten_auth__secret for KAITEN_AUTH__SECRET.
    names = [
        name
        for name in os.environ
        if name.lower().startswith(prefix)
        and name.lower().removeprefix(prefix).split("__")[0] in known
    ]
    for name in names:
        del os.environ[name]
    return erase_variables(names)


def _snapshot() -> Snapshot | None:
    """Return the snapshot that this process was started with; None where it was given none."""
    named = os.environ.get(_SNAPSHOT)
    if named is None:
        return None
    try:
        return Snapshot.read(int(named))
    except (OSError, ValueError, TypeError):
        reason = (
            f"is {named!r}, which is no snapshot of a running server; only a server sets this "
            "variable, for its workers: remove it"
        )
        raise InvalidSettings([Detail(_SNAPSHOT, reason)], "environment") from None


def snapshot_descriptors() -> tuple[int, ...]:
    """Return the descriptors that a process needs to inherit in order to read the snapshot."""
    snapshot = _snapshot()
    return () if snapshot is None else (int(os.environ[_SNAPSHOT]), snapshot.roster)


def release_snapshot() -> None:
    """Close the snapshot once everything is read, so that nothing started from here inherits it."""
    if (named := os.environ.pop(_SNAPSHOT, None)) is not None:
        os.close(int(named))


def read_key_file(path: Path) -> bytes:
    """Return what a key file held when the server started; elsewhere, what it holds now."""
    snapshot = _snapshot()
    content = None if snapshot is None else snapshot.files.get(str(path.absolute()))
    return path.read_bytes() if content is None else content


def roster(worker: int) -> Roster:
    """Return the roster of the server's workers, for one of them, numbered from 0."""
    snapshot = _snapshot()
    if snapshot is None:
        return Roster(memory_file(), 1, worker)
    return Roster(snapshot.roster, snapshot.workers, worker)


def threads_of_each(settings: Settings, holders: object) -> int:
    """Return the CPU threads of each process that holds a model, of so many, as share takes it."""
    return settings.runners.threads or share(holders)


def environment_for(overrides: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables replaced, for a process to start."""
    return {**os.environ, **overrides}


def environment_for_build(home: Path) -> dict[str, str]:
    """Return this process's environment for BentoML's build: without settings, but for ``home``.

    The build imports the service, and what comes out must follow from the files alone.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    kept.pop("BENTOML_CONFIG", None)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": tools, "KAITEN_HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


def bento_models() -> Path | None:
    """Return the models that a bento has itself, as in an image; None elsewhere."""
    models = ROOT.parent / "models"
    return models if _in_bento() and models.is_dir() else None


def _in_bento() -> bool:
    """Return whether this is the code of a bento: bento.yaml lies above its src."""
    return (ROOT.parent / "bento.yaml").is_file()


def _default_environment() -> Environment:
    return "production" if _in_bento() else "development"


def _unknown_variables() -> list[Detail]:
    """Return variables with our prefix that name no setting: pydantic would pass over them."""
    known = [*Settings.model_fields, "config", "secrets", "snapshot"]
    names = [name.removeprefix(PREFIX) for name in os.environ if name.startswith(PREFIX)]
    sections = {name: name.lower().split("__")[0] for name in names}
    closest = partial(get_close_matches, possibilities=known, n=1)
    return [
        Detail(
            f"{PREFIX}{name}",
            "names no setting"
            + "".join(f"; did you mean {PREFIX}{guess.upper()}?" for guess in closest(section)),
        )
        for name, section in sections.items()
        if section not in known and not _FROM_KUBERNETES.fullmatch(name)
    ]


def _misspelled_variables() -> list[Detail]:
    """Return variables that name no setting, or one in a form that hides another."""
    problems: list[Detail] = []
    for name, value in os.environ.items():
        path = name.upper().removeprefix(PREFIX).lower().split("__")
        if not name.upper().startswith(PREFIX) or path[0] not in Settings.model_fields:
            continue
        if name != name.upper():
            # pydantic takes any case, and of two spellings one in silence.
            problems.append(Detail(name, f"is not in capitals; write {name.upper()}"))
            continue
        try:
            annotation = annotation_at(Settings, path)
        except UnknownSetting as error:
            names = [PREFIX + "__".join((*error.path[:-1], error.closest or "")).upper()]
            guess = f"; did you mean {names[0]}?" if error.closest else ""
            reason = f"is not permitted: {name} names no setting{guess}"
            problems.append(Detail(".".join(error.path), reason))
            continue
        if value and section_of(annotation):
            problems.append(Detail(name, "is a section; set it key by key, as KAITEN_SECTION__KEY"))
        problems += _keys_given_twice(name, value)
    return problems


def _keys_given_twice(name: str, value: str) -> list[Detail]:
    """Return the keys that stand twice in a variable's JSON, if it holds any."""
    if not value.lstrip().startswith(("[", "{")):
        return []
    try:
        json.loads(value, object_pairs_hook=strict_yaml.reject_duplicate_keys)
    except strict_yaml.DuplicateKey as error:
        return [Detail(name, f"gives the key {error.key} twice; keep one of the two")]
    except RecursionError:
        return [Detail(name, "is nested too deeply; mend its brackets")]
    except ValueError:
        # The field's own validation says what is wrong.
        pass
    return []


def _read_yaml(file: Path, name: str = "file") -> strict_yaml.YamlDocument:
    """Read a YAML file of an operator; InvalidSettings names lines, and OSError passes.

    ``name`` names a problem with the file as a whole.
    """
    try:
        return strict_yaml.load(file.read_bytes())
    except strict_yaml.InvalidYaml as error:
        problems = [
            Detail(each.key or name, f"line {each.line}: {each.reason}") for each in error.problems
        ]
        raise InvalidSettings(problems, str(file)) from None


def _misplaced(document: strict_yaml.YamlDocument) -> Iterator[Detail]:
    """Yield what stands where no setting does, and values that would be changed in silence."""
    unknown: set[tuple[str, ...]] = set()
    for entry in document.entries:
        if any(entry.path[: len(path)] == path for path in unknown):
            continue
        try:
            annotation = annotation_at(Settings, entry.path)
        except UnknownSetting as error:
            unknown.add(error.path)
            yield Detail(entry.key, f"line {entry.line}: names no setting{_place_meant(error)}")
            continue
        if reason := _unfit(entry, annotation):
            unknown.add(entry.path)
            yield Detail(entry.key, f"line {entry.line}: {reason}")


def _without_empty(document: strict_yaml.YamlDocument) -> dict[str, Any]:
    """Return the values without the settings that are left empty, which have their defaults.

    An empty variable means the same (env_ignore_empty). Taken for None, ``tokens:`` in a template
    whose variable is not set would switch a limit off; only ``off`` does that.
    """
    for entry in document.entries:
        *parents, name = entry.path
        if entry.is_empty and section_of(annotation_at(Settings, parents)):
            parent: Any = document.values
            for part in parents:
                parent = parent[int(part) if isinstance(parent, list) else part]
            del parent[name]
    return document.values


def _place_meant(error: UnknownSetting) -> str:
    if error.closest:
        return f"; did you mean {'.'.join((*error.path[:-1], error.closest))}?"
    place = find_by_name(Settings, error.path[-1])
    if place is None:
        return "; remove it" + (
            f", or use one of {', '.join(error.section.model_fields)}" if error.section else ""
        )
    if "." in place:
        return f"; write it as {place}, indented below {place.partition('.')[0]}:"
    return "; it is a section of its own: take its indentation away"


def _unfit(entry: strict_yaml.YamlEntry, annotation: Any) -> str | None:  # noqa: ANN401
    """Return why a value is not one of its setting, where pydantic would take it for another."""
    if section_of(annotation):
        if entry.is_empty:
            return "is an empty section; indent its keys below it, or remove it"
        return None if entry.is_mapping else "is a section; write key: value lines below it"
    if entry.boolean and not accepts(annotation, bool):
        # rate_limit takes off, which YAML 1.1 reads as false, for no limit.
        if entry.path[0] == "rate_limit" and entry.boolean in {"off", "false", "no"}:
            return None
        return "is a word that YAML reads as true or false; write a number, or text in quotes"
    if entry.is_number and accepts(annotation, date):
        return "is a number and no date; write it as 2026-12-31"
    return None


def _lines_in_file() -> Mapping[str, int]:
    """Return the line of each setting that is in force by the settings file."""
    file = settings_file()
    entries = _read_yaml(file).entries if file else ()
    variables = {name.upper() for name in os.environ}
    return {
        entry.key: entry.line
        for entry in entries
        if f"{PREFIX}{'__'.join(entry.path)}".upper() not in variables
    }


def _detail(error: ErrorDetails, lines: Mapping[str, int]) -> Detail:
    field = ".".join(str(part) for part in error["loc"]) or "settings"
    line = f"line {lines[field]}: " if field in lines else ""
    return Detail(field, line + error["msg"].removeprefix("Value error, "))
