"""The settings: one typed, frozen object, read once. The only reader of the environment.

Order of precedence: environment (``KAITEN_SECTION__KEY``), then kaiten.yaml, then the values here.
"""

import json
import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from kaiten import tags
from kaiten.cores import share
from kaiten.errors import Detail, InvalidSettings

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "KAITEN_"
MIN_SECRET_BYTES = 32
MAX_INPUTS = 10_000
PLACEHOLDERS = ("change", "placeholder", "example", "secret", "password", "your-")

# What Kubernetes sets for a Service whose name begins with "kaiten".
_FROM_KUBERNETES = re.compile(r"(.+_)?(SERVICE_(HOST|PORT.*)|PORT(_\d.*)?)")

Environment = Literal["development", "production"]
Bump = Literal["major", "minor", "patch"]
Evidence = Literal["commit", "tests", "tag", "changelog"]


class Section(BaseModel):
    """A part of the settings; a part is all that a module is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Serving(Section):
    """What is served."""

    models: Annotated[tuple[str, ...], NoDecode] = ("support-intent:1.0.0",)
    request_timeout_s: float = Field(30, gt=0, le=600)

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Take ``a:1.0.0,b:2.0.0`` and a JSON list from the environment."""
        if not isinstance(value, str):
            return value
        return json.loads(value) if value.startswith("[") else value.replace(" ", "").split(",")

    @field_validator("models")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for tag in value:
            name, colon, version = tag.partition(":")
            pinned = tags.is_name(version) and version != "latest"
            if not tags.is_name(name) or (colon and not pinned):
                reason = "write name:version, or a name alone for the version in production"
                raise ValueError(f"{tag!r} names no version; {reason}")
        names = [tags.split(tag)[0] for tag in value]
        if not names or len(set(names)) < len(names):
            raise ValueError("name at least one model, and each name once")
        return value


class Gateway(Section):
    """What a request may bring."""

    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    max_inputs: int = Field(256, ge=1, le=MAX_INPUTS)
    max_text_chars: int = Field(20_000, ge=1)


class Batching(Section):
    """How requests share the device."""

    max_batch_tokens: int | None = Field(None, ge=1)
    max_batch_size: int | None = Field(None, ge=1)
    max_padding: float = Field(0.1, ge=0, lt=1)
    max_overtaken: int = Field(8, ge=0)
    max_queue_items: int = Field(512, ge=1)


class Runners(Section):
    """Where the models run."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engine: Literal["auto", "onnx", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    process: Literal["worker", "device"] = "worker"
    # Set by the process that starts the workers, for them.
    sockets: Path | None = None
    threads: int = Field(0, ge=0)


class Versioning(Section):
    """What a version has to be, by what has changed, and what a release has to bring."""

    changed_task: Bump = "major"
    changed_labels: Bump = "major"
    changed_input: Bump = "major"
    new_architecture: Bump = "minor"
    added_capability: Bump = "minor"
    retrained_weights: Bump = "patch"
    release_process: tuple[Evidence, ...] = ()


class Validation(Section):
    """What a version must reach to pass; durations in milliseconds, sizes in MiB."""

    min_accuracy: float = Field(0.7, ge=0, le=1)
    min_macro_f1: float = Field(0.6, ge=0, le=1)
    max_calibration_error: float = Field(0.25, ge=0, le=1)
    max_accuracy_loss: float = Field(0.02, ge=0, le=1)
    max_latency_p99_ms: float = Field(1000, gt=0)
    max_memory_mb: float = Field(8192, gt=0)
    max_size_mb: float = Field(8192, gt=0)
    min_rows: int = Field(30, ge=2)


class Auth(Section):
    """Who may ask."""

    secret: SecretStr | None = None
    secret_file: Path | None = None
    issuer: str = Field("kaiten", min_length=1)
    audience: str = Field("kaiten", min_length=1)
    leeway_s: int = Field(10, ge=0, le=300)

    @field_validator("secret")
    @classmethod
    def _is_no_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value


class Monitors(Section):
    """What is watched."""

    profile_window_s: float = Field(300, gt=0)
    max_pending_records: int = Field(10_000, ge=1)


class Logging(Section):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    requests_per_s: int = Field(10, ge=0)


class _SettingsFile(YamlConfigSettingsSource):
    """kaiten.yaml. It goes into every bento, so it may hold no secret."""

    def __call__(self) -> dict[str, Any]:
        found = super().__call__()
        if isinstance(auth := found.get("auth"), dict) and "secret" in auth:
            reason = "may not stand in a file that is shipped; set KAITEN_AUTH__SECRET instead"
            raise InvalidSettings([Detail("auth.secret", reason)], str(settings_file()))
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
    batching: Batching = Batching()
    runners: Runners = Runners()
    versioning: Versioning = Versioning()
    validation: Validation = Validation()
    auth: Auth = Auth()
    monitors: Monitors = Monitors()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _fits_together(self) -> "Settings":
        if self.gateway.max_inputs > self.batching.max_queue_items:
            raise ValueError(
                "gateway.max_inputs is over batching.max_queue_items, so the largest request could "
                "never be queued; lower the first or raise the second"
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
        """Put the environment above kaiten.yaml, and read nothing else."""
        file = _SettingsFile(settings_cls, yaml_file=settings_file())
        return env_settings, file, init_settings


def load_settings() -> Settings:
    """Read and check the settings; InvalidSettings names each field and the remedy."""
    file = settings_file()
    source = str(file) if file else "environment only"
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


def check_secret(secret: str) -> None:
    """Raise ValueError for a secret that is short, repetitive or a placeholder."""
    remedy = "make one with `openssl rand -hex 32`"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; {remedy}")
    if len(set(secret)) < MIN_SECRET_BYTES // 4 or any(
        word in secret.lower() for word in PLACEHOLDERS
    ):
        raise ValueError(f"looks like a placeholder; {remedy}")


def hand_down(
    settings: Settings,
    holders: object,
    devices: Sequence[str] = (),
    sockets: Path | None = None,
    models: Sequence[str] = (),
) -> None:
    """Give the workers started from here what they can not work out themselves.

    That is KAITEN_HOME, since a worker that serves a bento stands in the bento's own folder, where
    no state belongs, the secret's file likewise, each one's share of the cores, where the setting
    leaves it open, the CUDA devices to share out, where the device processes listen, and the
    versions that a model's name alone stands for: a promotion must not make two workers differ.
    ``holders`` is how many processes hold the models, as share takes it.
    """
    if devices:
        show_cuda_devices(devices)
        if settings.runners.device == "auto":
            # A worker that finds no device any more must fail, and not serve from a CPU.
            os.environ["KAITEN_RUNNERS__DEVICE"] = "cuda"
    os.environ["KAITEN_HOME"] = str(settings.home.resolve())
    if settings.auth.secret_file is not None:
        os.environ["KAITEN_AUTH__SECRET_FILE"] = str(settings.auth.secret_file.resolve())
    os.environ["KAITEN_RUNNERS__THREADS"] = str(threads_of_each(settings, holders))
    if sockets is not None:
        os.environ["KAITEN_RUNNERS__SOCKETS"] = str(sockets)
    if models:
        os.environ["KAITEN_SERVING__MODELS"] = ",".join(models)


def threads_of_each(settings: Settings, holders: object) -> int:
    """Return the CPU threads of each process that holds a model, of so many, as share takes it."""
    return settings.runners.threads or share(holders)


def environment_for(overrides: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with some variables replaced, for a process to start."""
    return {**os.environ, **overrides}


def _default_environment() -> Environment:
    """Return production inside a bento (bento.yaml lies above its src), else development."""
    return "production" if (ROOT.parent / "bento.yaml").is_file() else "development"


def _unknown_variables() -> list[Detail]:
    """Return variables with our prefix that name no setting: pydantic would pass over them."""
    known = [*Settings.model_fields, "config"]
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
