"""What every connection to Kafka has in common: where to, as whom, for how long at most, and what it logs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final

from cachebus.base.log import logger
from cachebus.base.tls import FileContext, TlsFiles
from cachebus.errors import ConfigError
from cachebus.settings import Settings

MISSING: Final = "the Kafka bus needs aiokafka: pip install 'cachebus[kafka]'"
BACKOFF_MS: Final = 50


@dataclass(frozen=True, slots=True)
class KafkaAccess:
    """Where the brokers are, and how to be let in. Times are in seconds."""

    servers: str
    """host:port, separated by commas."""
    topic: str
    """What carries the events; namespaces may share it."""
    partitions: int
    """How many the topic gets where it has to be made."""
    timeout_s: float
    """No request takes longer."""
    connect_timeout_s: float
    """Connecting, with all that belongs to it, takes no longer."""
    name: str
    """What the brokers' logs call this client."""
    security: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """aiokafka's arguments for TLS and SASL."""
    retention_ms: int = 3_600_000
    """How long the topic keeps messages where it has to be made. Those of a bus are wanted for as long as a node may be
    behind: seconds. Where it is there, a sixtieth is the least that it is not warned of."""
    makes_topic: bool = True
    """Whether the topic is made where it is missing. Who only looks makes none by a misspelt name."""
    in_sync: int = 1
    """How many replicas must have a message before it counts, where it has to be made and there are so many."""

    def arguments(self) -> dict[str, Any]:
        """Those that all of aiokafka's clients share."""
        return {
            "bootstrap_servers": self.servers,
            "client_id": self.name,
            "request_timeout_ms": int(self.timeout_s * 1000),
            "retry_backoff_ms": BACKOFF_MS,
            **self.security,
        }


def kafka_access(settings: Settings) -> KafkaAccess:
    """What the settings say; `ConfigError` where aiokafka is missing, or a file of TLS can't be used."""
    if find_spec("aiokafka") is None:
        raise ConfigError(MISSING)
    security: dict[str, Any] = {}
    if settings.kafka_ssl:
        security["ssl_context"] = _tls(settings)
    mechanism, user, password = settings.kafka_sasl_mechanism, settings.kafka_username, settings.kafka_password
    if mechanism is not None and user is not None and password is not None:
        security |= {
            "sasl_mechanism": mechanism,
            "sasl_plain_username": user.get_secret_value(),
            "sasl_plain_password": password.get_secret_value(),
        }
    if settings.kafka_sasl_oauth_token_provider is not None:
        from cachebus.bus.kafka.tokens import ProvidedTokens

        tokens = ProvidedTokens(settings.kafka_sasl_oauth_token_provider, settings.connect_timeout_s / 2)
        security |= {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": tokens}
    return KafkaAccess(
        servers=settings.kafka_bootstrap_servers or "",
        topic=settings.kafka_topic,
        partitions=settings.kafka_partitions,
        timeout_s=settings.l2_timeout_s,
        connect_timeout_s=settings.connect_timeout_s,
        name=f"cachebus-{settings.namespace}",
        security={
            "security_protocol": ("SASL_" if mechanism else "") + ("SSL" if settings.kafka_ssl else "PLAINTEXT"),
            **security,
        },
    )


def _tls(settings: Settings) -> FileContext:
    files = TlsFiles(
        settings.kafka_ssl_ca_certs,
        settings.kafka_ssl_certfile,
        settings.kafka_ssl_keyfile,
        check_hostname=settings.kafka_ssl_check_hostname,
    )
    field = "kafka_ssl_ca_certs (CACHEBUS_KAFKA_SSL_CA_CERTS)"
    try:
        TlsFiles(files.ca_certs).context()
        field = "kafka_ssl_certfile (CACHEBUS_KAFKA_SSL_CERTFILE), kafka_ssl_keyfile (CACHEBUS_KAFKA_SSL_KEYFILE)"
        return FileContext(files)
    except OSError as error:
        raise ConfigError(f"settings: {field}: {error.strerror or error}") from error


_ours: ContextVar[deque[str] | None] = ContextVar("cachebus_kafka", default=None)


class _Quiet(logging.Filter):
    """aiokafka tells each attempt of a broker that is away, some twenty a second. Of ours it is told once, by us."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = _ours.get()
        if said is None:
            return True  # somebody else's client in this process
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            said.append(text)
        logger.trace("{}: {}", record.name, text)
        return False


_quiet = _Quiet()


@contextmanager
def quietly() -> Iterator[deque[str]]:
    """What is begun in here, tasks too, logs nothing by itself; gives the last error that it would have told.

    `ConfigError` where aiokafka is not installed.
    """
    try:
        import aiokafka.admin  # noqa: F401
    except ImportError as error:
        raise ConfigError(MISSING) from error
    for name in [name for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] == "aiokafka"]:
        logging.getLogger(name).addFilter(_quiet)  # which does so once
    said: deque[str] = deque(maxlen=1)
    token = _ours.set(said)
    try:
        yield said
    finally:
        _ours.reset(token)
