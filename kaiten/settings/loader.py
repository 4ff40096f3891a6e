"""The settings: one typed, frozen object, loaded once.

Precedence: environment variables (``KAITEN_SECTION__KEY``), then the secret files in the folder of
``KAITEN_SECRETS``, then kaiten.yaml, then the defaults of the models. A worker reads the snapshot
that its parent process wrote instead of the files. A setting that would have no effect, such as a
misspelled key, is an error.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from kaiten.errors import Detail, InvalidSettings
from kaiten.settings.environment import (
    PREFIX,
    default_home,
    is_bento,
    secrets_folder,
    settings_file,
)
from kaiten.settings.models import (
    ApiVersionSettings,
    AuthSettings,
    BatchingSettings,
    DriftSettings,
    Environment,
    FeedbackSettings,
    GatewaySettings,
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
from kaiten.settings.secrets import read_secret_files, secret_file_in_force
from kaiten.settings.setting_paths import UnknownSetting, annotation_at
from kaiten.settings.settings_yaml import lines_in_force, read_settings_file, suggestion
from kaiten.settings.snapshot import inherited_snapshot
from kaiten.settings.variables import variable_in_force, variable_name, variable_problems

# A slow CPU computes the longest batch in a second or two.
_HANG_TIMEOUT_S = 30.0


class _SecretFiles(InitSettingsSource):
    """The files in the folder of KAITEN_SECRETS, each named like its variable."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        sections: dict[str, dict[str, Any]] = {}
        for name, secret in read_secret_files().items():
            section, _, key = name.removeprefix(PREFIX.lower()).partition("__")
            sections.setdefault(section, {})[key] = secret
        super().__init__(settings_cls, init_kwargs=sections)


class _SettingsFile(YamlConfigSettingsSource):
    """kaiten.yaml."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:  # noqa: ANN401  the library's own
        return read_settings_file(file_path, Settings)


class Settings(BaseSettings):
    """All settings, checked together. Load them with load_settings."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        # A compose file passes a variable that is not set as an empty string.
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
    )

    environment: Environment = "development"
    home: Path = Field(default_factory=default_home)
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
    def effective_batching(self) -> BatchingSettings:
        """The batching settings with a hang timeout, which no request outlives, if none is set."""
        if self.batching.hang_timeout_s is not None:
            return self.batching
        timeout_s = max(_HANG_TIMEOUT_S, self.serving.request_timeout_s)
        return self.batching.model_copy(update={"hang_timeout_s": timeout_s})

    @property
    def audit_folder(self) -> Path:
        """The folder of ``audit.log``, in which operators' actions are recorded."""
        return self.logging.folder or self.home

    @property
    def in_production(self) -> bool:
        """Whether options that are unsafe on a public address are rejected."""
        return self.environment == "production"

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.gateway.max_inputs > self.batching.max_queue_items:
            raise ValueError(
                "gateway.max_inputs is over batching.max_queue_items, so the largest request could "
                "never be queued; lower the first or raise the second"
            )
        for issuer in self.auth.issuers:
            if issuer.issuer == self.auth.issuer:
                raise ValueError("auth.issuers contains auth.issuer, this service; rename one")
            if self.in_production and (issuer.jwks_url or "").startswith("http:"):
                raise ValueError(
                    f"auth.issuers: the jwks_url of {issuer.issuer} is not https, so an attacker "
                    "on the network could replace the keys; use https"
                )
        if self.auth.secret and self.auth.secret_file:
            raise ValueError("auth.secret and auth.secret_file are both set; remove one")
        self._check_issuers_of_plans()
        return self

    def _check_issuers_of_plans(self) -> None:
        issuers = [self.auth.issuer, *(issuer.issuer for issuer in self.auth.issuers), "api-key"]
        for subject in self.rate_limit.subjects:
            name = subject.partition("|")[0]
            if name not in issuers:
                guess = next(iter(get_close_matches(name, issuers, n=1)), None)
                remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(issuers)}"
                raise ValueError(
                    f"rate_limit.subjects contains {subject!r}, and no credential is accepted from "
                    f"the issuer {name!r}; {remedy}"
                )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources by precedence; a snapshot replaces both kinds of file."""
        if (snapshot := inherited_snapshot()) is not None:
            return env_settings, InitSettingsSource(settings_cls, {**snapshot.settings})
        file = _SettingsFile(settings_cls, yaml_file=settings_file())
        return env_settings, _SecretFiles(settings_cls), file, init_settings


def load_settings() -> Settings:
    """Load and check the settings.

    Raises:
        InvalidSettings: Names each invalid setting, where it is set, and the remedy.

    """
    source = describe_sources()
    if problems := variable_problems(Settings):
        raise InvalidSettings(problems, source)
    try:
        # An argument has the lowest precedence: this default depends on where the code is.
        return Settings(environment="production" if is_bento() else "development")
    except ValidationError as error:
        lines = lines_in_force()
        details = [_detail(problem, lines) for problem in error.errors()]
        raise InvalidSettings(details, source) from None
    except SettingsError as error:
        # Its cause quotes the variable's value, which may be a secret.
        reason = f"{error}; set each key of a section, as KAITEN_SECTION__KEY"
        raise InvalidSettings([Detail("environment", reason)], source) from None
    except OSError as error:
        raise InvalidSettings([Detail("file", f"cannot be read: {error}")], source) from None


def describe_sources() -> str:
    """Return the file and the folder that the settings come from beside the environment.

    Raises:
        InvalidSettings: KAITEN_CONFIG names no file.

    """
    files = [str(path) for path in (settings_file(), secrets_folder()) if path]
    return " and ".join(files) or "environment only"


def check_bentoml_timeout(settings: Settings, timeout_s: float | None) -> None:
    """Check that BentoML's time limit for a request, if any, is over Kaiten's own.

    Raises:
        InvalidSettings: BentoML would end a request first, with an error in a form of its own.

    """
    limit_s = settings.serving.request_timeout_s
    if timeout_s is not None and timeout_s <= limit_s:
        reason = (
            f"is {limit_s:g}, not under the {timeout_s:g} of "
            "services.kaiten_service.traffic.timeout; lower the first or raise the second"
        )
        raise InvalidSettings([Detail("serving.request_timeout_s", reason)], "BentoML's settings")


def _detail(problem: ErrorDetails, lines: Mapping[str, int]) -> Detail:
    # A dictionary's invalid key has a part of its own after it.
    path = tuple(str(part) for part in problem["loc"] if part != "[key]")
    field = ".".join(path) or "settings"
    reason = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        reason = _unknown_reason(path) or reason
    if variable := variable_in_force(path):
        return Detail(field, f"in {variable}: {reason}")
    if file := secret_file_in_force(variable_name(path)):
        return Detail(field, f"in {file}: {reason}")
    line = f"line {lines[field]}: " if field in lines else ""
    return Detail(field, line + reason)


def _unknown_reason(path: Sequence[str]) -> str | None:
    """Return why a key within a variable's JSON is rejected, None if the key is known."""
    try:
        annotation_at(Settings, path)
    except UnknownSetting as error:
        return f"is not a setting{suggestion(error, Settings)}"
    return None
