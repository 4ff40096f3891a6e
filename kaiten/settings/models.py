"""The sections of the settings, with their defaults and rules. kaiten.yaml describes each setting.

A module takes the sections that it needs, not all settings.
"""

import json
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from limits import parse_many
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from kaiten import model_tags
from kaiten.settings.secrets import (
    check_database_url,
    check_redis_url,
    check_secret,
    parse_secrets,
    pseudonym_key_bytes,
)

MAX_INPUTS = 10_000
# The largest integer that an HTTP structured field can hold.
MAX_LIMIT = 10**15 - 1

Environment = Literal["development", "production"]
# The scopes of a token; a model's name follows the colon.
SCOPE = rf"^((predict|feedback)(:{model_tags.NAME_PATTERN})?|ops|admin)$"
Scope = Annotated[str, Field(pattern=SCOPE)]
ModelName = Annotated[str, Field(pattern=rf"^{model_tags.NAME_PATTERN}$")]
Bump = Literal["major", "minor", "patch"]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip
# Open to every caller, to tokens with the scope ops, or closed: a 404.
Exposure = Literal["open", "token", "closed"]
Evidence = Literal["commit", "tests", "tag", "changelog"]


class SettingsSection(BaseModel):
    """The base of all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _set_values(section: SettingsSection) -> dict[str, object]:
    """Return the values that a section sets itself, with ``off`` for a limit that is off."""
    values = section.model_dump(exclude_unset=True)
    return {name: "off" if value is None else value for name, value in values.items()}


class ServingSettings(SettingsSection):
    """The models to serve, and the time limits of requests and of the shutdown."""

    models: Annotated[tuple[str, ...], NoDecode] = ("support-intent:1.0.0",)
    request_timeout_s: float = Field(30, gt=0, le=600)
    drain_s: float = Field(0, ge=0, le=600)
    # By model tag, the folder of the report that holds the baseline, or an empty string. Set by the
    # parent process for its workers.
    reports: dict[str, str] = Field(default_factory=dict)

    @field_validator("models", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        """Accept ``a:1.0.0,b:2.0.0`` and a JSON list from the environment."""
        if not isinstance(value, str):
            return value
        return json.loads(value) if value.startswith("[") else value.replace(" ", "").split(",")

    @field_validator("models")
    @classmethod
    def _check_models(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = [model_tags.ModelReference.parse(reference).name for reference in value]
        if not names or len(set(names)) < len(names):
            raise ValueError("must name at least one model, and each name once")
        return value


class GatewaySettings(SettingsSection):
    """The limits of one request, and the access to documents and metrics."""

    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    max_inputs: int = Field(256, ge=1, le=MAX_INPUTS)
    max_text_chars: int = Field(20_000, ge=1)
    docs: Exposure = "open"
    metrics: Exposure = "open"
    max_header_bytes: int = Field(16_384, ge=1024)
    max_headers: int = Field(100, ge=10)
    body_timeout_s: float = Field(10, gt=0, le=600)
    max_body_memory_bytes: int = Field(64 * 1024 * 1024, ge=2048)
    header_timeout_s: float = Field(10, gt=0, le=600)
    keep_alive_s: float = Field(75, gt=0, le=3600)

    @model_validator(mode="after")
    def _check_body_memory(self) -> Self:
        if self.max_body_memory_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                "max_body_memory_bytes is under twice max_body_bytes, so the largest body would "
                "always be rejected; raise the first or lower the second"
            )
        return self


class RateLimitPlan(SettingsSection):
    """The rate limits of each subject of a plan; None means unlimited."""

    requests: str | None = "3000000/minute"
    tokens: str | None = "1500000000/minute"
    concurrency: int | None = Field(10_000, ge=1)

    @field_validator("requests", "tokens", "concurrency", mode="before")
    @classmethod
    def _accept_off(cls, value: object) -> object:
        """Accept ``off``, which YAML reads as false, for no limit: a variable cannot be empty."""
        return None if value is False or value == "off" else value

    @field_validator("requests", "tokens")
    @classmethod
    def _check_limit(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            limits = parse_many(value)
        except ValueError:
            limits = []
        if len(limits) != 1 or not 1 <= limits[0].amount <= MAX_LIMIT:
            raise ValueError(
                f"{value!r} is not a limit; write one as 100/minute or 5000 per 2 hours"
            )
        return value


class RateLimitSettings(RateLimitPlan):
    """The rate limits of one subject, by default and by plan; None means unlimited."""

    plans: dict[str, RateLimitPlan] = Field({})
    # By subject, or ISSUER|* for all of an issuer, the name of the plan.
    subjects: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _check_subjects(self) -> Self:
        for subject, name in self.subjects.items():
            issuer, _, suffix = subject.partition("|")
            if not issuer or not suffix:
                raise ValueError(
                    f"subjects contains {subject!r}, which is not a subject; write it as "
                    "ISSUER|SUB, as api-key|SUBJECT, or as ISSUER|* for all subjects of an issuer"
                )
            if name not in self.plans:
                guess = next(iter(get_close_matches(name, self.plans, n=1)), None)
                remedy = f"did you mean {guess}?" if guess else "add it to plans"
                raise ValueError(
                    f"subjects gives {subject} the plan {name!r}, which plans does not have; "
                    f"{remedy}"
                )
        return self

    @field_serializer("plans")
    def _write_plans(self, plans: dict[str, RateLimitPlan]) -> dict[str, dict[str, object]]:
        """Leave out what a plan leaves out, which is not the default of a plan's class."""
        return {name: _set_values(plan) for name, plan in plans.items()}

    def plan(self, name: str) -> RateLimitPlan:
        """Return a plan with the default of each limit that it leaves out."""
        plan = self.plans[name]
        missing = RateLimitPlan.model_fields.keys() - plan.model_fields_set
        return plan.model_copy(update={limit: getattr(self, limit) for limit in missing})


class BatchingSettings(SettingsSection):
    """The limits of a batch and of the queue."""

    max_batch_tokens: int | None = Field(None, ge=1)
    max_batch_items: int | None = Field(None, ge=1)
    max_padding_ratio: float = Field(0.1, ge=0, lt=1)
    max_overtakes: int = Field(8, ge=0)
    max_queue_items: int = Field(512, ge=1)
    hang_timeout_s: float | None = Field(None, ge=1, le=3600)


class RunnerSettings(SettingsSection):
    """The device, engine and processes that compute."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engine: Literal["auto", "onnx", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    process: Literal["worker", "device"] = "worker"
    # The folder of the device processes' sockets. Set by the parent process for its workers.
    sockets: Path | None = None
    threads: int = Field(0, ge=0)


class VersioningSettings(SettingsSection):
    """The least bump for each kind of change, and the evidence that a release must carry."""

    changed_task: Bump = "major"
    changed_labels: Bump = "major"
    changed_input: Bump = "major"
    new_architecture: Bump = "minor"
    added_capability: Bump = "minor"
    retrained_weights: Bump = "patch"
    release_process: tuple[Evidence, ...] = ()


class ValidationThresholds(SettingsSection):
    """The thresholds that a version of a model must meet."""

    min_accuracy: float = Field(0.7, ge=0, le=1)
    min_macro_f1: float = Field(0.6, ge=0, le=1)
    max_calibration_error: float = Field(0.25, ge=0, le=1)
    max_accuracy_drop: float = Field(0.02, ge=0, le=1)
    max_latency_p99_ms: float = Field(1000, gt=0)
    max_memory_mib: float = Field(8192, gt=0)
    max_size_mib: float = Field(8192, gt=0)
    min_rows: int = Field(30, ge=2)


class ValidationSettings(ValidationThresholds):
    """The thresholds of the promotion gate, for all models and for single ones."""

    models: dict[ModelName, ValidationThresholds] = Field({})

    @field_serializer("models")
    def _write_models(
        self, models: dict[str, ValidationThresholds]
    ) -> dict[str, dict[str, object]]:
        """Leave out what a model leaves out, which is not the default of its class."""
        return {name: _set_values(thresholds) for name, thresholds in models.items()}

    def threshold(self, model: str, name: str) -> tuple[float, str]:
        """Return a threshold of a model, and the path of the setting that it comes from."""
        thresholds = self.models.get(model)
        if thresholds is not None and name in thresholds.model_fields_set:
            return getattr(thresholds, name), f"validation.models.{model}.{name}"
        return getattr(self, name), f"validation.{name}"


class SignatureSettings(SettingsSection):
    """The keys that sign and verify versions: elliptic curve keys in PEM."""

    private_key: Path | None = None
    password: SecretStr | None = None
    public_key: Path | None = None
    required: bool = False
    # An interpreter that has model-signing, which cannot be installed beside whylogs.
    python: Path | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if self.required and not self.public_key:
            raise ValueError(
                "required is set without public_key, so no version could be verified; set both"
            )
        if (self.private_key or self.public_key) and not self.python:
            raise ValueError("a key is set without python; name a Python that has model-signing")
        return self


class StateSettings(SettingsSection):
    """The stores that workers, on one host or several, share."""

    # redis://[:password@]host:port/number; rediss:// for TLS. Without it, workers share no limits.
    redis_url: SecretStr | None = None
    # postgresql+psycopg://user:<password>@host/name; without it, an SQLite file in KAITEN_HOME.
    database_url: SecretStr | None = None
    # A copy of the issued and revoked credentials that a worker knows, for the one that replaces
    # it. Set by the parent process for its workers.
    credentials_copy: Path | None = None

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_redis_url(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_database_url(value.get_secret_value())
        return value


class JwksSettings(SettingsSection):
    """The cache of the keys that an issuer publishes."""

    refresh_s: float = Field(300, ge=1)
    min_refresh_interval_s: float = Field(3, ge=1)
    unknown_key_retry_s: float = Field(10, ge=0)
    max_age_s: float = Field(86_400, ge=1)


def _split_path(claim: object) -> object:
    """Split a string at its dots, except a URL, which is the name of one claim."""
    if not isinstance(claim, str):
        return claim
    return [claim] if "://" in claim else claim.split(".")


class IssuerSettings(SettingsSection):
    """A foreign issuer of tokens, with the keys that verify them."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str | None = Field(None, pattern=r"^https?://[^\s@]+$")
    public_key_file: Path | None = None
    secret_file: Path | None = None
    algorithms: tuple[Algorithm, ...] = ()
    audience_claim: str = Field("aud", min_length=1)
    # Each is a path of names; a string is split at its dots, unless it is a URL.
    scope_claims: tuple[tuple[str, ...], ...] = ()
    scope_map: dict[str, tuple[Scope, ...]] | None = None

    @field_validator("scope_claims", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        """Accept one claim or a list of claims."""
        claims = [value] if isinstance(value, str) else value
        return [*map(_split_path, claims)] if isinstance(claims, (list, tuple)) else claims

    @field_validator("scope_claims")
    @classmethod
    def _check_paths(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not all(path and all(path) for path in value):
            raise ValueError("contains an empty claim; write a path as realm_access.roles")
        return value

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        # A subject is identified by issuer|sub, and "api-key" is the issuer of API keys.
        if "|" in value or value == "api-key":
            raise ValueError("must not contain | and must not be api-key; use another name")
        return value

    @model_validator(mode="after")
    def _check_key_source(self) -> Self:
        sources = (self.jwks_url, self.public_key_file, self.secret_file)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("needs exactly one of jwks_url, public_key_file and secret_file")
        return self


class AuthSettings(SettingsSection):
    """The credentials that are accepted."""

    secret: SecretStr | None = None
    secret_file: Path | None = None
    issuer: str = Field("kaiten", min_length=1)
    audience: str = Field("kaiten", min_length=1)
    leeway_s: int = Field(10, ge=0, le=300)
    issuers: tuple[IssuerSettings, ...] = ()
    jwks: JwksSettings = JwksSettings()
    credentials_poll_s: float = Field(1, ge=0.1, le=60)

    @field_validator("issuers")
    @classmethod
    def _check_distinct(cls, value: tuple[IssuerSettings, ...]) -> tuple[IssuerSettings, ...]:
        if len({issuer.issuer for issuer in value}) < len(value):
            raise ValueError(
                "contains two issuers with the same name, which tokens cannot distinguish; "
                "remove one"
            )
        return value

    @field_validator("secret")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_secrets(value.get_secret_value())
        return value


class TlsSettings(SettingsSection):
    """The files in PEM with which this server terminates TLS."""

    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None

    # If both are empty, as in the kaiten.yaml of a checkout, the server speaks plain HTTP. A
    # template whose variables are both unset looks the same, so it cannot be rejected here.
    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("certificate and private_key belong together; set both or neither")
        if self.client_ca and not self.certificate:
            raise ValueError(
                "client_ca is set without certificate, so no client certificate would be checked; "
                "set certificate and private_key as well"
            )
        return self


class ApiLifetimeSettings(SettingsSection):
    """The dates of one version of the API, from midnight UTC."""

    deprecated_at: date | None = None
    sunset_at: date | None = None
    link: HttpUrl | None = None

    @model_validator(mode="after")
    def _check_dates(self) -> Self:
        if self.deprecated_at and self.sunset_at and self.sunset_at < self.deprecated_at:
            raise ValueError("sunset_at is before deprecated_at; move one of them")
        if self.link and not (self.deprecated_at or self.sunset_at):
            raise ValueError(
                "link is set without deprecated_at or sunset_at, so it would never be sent; set one"
            )
        return self


class ApiVersionSettings(SettingsSection):
    """The dates of each version of the API."""

    v1: ApiLifetimeSettings = ApiLifetimeSettings()
    v2: ApiLifetimeSettings = ApiLifetimeSettings()

    def lifetime(self, version: str) -> ApiLifetimeSettings:
        """Return the dates of a version by its number, such as ``1``."""
        lifetime: ApiLifetimeSettings = getattr(self, f"v{version}")
        return lifetime


class ProfileSettings(SettingsSection):
    """The profiles of predictions."""

    enabled: bool = True
    # A folder or a URL that fsspec supports; None is the folder profiles in KAITEN_HOME.
    target: str | None = None
    by_subject: bool = False
    max_pending_events: int = Field(10_000, ge=1)

    @field_validator("target")
    @classmethod
    def _check_no_password(cls, value: str | None) -> str | None:
        # Up to the last @, as a password may contain the characters that end an address.
        user = (value or "").partition("://")[2].rpartition("@")[0]
        if ":" in user:
            raise ValueError(
                "contains a password, and this file goes into every bento; provide credentials as "
                "the store's own library expects them (for S3, AWS_ACCESS_KEY_ID and the like)"
            )
        return value


class DriftSettings(SettingsSection):
    """The windows and thresholds of drift detection."""

    window_rows: int = Field(1000, ge=10)
    window_s: float = Field(3600, ge=1)
    min_rows: int = Field(200, ge=10)
    false_discovery_rate: float = Field(0.05, gt=0, lt=1)
    min_effect: float = Field(0.1, gt=0, lt=1)
    clear_after_windows: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.min_rows > self.window_rows:
            raise ValueError(
                "min_rows is over window_rows, so no window could be tested; lower the first or "
                "raise the second"
            )
        return self


class FeedbackSettings(SettingsSection):
    """Labels for earlier predictions, and the accuracy measured by them."""

    enabled: bool = True
    window_rows: int = Field(1000, ge=10)
    retention_days: float = Field(30, gt=0)
    max_rows: int = Field(1_000_000, ge=1)
    max_pending_events: int = Field(10_000, ge=1)

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        if self.max_rows < self.window_rows:
            raise ValueError(
                "max_rows is under window_rows, so no window could ever be complete; raise the "
                "first or lower the second"
            )
        return self


class LoggingSettings(SettingsSection):
    """The level, files and contents of the logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    max_request_lines_per_s: int = Field(10, ge=0)
    folder: Path | None = None
    max_file_mib: int = Field(64, ge=1)
    backups: int = Field(4, ge=1)
    client_addresses: bool = False
    # The key of the subjects' pseudonyms; by default it is derived from the oldest signing secret.
    pseudonym_key: SecretStr | None = None

    @field_validator("pseudonym_key")
    @classmethod
    def _check_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
            pseudonym_key_bytes(value.get_secret_value())
        return value
