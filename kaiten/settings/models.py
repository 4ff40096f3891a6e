"""The sections of the settings; a section is all of them that a module is given."""

import json
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from limits import parse_many
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode

from kaiten import model_tags

MIN_SECRET_BYTES = 32
MAX_INPUTS = 10_000
# The largest integer that a structured header can hold.
MAX_LIMIT = 10**15 - 1
PLACEHOLDERS = ("change", "placeholder", "example", "secret", "password", "your-")

Environment = Literal["development", "production"]
# What a token may allow; a model's name follows the colon.
SCOPE = rf"^((predict|feedback)(:{model_tags.NAME_PATTERN})?|ops|admin)$"
Scope = Annotated[str, Field(pattern=SCOPE)]
Bump = Literal["major", "minor", "patch"]
Algorithm = Literal[
    "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512",
    "ES256", "ES384", "ES512", "EdDSA",
]  # fmt: skip
# To anybody, to a token with the scope ops, or to nobody: a 404.
Exposure = Literal["open", "token", "closed"]
Evidence = Literal["commit", "tests", "tag", "changelog"]


class SettingsSection(BaseModel):
    """A part of the settings; a part is all that a module is given."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServingSettings(SettingsSection):
    """What is served."""

    models: Annotated[tuple[str, ...], NoDecode] = ("support-intent:1.0.0",)
    request_timeout_s: float = Field(30, gt=0, le=600)
    drain_s: float = Field(0, ge=0, le=600)
    # By name:version, the folder of the report whose reference counts, or nothing. Set by the
    # process that starts the workers, for them.
    references: dict[str, str] = Field(default_factory=dict)

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
            pinned = model_tags.is_name(version) and version != "latest"
            if not model_tags.is_name(name) or (colon and not pinned):
                reason = "write name:version, or a name alone for the version in production"
                raise ValueError(f"{tag!r} names no version; {reason}")
        names = [model_tags.split(tag)[0] for tag in value]
        if not names or len(set(names)) < len(names):
            raise ValueError("name at least one model, and each name once")
        return value


class GatewaySettings(SettingsSection):
    """What a request may bring, and what is shown to whom."""

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
    def _room_for_a_body(self) -> Self:
        if self.max_body_memory_bytes < 2 * self.max_body_bytes:
            raise ValueError(
                "max_body_memory_bytes is under twice max_body_bytes, so that the largest body "
                "would always be refused; raise it, or lower max_body_bytes"
            )
        return self


class RateLimitSettings(SettingsSection):
    """What one subject may ask for; None is no limit."""

    requests: str | None = "3000000/minute"
    tokens: str | None = "1500000000/minute"
    concurrency: int | None = Field(10_000, ge=1)

    @field_validator("*", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        """Take ``off``, which YAML reads as false, for no limit: a variable can not be empty."""
        return None if value is False or value == "off" else value

    @field_validator("requests", "tokens")
    @classmethod
    def _is_one_limit(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            found = parse_many(value)
        except ValueError:
            found = []
        if len(found) != 1 or not 1 <= found[0].amount <= MAX_LIMIT:
            raise ValueError(f"{value!r} is no limit; write one as 100/minute or 5000 per 2 hours")
        return value


class BatchingSettings(SettingsSection):
    """How requests share the device."""

    max_batch_tokens: int | None = Field(None, ge=1)
    max_batch_items: int | None = Field(None, ge=1)
    max_padding_ratio: float = Field(0.1, ge=0, lt=1)
    max_overtakes: int = Field(8, ge=0)
    max_queue_items: int = Field(512, ge=1)
    hang_timeout_s: float | None = Field(None, ge=1, le=3600)


class RunnerSettings(SettingsSection):
    """Where the models run."""

    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    engine: Literal["auto", "onnx", "torch"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    process: Literal["worker", "device"] = "worker"
    # Set by the process that starts the workers, for them.
    sockets: Path | None = None
    threads: int = Field(0, ge=0)


class VersioningSettings(SettingsSection):
    """What a version has to be, by what has changed, and what a release has to bring."""

    changed_task: Bump = "major"
    changed_labels: Bump = "major"
    changed_input: Bump = "major"
    new_architecture: Bump = "minor"
    added_capability: Bump = "minor"
    retrained_weights: Bump = "patch"
    release_process: tuple[Evidence, ...] = ()


class ValidationSettings(SettingsSection):
    """What a version must reach to pass; durations in milliseconds, sizes in MiB."""

    min_accuracy: float = Field(0.7, ge=0, le=1)
    min_macro_f1: float = Field(0.6, ge=0, le=1)
    max_calibration_error: float = Field(0.25, ge=0, le=1)
    max_accuracy_drop: float = Field(0.02, ge=0, le=1)
    max_latency_p99_ms: float = Field(1000, gt=0)
    max_memory_mib: float = Field(8192, gt=0)
    max_size_mib: float = Field(8192, gt=0)
    min_rows: int = Field(30, ge=2)


class SignatureSettings(SettingsSection):
    """Who signs a version, and whose signature is asked for: elliptic curve keys in PEM."""

    private_key: Path | None = None
    password: SecretStr | None = None
    public_key: Path | None = None
    required: bool = False
    # One that has model-signing: it can not be installed beside whylogs.
    python: Path | None = None

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "SignatureSettings":
        if self.required and not self.public_key:
            raise ValueError("required is set without public_key, so nothing could be verified")
        if (self.private_key or self.public_key) and not self.python:
            raise ValueError("a key is set without python; name one that has model-signing")
        return self


class StateSettings(SettingsSection):
    """Where the workers, of one host or of several, keep what they share."""

    # redis://[:password@]host:port/number; rediss:// for TLS. Without one, each worker has its own.
    redis_url: SecretStr | None = None
    # postgresql+psycopg://user:<password>@host/name; without one, an SQLite file in KAITEN_HOME.
    database_url: SecretStr | None = None
    # What any worker has learnt of issued and revoked credentials, for one that replaces it. Set by
    # the process that starts the workers, for them.
    credentials_copy: Path | None = None

    @field_validator("redis_url")
    @classmethod
    def _is_an_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_redis_url(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _is_a_database(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_database_url(value.get_secret_value())
        return value


class JwksSettings(SettingsSection):
    """How keys that an issuer publishes are kept; durations in seconds."""

    refresh_s: float = Field(300, ge=1)
    min_refresh_interval_s: float = Field(3, ge=1)
    unknown_key_retry_s: float = Field(10, ge=0)
    max_age_s: float = Field(86_400, ge=1)


def _path(claim: object) -> object:
    """Return the path that a string stands for: a URL, which names one claim, keeps its dots."""
    if not isinstance(claim, str):
        return claim
    return [claim] if "://" in claim else claim.split(".")


class IssuerSettings(SettingsSection):
    """Somebody else who makes tokens, and where the keys are that they are verified with."""

    issuer: str = Field(min_length=1)
    audience: str = Field(min_length=1)
    jwks_url: str | None = Field(None, pattern=r"^https?://[^\s@]+$")
    public_key_file: Path | None = None
    secret_file: Path | None = None
    algorithms: tuple[Algorithm, ...] = ()
    audience_claim: str = Field("aud", min_length=1)
    # Each a path of names; a string is split at its dots, unless it is a URL.
    scope_claims: tuple[tuple[str, ...], ...] = ()
    scope_map: dict[str, tuple[Scope, ...]] | None = None

    @field_validator("scope_claims", mode="before")
    @classmethod
    def _paths(cls, value: object) -> object:
        """Take one claim as well as a list of them."""
        claims = [value] if isinstance(value, str) else value
        return [*map(_path, claims)] if isinstance(claims, (list, tuple)) else claims

    @field_validator("scope_claims")
    @classmethod
    def _are_named(cls, value: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not all(path and all(path) for path in value):
            raise ValueError("names no claim; write a path as realm_access.roles")
        return value

    @field_validator("issuer")
    @classmethod
    def _is_told_apart(cls, value: str) -> str:
        # What a subject is known by is issuer|subject, and API keys have an issuer of their own.
        if "|" in value or value == "api-key":
            raise ValueError("may hold no | and not be api-key")
        return value

    @model_validator(mode="after")
    def _has_one_source(self) -> "IssuerSettings":
        sources = (self.jwks_url, self.public_key_file, self.secret_file)
        if sum(each is not None for each in sources) != 1:
            raise ValueError("give one of jwks_url, public_key_file and secret_file")
        return self


class AuthSettings(SettingsSection):
    """Who may ask."""

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
    def _differ(cls, value: tuple[IssuerSettings, ...]) -> tuple[IssuerSettings, ...]:
        if len({each.issuer for each in value}) < len(value):
            raise ValueError("two have one name; a token tells its issuer by that alone")
        return value

    @field_validator("secret")
    @classmethod
    def _is_no_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value


class TlsSettings(SettingsSection):
    """What this server itself speaks TLS with: files in PEM."""

    certificate: Path | None = None
    private_key: Path | None = None
    client_ca: Path | None = None

    # With both left empty, as the kaiten.yaml of a checkout has them, the server speaks plain HTTP.
    # A template whose variables are both unset looks the same, so it cannot be refused here.
    @model_validator(mode="after")
    def _belongs_together(self) -> "TlsSettings":
        if bool(self.certificate) != bool(self.private_key):
            raise ValueError("certificate and private_key are set together, or neither is")
        if self.client_ca and not self.certificate:
            raise ValueError("client_ca is set without certificate, so no client would be asked")
        return self


class ApiLifetimeSettings(SettingsSection):
    """When a version of the API is out of date, and when it ends; both from midnight, UTC."""

    deprecated_at: date | None = None
    sunset_at: date | None = None
    link: HttpUrl | None = None

    @model_validator(mode="after")
    def _is_in_order(self) -> "ApiLifetimeSettings":
        if self.deprecated_at and self.sunset_at and self.sunset_at < self.deprecated_at:
            raise ValueError("sunset_at is before deprecated_at; move one of them")
        if self.link and not (self.deprecated_at or self.sunset_at):
            raise ValueError("link is set without deprecated_at or sunset_at, so nobody is sent it")
        return self


class ApiVersionSettings(SettingsSection):
    """What becomes of each version of the API."""

    v1: ApiLifetimeSettings = ApiLifetimeSettings()
    v2: ApiLifetimeSettings = ApiLifetimeSettings()

    def of(self, version: str) -> ApiLifetimeSettings:
        """Return what is set for a version, by its number."""
        lifetime: ApiLifetimeSettings = getattr(self, f"v{version}")
        return lifetime


class ProfileSettings(SettingsSection):
    """How answers are profiled."""

    enabled: bool = True
    # A folder or an address that fsspec knows; None is the folder profiles in KAITEN_HOME.
    target: str | None = None
    by_subject: bool = False
    max_pending_events: int = Field(10_000, ge=1)

    @field_validator("target")
    @classmethod
    def _holds_no_password(cls, value: str | None) -> str | None:
        # Up to the last @, as a password may hold what ends an address.
        who = (value or "").partition("://")[2].rpartition("@")[0]
        if ":" in who:
            raise ValueError(
                "holds a password, and this file goes into every bento; give credentials as the "
                "store's own library looks for them (for S3, AWS_ACCESS_KEY_ID and the like)"
            )
        return value


class DriftSettings(SettingsSection):
    """When answers count as other than those that the version was validated on."""

    window_rows: int = Field(1000, ge=10)
    window_s: float = Field(3600, ge=1)
    min_rows: int = Field(200, ge=10)
    false_discovery_rate: float = Field(0.05, gt=0, lt=1)
    min_effect: float = Field(0.1, gt=0, lt=1)
    clear_after_windows: int = Field(2, ge=1)

    @model_validator(mode="after")
    def _can_be_judged(self) -> "DriftSettings":
        if self.min_rows > self.window_rows:
            raise ValueError(
                "min_rows is over window_rows, so no window could be judged; lower the first or "
                "raise the second"
            )
        return self


class FeedbackSettings(SettingsSection):
    """How answers are held against the labels that come in later."""

    enabled: bool = True
    window_rows: int = Field(1000, ge=10)
    retention_days: float = Field(30, gt=0)
    max_rows: int = Field(1_000_000, ge=1)
    max_pending_events: int = Field(10_000, ge=1)

    @model_validator(mode="after")
    def _holds_a_window(self) -> "FeedbackSettings":
        if self.max_rows < self.window_rows:
            raise ValueError(
                "max_rows is under window_rows, so no window would ever be whole; raise the first "
                "or lower the second"
            )
        return self


class LoggingSettings(SettingsSection):
    """What is logged."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    max_request_lines_per_s: int = Field(10, ge=0)
    folder: Path | None = None
    max_file_mib: int = Field(64, ge=1)
    backups: int = Field(4, ge=1)
    client_addresses: bool = False
    # Of the pseudonyms that stand for subjects; where none is set, the signing secret gives one.
    pseudonym_key: SecretStr | None = None

    @field_validator("pseudonym_key")
    @classmethod
    def _is_no_placeholder(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            check_secret(value.get_secret_value())
        return value


def check_redis_url(url: str) -> None:
    """Raise ValueError, which does not quote it, for what is no address of a Redis."""
    try:
        parts = urlsplit(url)
        # A password with a slash in it ends the address early, and is then no port.
        usable = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port != 0)
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"redis", "rediss", "unix"}:
        raise ValueError(
            "is no address of a Redis; write it as redis://:PASSWORD@HOST:6379/0, with what is "
            "special in the password percent-encoded"
        )


def check_database_url(url: str) -> None:
    """Raise ValueError, which does not quote it, for what is no address of a PostgreSQL."""
    try:
        parts = urlsplit(url)
        # As above: what a slash in a password leaves is no port. Where digits come before it, or
        # there is an @ in it, some parsers take a part of it for the host or the name, and tell it.
        usable = bool(parts.hostname and parts.path.strip("/") and parts.port != 0)
        usable = usable and url.count("@") == parts.netloc.count("@") <= 1
    except ValueError:
        usable = False
    if not usable or parts.scheme not in {"postgresql", "postgresql+psycopg", "postgres"}:
        raise ValueError(
            "is no address of a PostgreSQL; write it as "
            "postgresql+psycopg://USER:<PASSWORD>@HOST:5432/NAME, with what is special in the "
            "password percent-encoded, or leave it out for an SQLite file"
        )


def check_secret(secret: str) -> None:
    """Raise ValueError for a secret that is short, repetitive or a placeholder."""
    remedy = "make one with `openssl rand -hex 32`"
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"is shorter than {MIN_SECRET_BYTES} bytes; {remedy}")
    if len(set(secret)) < MIN_SECRET_BYTES // 4 or any(
        word in secret.lower() for word in PLACEHOLDERS
    ):
        raise ValueError(f"looks like a placeholder; {remedy}")
