"""Settings of a cache: arguments, or `CACHEBUS_*` environment variables."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Self, TypedDict, Unpack

from pydantic import Field, PlainValidator, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from cachebus.base.agreement import PREFIX, check_credentials, check_kafka, check_times
from cachebus.base.choices import OnOutage, SaslMechanism, Transport
from cachebus.base.ids import check_part
from cachebus.base.log import Logs
from cachebus.base.providers import (
    AsyncCredentialProvider,
    CredentialProvider,
    TokenProvider,
    credentials_of,
    tokens_of,
)
from cachebus.base.urls import CLUSTER_SCHEMES, SCHEMES, as_redis, brokers, safe
from cachebus.errors import ConfigError
from cachebus.policy import Policy, PolicyOptions, closest, unknown
from cachebus.values.secret_keys import KeyProvider, encryption_of

CLUSTER_SHARDS = 64
SHARDS_MAX = 1024
RESEND_MAX_BYTES = 8 * 1024 * 1024
_TOPIC = re.compile(r"[A-Za-z0-9_.\-]{1,249}").fullmatch
_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,64}").fullmatch

Seconds = Annotated[float, Field(allow_inf_nan=False)]
PatienceSeconds = Annotated[float, Field(allow_inf_nan=False, ge=0.01, le=3600)]
"""Less than a network takes would fail every call; more is none."""
Credentials = Annotated[CredentialProvider | AsyncCredentialProvider | str | None, PlainValidator(credentials_of)]
Encryption = Annotated[KeyProvider | SecretStr | None, PlainValidator(encryption_of)]
Tokens = Annotated[TokenProvider | str | None, PlainValidator(tokens_of)]


class SettingsOptions(TypedDict, total=False):
    """What `Settings` is made of, by name: the fields are told there."""

    url: str | SecretStr
    username: str | SecretStr | None
    password: str | SecretStr | None
    credential_provider: CredentialProvider | AsyncCredentialProvider | str | None
    sentinel_credential_provider: CredentialProvider | AsyncCredentialProvider | str | None
    reauth_interval_s: float | None
    ssl_ca_certs: str | None
    ssl_check_hostname: bool
    namespace: str
    node_name: str | None
    logs: Logs
    default_tenant: str | None
    enabled: bool
    use_memory_cache: bool
    bus: Transport
    kafka_bootstrap_servers: str | None
    kafka_topic: str
    kafka_partitions: int
    kafka_events_key: str | SecretStr | None
    kafka_commands_topic: str
    kafka_commands_key: str | SecretStr | None
    kafka_ssl: bool
    kafka_ssl_ca_certs: str | None
    kafka_ssl_certfile: str | None
    kafka_ssl_keyfile: str | None
    kafka_ssl_check_hostname: bool
    kafka_sasl_mechanism: SaslMechanism | None
    kafka_username: str | SecretStr | None
    kafka_password: str | SecretStr | None
    kafka_sasl_oauth_token_provider: TokenProvider | str | None
    shards: int
    staleness_bound_s: float
    probe_interval_s: float
    gap_grace_s: float
    l2_timeout_s: float
    connect_timeout_s: float
    close_timeout_s: float
    start_degraded: bool
    on_outage: OnOutage
    guard_max_s: float
    db_timeout_s: float | None
    pending_max: int
    resend_max_bytes: int
    l1_max_entries: int
    l1_max_bytes: int
    lease_ms: int
    max_invalidated_scopes: int
    log_max_len: int
    log_max_bytes: int
    keep_without_l2: bool
    encryption: KeyProvider | str | SecretStr | None
    encryption_required: bool
    warm_up: bool
    warm_up_keys: int
    warm_up_bytes: int
    warm_up_s: float
    policies: Mapping[str, Policy | PolicyOptions]


class Settings(BaseSettings):
    """How a cache is set up, by arguments or from the environment. Times are in seconds, sizes in bytes.

    Raises `ConfigError` with one clause a problem, which names the field and its variable, never a secret.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True
    )

    url: SecretStr = Field(
        SecretStr("redis://localhost:6379/0"),
        description="redis://, unix://, redis+sentinel://, redis+cluster:// (rediss: with TLS; valkey and valkeys mean "
        "the same), or memory://NAME",
    )
    username: SecretStr | None = Field(None, description="overrides the URL's")
    password: SecretStr | None = Field(None, description="overrides the URL's")
    credential_provider: Credentials = Field(
        None,
        repr=False,
        description="asked for user and password at each login, in place of theirs: an object like redis-py's "
        "CredentialProvider, or module:name of one",
    )
    sentinel_credential_provider: Credentials = Field(None, repr=False, description="the same for Sentinels")
    reauth_interval_s: Seconds | None = Field(
        None,
        ge=0.1,
        le=86_400,
        description="how often connections that stay open log in anew with what a provider gives",
    )
    ssl_ca_certs: str | None = Field(None, description="a file of certificate authorities, for rediss://")
    ssl_check_hostname: bool = Field(True, description="whether the server's certificate must name its host")
    namespace: str = Field("cachebus", description="prefix of all keys in L2; caches that share it share everything")
    node_name: str | None = Field(None, max_length=64, description="a readable part of the node's id")
    logs: Logs = Field(
        "logging", description='where log lines go: to the standard library\'s logger "cachebus", or to loguru'
    )
    default_tenant: str | None = Field(
        None, description="whose data it is where neither the call nor a Context names a tenant: for services without"
    )
    enabled: bool = Field(
        True,
        description="0 turns everything into loading from the source, and tells no other node of this one's writes",
    )
    use_memory_cache: bool = Field(True, description="0 turns L1 off")
    bus: Transport = Field("redis", description="what carries events; the same on all nodes")
    kafka_bootstrap_servers: str | None = Field(None, description="host:port of some brokers, separated by commas")
    kafka_topic: str = Field("cachebus.events", description="what carries events; namespaces may share it")
    kafka_partitions: int = Field(4, ge=1, le=4096, description="how many the topic gets where it has to be made")
    kafka_events_key: SecretStr | None = Field(
        None, description="signs events; a node that has it takes no other. Several by commas: the first signs"
    )
    kafka_commands_topic: str = Field("cachebus.commands", description="what carries commands; namespaces may share it")
    kafka_commands_key: SecretStr | None = Field(
        None, description="signs commands; a worker that has it takes no other. Several by commas: the first signs"
    )
    kafka_ssl: bool = Field(False, description="whether the brokers are spoken to over TLS")
    kafka_ssl_ca_certs: str | None = Field(None, description="a file of certificate authorities; else the system's")
    kafka_ssl_certfile: str | None = Field(None, description="a file with this client's certificate")
    kafka_ssl_keyfile: str | None = Field(None, description="a file with its key, where that lies apart")
    kafka_ssl_check_hostname: bool = Field(True, description="whether a broker's certificate must name its host")
    kafka_sasl_mechanism: SaslMechanism | None = Field(None, description="how this client proves who it is")
    kafka_username: SecretStr | None = Field(None, description="for SASL")
    kafka_password: SecretStr | None = Field(None, description="for SASL")
    kafka_sasl_oauth_token_provider: Tokens = Field(
        None,
        repr=False,
        description="asked for the token of OAUTHBEARER: an object like aiokafka's AbstractTokenProvider, or "
        "module:name of one",
    )
    shards: int = Field(
        1, ge=1, description="slices of the key space, 64 on a Cluster; all nodes of a namespace must agree"
    )
    staleness_bound_s: Seconds = Field(2.0, gt=0.01, le=3600, description="D: no read is staler than this")
    probe_interval_s: Seconds = Field(0.5, ge=0.001, description="how often the lease is renewed")
    gap_grace_s: Seconds = Field(0.05, ge=0, description="how long a missing event may be late before the log is read")
    l2_timeout_s: PatienceSeconds = Field(
        1.0, description="L2 is given up when an answer is due and no byte moves for so long"
    )
    connect_timeout_s: PatienceSeconds = Field(5.0, description="start-up waits this long for L2 and bus")
    close_timeout_s: Seconds = Field(
        5.0,
        ge=0,
        le=86_400,
        description="closing waits this long for loads, then cancels them and leaves them behind a second later",
    )
    start_degraded: bool = Field(False, description="start without L2 when it is out of reach")
    on_outage: OnOutage = Field("raise", description="what `get` does when neither level may answer")
    guard_max_s: Seconds = Field(
        60.0, ge=0, le=86_400, description="the longest write guard; of several nodes' the largest counts; 0: none"
    )
    db_timeout_s: Seconds | None = Field(None, gt=0, description="how long the database lets a transaction live")
    pending_max: int = Field(0, ge=0, description="invalidations that may wait for L2 to come back; 0: they raise")
    resend_max_bytes: int = Field(
        RESEND_MAX_BYTES, ge=0, description="invalidations of the last minute, kept for a failover; 0: none are"
    )
    l1_max_entries: int = Field(100_000, ge=0, description="the most entries that L1 holds")
    l1_max_bytes: int = Field(
        256 * 1024 * 1024, ge=0, description="the most that decoded values, keys and tags in L1 take, as estimated"
    )
    lease_ms: int = Field(10_000, ge=100, le=3_600_000, description="how long a loader that vanished blocks others")
    max_invalidated_scopes: int = Field(
        100_000,
        ge=16,
        le=250_000,
        description="invalidated scopes that a shard remembers, all read by a node that starts; so many may be guarded",
    )
    log_max_len: int = Field(
        100_000, ge=16, le=100_000_000, description="events kept a shard for nodes that missed them"
    )
    log_max_bytes: int = Field(64 * 1024 * 1024, ge=65_536, le=1 << 40, description="and what they may take in all")
    keep_without_l2: bool = Field(
        True, description="whether what is loaded while L2 is out of reach may be kept, for staleness_bound_s"
    )
    encryption: Encryption = Field(
        None,
        repr=False,
        description="keys that encrypt values in L2: ID:KEY, with 32 bytes in base64, several by commas (the first "
        "encrypts, all decrypt), file:PATH, provider:module:name, or a callable",
    )
    encryption_required: bool = Field(True, description="whether values that lie in L2 unencrypted count as absent")
    warm_up: bool = Field(
        False,
        description="whether a node that starts takes over what is hot on one that has this too, and tells others",
    )
    warm_up_keys: int = Field(10_000, ge=1, le=1_000_000, description="the most keys that are taken over, or told")
    warm_up_bytes: int = Field(64 * 1024 * 1024, ge=1, description="and the most that is read of L2 for that")
    warm_up_s: Seconds = Field(10.0, gt=0, le=3600, description="and how long it may take")
    policies: dict[str, Policy] = Field(default_factory=dict, description="by data type")

    def __init__(self, **values: Unpack[SettingsOptions]) -> None:
        _warn_of_misspelt_variables()
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explained(error)) from None
        except SettingsError as error:
            # Its message names the field; its cause would show the text.
            raise ConfigError(f"settings: {error}; JSON is needed in the variable CACHEBUS_<FIELD>") from None

    @classmethod
    def of(cls, settings: Settings | str | None) -> Settings:
        """Settings as they are, of a URL, or of the environment alone."""
        if isinstance(settings, Settings):
            return settings
        if settings is None:
            return cls()
        if not isinstance(settings, str):
            raise ConfigError(f"expected Settings or a URL, not {type(settings).__name__}")
        return cls(url=settings)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with these fields in place of its own, as if all had been given: `ConfigError` for what does not
        fit."""
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **update})

    @property
    def safe_url(self) -> str:
        """The URL without user and password, for people to read."""
        return safe(self.url.get_secret_value())

    @field_validator("url")
    @classmethod
    def _known_scheme(cls, url: SecretStr) -> SecretStr:
        if not url.get_secret_value():
            raise ValueError("is empty; expected something like redis://localhost:6379/0")
        text = url.get_secret_value().strip()  # a file's last line end comes along into many an environment
        scheme, separator, _ = as_redis(text).partition("://")
        if not separator or scheme not in SCHEMES:
            known = ", ".join(f"{s}://" for s in SCHEMES)
            raise ValueError(f"{safe(text)!r} is not a URL that is supported: {known}, or with valkey for redis")
        return SecretStr(text)

    @field_validator("shards")
    @classmethod
    def _bearable(cls, shards: int) -> int:
        if shards > SHARDS_MAX:
            raise ValueError(
                f"at most {SHARDS_MAX}: a node renews the lease of each by probes of its own, and with more of them an "
                "idle one is too busy to renew them all in time"
            )
        return shards

    @field_validator("namespace")
    @classmethod
    def _plain_namespace(cls, namespace: str) -> str:
        if not _NAMESPACE(namespace):
            raise ValueError("1-64 letters, digits, '_', '-' or '.'")
        return namespace

    @field_validator("default_tenant")
    @classmethod
    def _valid_tenant(cls, tenant: str | None) -> str | None:
        return None if tenant is None else check_part("default_tenant", tenant)

    @field_validator("policies", mode="before")
    @classmethod
    def _by_type(cls, policies: object) -> object:
        """Makes each policy here, so that what is wrong with it is told with its data type."""
        if not isinstance(policies, Mapping):
            return policies
        made = {}
        for data_type, policy in policies.items():
            try:
                made[data_type] = Policy(**policy) if isinstance(policy, Mapping) else policy
            except (ConfigError, TypeError) as error:
                raise ValueError(f"{data_type}: {error}") from None
        return made

    @model_validator(mode="before")
    @classmethod
    def _many_shards_on_a_cluster(cls, values: Any) -> Any:
        """A Cluster spreads shards over its servers: one would leave all but one of them idle."""
        if isinstance(values, dict) and "shards" not in values:
            url = values.get("url")
            text = url.get_secret_value() if isinstance(url, SecretStr) else str(url)
            if as_redis(text.strip()).partition("://")[0] in CLUSTER_SCHEMES:
                return {**values, "shards": CLUSTER_SHARDS}
        return values

    @field_validator("kafka_bootstrap_servers")
    @classmethod
    def _some_brokers(cls, servers: str | None) -> str | None:
        return None if servers is None else brokers(servers)

    @field_validator("kafka_events_key", "kafka_commands_key")
    @classmethod
    def _some_key(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not keys_of(secret):
            raise ValueError("is empty: leave it out, or give a key")
        return secret

    @field_validator("kafka_topic", "kafka_commands_topic")
    @classmethod
    def _plain_topic(cls, topic: str) -> str:
        if not _TOPIC(topic) or topic in (".", ".."):
            raise ValueError("1-249 letters, digits, '_', '-' or '.'")
        return topic

    @model_validator(mode="after")
    def _kafka_fits(self) -> Self:
        check_kafka(self)
        check_credentials(self)
        check_times(self)
        return self


def _warn_of_misspelt_variables() -> None:
    """One that is nearly ours would be ignored without a word; others under our prefix may be anybody's."""
    for variable in os.environ:
        name = variable.upper().removeprefix(PREFIX).lower()
        if not variable.upper().startswith(PREFIX) or name in Settings.model_fields:
            continue
        meant = closest(name, Settings.model_fields)
        if meant:
            warnings.warn(f"{variable} is no setting, did you mean {PREFIX}{meant.upper()}?", stacklevel=4)


def with_options(options: SettingsOptions, nearer: SettingsOptions) -> SettingsOptions:
    """Options with nearer ones in place of their own; policies by their types."""
    both: SettingsOptions = {**options, **nearer}
    if "policies" in both:
        both["policies"] = {**options.get("policies", {}), **nearer.get("policies", {})}
    return both


def keys_of(secret: SecretStr) -> list[str]:
    """Keys that sign, separated by commas; space around them is none of theirs."""
    return [key.strip() for key in secret.get_secret_value().split(",") if key.strip()]


def _explained(error: ValidationError) -> str:
    clauses = []
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        top = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            clauses.append(f"{field}: {unknown('setting', field, Settings.model_fields)}")
        else:
            clauses.append(f"{field} (CACHEBUS_{top.upper()}): {message}" if top else message)
    return "settings: " + "; ".join(clauses)
