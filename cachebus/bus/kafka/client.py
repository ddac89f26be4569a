"""What every connection to Kafka has in common: where to, as whom, for how long at most, and what it logs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from cachebus.base.log import logger
from cachebus.errors import ConfigError
from cachebus.settings import Settings

Client = TypeVar("Client")
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


def _tls(settings: Settings) -> ssl.SSLContext:
    field = "kafka_ssl_ca_certs (CACHEBUS_KAFKA_SSL_CA_CERTS)"
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_ca_certs)
        context.check_hostname = settings.kafka_ssl_check_hostname
        field = "kafka_ssl_certfile (CACHEBUS_KAFKA_SSL_CERTFILE), kafka_ssl_keyfile (CACHEBUS_KAFKA_SSL_KEYFILE)"
        if settings.kafka_ssl_certfile is not None:
            # A key that asks for its password would hold the process up at a terminal.
            context.load_cert_chain(settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile, password=lambda: "")
    except OSError as error:
        raise ConfigError(f"settings: {field}: {error.strerror or error}") from error
    return context


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


End = Callable[[], Coroutine[Any, Any, None]]


class Endings:
    """The driver's clients, started and closed whole, in tasks of their own: who is being cancelled can't wait for
    them, and what the driver gives up amid connecting, or closing, stays open."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    async def started(self, client: Any, end: End | None = None) -> None:
        """Start a client; the driver's errors. One that can't be started is ended, by `end`, or its own `close` or
        `stop`; where whoever waits is cancelled meanwhile, that happens when it has started, or failed."""
        starting = asyncio.create_task(client.start(), name="cachebus-kafka-start")
        try:
            await asyncio.shield(starting)
        except BaseException:
            self.add(asyncio.create_task(_ended(starting, end or _end_of(client)), name="cachebus-kafka-end"))
            raise

    @asynccontextmanager
    async def running(self, client: Client, end: End | None = None) -> AsyncIterator[Client]:
        """A client while it is used; it is ended likewise. Wait for that by `over`."""
        await self.started(client, end)
        try:
            yield client
        finally:
            self.add(asyncio.create_task((end or _end_of(client))(), name="cachebus-kafka-end"))

    def add(self, task: asyncio.Task[None]) -> None:
        """Remember it until it has ended."""
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.debug("a Kafka client did not close cleanly: {!r}", task.exception())

    async def over(self, timeout_s: float) -> None:
        """Wait until all have ended, but no longer than that: what a broker does not answer is given up. Whoever is
        cancelled here waits likewise."""
        try:
            await self._wait(timeout_s)
        except asyncio.CancelledError:
            await self._wait(timeout_s)
            raise
        finally:
            for task in self._tasks:
                task.cancel()
            await self._wait(timeout_s)

    async def _wait(self, timeout_s: float) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)


async def _ended(starting: asyncio.Task[None], end: End) -> None:
    try:
        await asyncio.wait([starting])
    finally:
        starting.cancel()
        await end()


def _end_of(client: Any) -> End:
    return getattr(client, "close", None) or client.stop  # type: ignore[no-any-return]
