"""The settings: one typed, frozen object, read once. The only reader of the environment.

Order of precedence: environment (``KAITEN_SECTION__KEY``), then, for secrets, the files in the
folder that ``KAITEN_SECRETS`` names, then kaiten.yaml, then the values here.
"""

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from kaiten import secret_files
from kaiten.cores import share
from kaiten.errors import Detail, InvalidSettings
from kaiten.sections import (
    ApiVersions,
    Auth,
    Batching,
    Drift,
    Environment,
    Gateway,
    Issuer,
    Limits,
    Logging,
    Profiles,
    Quality,
    Runners,
    Serving,
    Signatures,
    State,
    Tls,
    Validation,
    Versioning,
)

ROOT = Path(__file__).resolve().parent.parent
# A batch that takes longer is not slow: the longest takes a second or two on a slow CPU.
_HANG_TIMEOUT_S = 30.0
PREFIX = "KAITEN_"
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

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        for section, key in _SECRETS:
            if isinstance(values := found.get(section), dict) and key in values:
                variable = f"{PREFIX}{section}__{key}".upper()
                reason = (
                    f"may not stand in a file that is shipped; set {variable} instead, or give it "
                    f"as the file {variable.lower()} in the folder that KAITEN_SECRETS names"
                )
                raise InvalidSettings([Detail(f"{section}.{key}", reason)], str(settings_file()))
        return found


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
    serving: Serving = Serving()
    gateway: Gateway = Gateway()
    limits: Limits = Limits()
    api_versions: ApiVersions = ApiVersions()
    batching: Batching = Batching()
    runners: Runners = Runners()
    versioning: Versioning = Versioning()
    validation: Validation = Validation()
    signatures: Signatures = Signatures()
    state: State = State()
    auth: Auth = Auth()
    tls: Tls = Tls()
    profiles: Profiles = Profiles()
    drift: Drift = Drift()
    quality: Quality = Quality()
    logging: Logging = Logging()

    @property
    def batching_in_force(self) -> Batching:
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
        """Put the environment above the secrets' files, both above kaiten.yaml; read no more."""
        file = _SettingsFile(settings_cls, yaml_file=settings_file())
        return env_settings, _SecretFiles(settings_cls), file, init_settings


def load_settings() -> Settings:
    """Read and check the settings; InvalidSettings names each field and the remedy."""
    sources = [str(each) for each in (settings_file(), secrets_folder()) if each]
    source = " and ".join(sources) or "environment only"
    unknown = _unknown_variables()
    if unknown:
        raise InvalidSettings(unknown, source)
    try:
        # What is passed here ranks lowest: the default that depends on where the code lies.
        settings = Settings(environment=_default_environment())
    except ValidationError as error:
        raise InvalidSettings([*map(_detail, error.errors())], source) from None
    except SettingsError as error:
        # Its cause quotes the variable's value, which may be a secret.
        reason = f"{error}; a section is set key by key, as KAITEN_SECTION__KEY"
        raise InvalidSettings([Detail("environment", reason)], source) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        reason = f"is no YAML at line {line}: {error.problem}"
        raise InvalidSettings([Detail("file", reason)], source) from None
    except OSError as error:
        raise InvalidSettings([Detail("file", f"can not be read: {error}")], source) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = f"is no YAML mapping in UTF-8 ({type(error).__name__})"
        raise InvalidSettings([Detail("file", reason)], source) from None
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
) -> None:
    """Give the workers started from here what they can not work out themselves.

    That is KAITEN_HOME, since a worker that serves a bento stands in the bento's own folder, where
    no state belongs, the files that settings name likewise, each one's share of the cores, where
    the setting leaves it open, the CUDA devices to share out, where the device processes listen,
    and the versions that a model's name alone stands for, with the folders of their references: a
    promotion or a validation must not make two workers differ.
    ``holders`` is how many processes hold the models, as share takes it.
    """
    if devices:
        show_cuda_devices(devices)
        if settings.runners.device == "auto":
            # A worker that finds no device any more must fail, and not serve from a CPU.
            os.environ["KAITEN_RUNNERS__DEVICE"] = "cuda"
    os.environ["KAITEN_HOME"] = str(settings.home.resolve())
    _hand_down_paths(settings)
    os.environ["KAITEN_RUNNERS__THREADS"] = str(threads_of_each(settings, holders))
    if sockets is not None:
        os.environ["KAITEN_RUNNERS__SOCKETS"] = str(sockets)
    if models:
        os.environ["KAITEN_SERVING__MODELS"] = ",".join(models)
        references = {tag: folder.name if folder else "" for tag, folder in models.items()}
        os.environ["KAITEN_SERVING__REFERENCES"] = json.dumps(references)


def _hand_down_paths(settings: Settings) -> None:
    if folder := secrets_folder():
        os.environ["KAITEN_SECRETS"] = str(folder.absolute())
    for section, key in _PATHS:
        path: Path | None = getattr(getattr(settings, section), key)
        if path is not None:
            # Not resolved: the Python of an environment is a link, and what it links to has none.
            os.environ[f"{PREFIX}{section}__{key}".upper()] = str(path.absolute())
    target = settings.profiles.target
    if target is not None and "://" not in target:
        os.environ["KAITEN_PROFILES__TARGET"] = str(Path(target).absolute())
    if settings.auth.issuers:
        issuers = [*map(_found_anywhere, settings.auth.issuers)]
        os.environ["KAITEN_AUTH__ISSUERS"] = json.dumps(issuers)


def _found_anywhere(issuer: Issuer) -> dict[str, Any]:
    """Return an issuer as it is set, its file by an absolute path."""
    fields = issuer.model_dump(mode="json", exclude_none=True)
    return {k: str(Path(v).absolute()) if k.endswith("_file") else v for k, v in fields.items()}


def hand_down_pseudonym_key(key: str) -> None:
    """Give the workers started from here one key, so that their logs name a subject alike."""
    os.environ["KAITEN_LOGGING__PSEUDONYM_KEY"] = key


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
    known = [*Settings.model_fields, "config", "secrets"]
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


def _detail(error: ErrorDetails) -> Detail:
    field = ".".join(str(part) for part in error["loc"]) or "settings"
    return Detail(field, error["msg"].removeprefix("Value error, "))
