"""The source that needs neither Debezium nor Kafka: PostgreSQL's own slot, peeked by SQL, applied, then advanced."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final, Literal

import asyncpg
from prometheus_client import CollectorRegistry, Gauge
from pydantic import SecretStr

from cachebus.errors import ConfigError
from cachebus.settings import Settings
from consumers.cdc.catalogue import plain_url
from consumers.cdc.judged import ASSUMPTIONS, Names
from consumers.cdc.router import Router
from consumers.cdc.rules import Rules
from consumers.cdc.session import HOLD_S, SlotFigures, SlotSession
from consumers.source import Session, Source
from consumers.source_worker import SourceWorker

NAME: Final = "cachebus_cdc"
NAME_MAX: Final = 63
CONNECT_S: Final = 10.0
COMMAND_S: Final = 30.0
SESSION: Final = """
SELECT set_config(pg_settings.name, wanted.value, false) FROM (VALUES
  ('statement_timeout', '0'), ('transaction_timeout', '0'), ('idle_session_timeout', '{0}'),
  ('idle_in_transaction_session_timeout', '{0}'), ('tcp_user_timeout', '{0}'), ('tcp_keepalives_idle', '5'),
  ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3')
) AS wanted (name, value) JOIN pg_settings USING (name)
"""
LOOKS_FOR_ITS_CLIENT: Final = "SET client_connection_check_interval = 2000"
"""While it decodes, too; not every platform can."""
SILENT_MS: Final = 15_000
"""So long after the last word of a worker the server ends its sessions: one that is frozen keeps the slot no longer."""
TROUBLE: Final = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # some of its calls raise this on a connection that has gone
)
POISON: Final = (ValueError, TypeError, asyncpg.DataError, asyncpg.ProgramLimitExceededError)
OnLostSlot = Literal["stop", "invalidate"]


@dataclass(frozen=True)
class SlotSource:
    """Which slot of which database, and how it is read. Times are in seconds."""

    dsn: SecretStr
    slot: str = ""
    """"": "cachebus_cdc", and what tells the namespace where that is not the default one."""
    publication: str = ""
    """"": as the slot."""
    batch: int = 5000
    """A peek stops behind the transaction with which it has told so many changes."""
    poll_s: float = 0.02
    wal_warning_bytes: int = 1 << 30
    on_lost_slot: OnLostSlot = "stop"

    def names(self, namespace: str) -> Names:
        """With what is not given: no two namespaces share a slot."""
        slot = self.slot or name_for(namespace)
        return Names(slot, self.publication or (name_for(namespace) if not self.slot else NAME), namespace)


def name_for(namespace: str) -> str:
    """The slot and publication of a namespace that names none: each has its own."""
    if namespace == "cachebus":
        return NAME
    plain = re.sub(r"[^a-z0-9_]", "_", namespace.lower())
    if plain != namespace or len(plain) > NAME_MAX - len(NAME) - 1:
        digest = hashlib.sha256(namespace.encode()).hexdigest()[:8]
        plain = f"{plain[: NAME_MAX - len(NAME) - 10]}_{digest}"
    return f"{NAME}_{plain}"


class PostgresSlot(Source):
    """A slot of a database, over any number of sessions."""

    part = "database"
    trouble = TROUBLE
    poison = POISON
    assumptions = ASSUMPTIONS
    limit = 1000
    hold_s = HOLD_S

    def __init__(self, source: SlotSource, rules: Rules, namespace: str) -> None:
        plain_url(source.dsn)
        self.options = source
        self.names = source.names(namespace)
        self.router = Router(rules)
        self.figures = SlotFigures()
        self.place = (0, 0)
        """Of the transaction in hand how many changes were applied: what another session need not apply again."""

    @property
    def slot(self) -> str:
        """Its name."""
        return self.names.slot

    def register(self, registry: CollectorRegistry) -> None:
        """See `Source.register`."""
        self.figures.retained = Gauge(
            "cachebus_cdc_wal_retained_bytes", "WAL that the server keeps for the slot", registry=registry
        )
        self.figures.behind = Gauge(
            "cachebus_cdc_wal_behind_bytes", "WAL written since what is applied", registry=registry
        )
        self.figures.active = Gauge(
            "cachebus_cdc_active", "Whether this worker has the slot (0: it stands by)", registry=registry
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        async with self._connected() as connection, self._connected() as beside:
            session = SlotSession(self, connection, beside)
            async with session.alive():
                yield session

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await asyncpg.connect(
                    plain_url(self.options.dsn),
                    command_timeout=COMMAND_S,
                    target_session_attrs="primary",  # of several hosts: after a failover that is another
                    server_settings={"application_name": f"cachebus-cdc {self.slot}"[:NAME_MAX]},
                )
        except asyncpg.ClientConfigurationError as error:
            raise ConfigError(f"the database's URL: {str(error).splitlines()[0]}") from None
        except ValueError:  # a port that is no number, a host in broken brackets
            raise ConfigError("the database's URL can't be read") from None
        try:
            await connection.execute(SESSION.format(SILENT_MS))
            with suppress(asyncpg.PostgresError):
                await connection.execute(LOOKS_FOR_ITS_CLIENT)
            yield connection
        finally:
            # Not in order where the server hangs: what matters is that the lock on the slot goes with the connection.
            with suppress(*TROUBLE):
                await connection.close(timeout=2)


class SlotWorker(SourceWorker):
    """Follows a slot. Of several workers on one slot one works, and the others stand by to take over. `ConfigError`."""

    source: PostgresSlot

    def __init__(self, settings: Settings, rules: Rules, source: SlotSource) -> None:
        if source.on_lost_slot == "invalidate" and not rules.tenants and any(r.needs_tenants for r in rules.rule):
            raise ConfigError(
                "on_lost_slot=invalidate needs the tenants whose caches to invalidate: tenants = [...] at the head of "
                "the rules"
            )
        super().__init__("cdc", PostgresSlot(source, rules, settings.namespace), settings, rules.cascades)

    @property
    def follows(self) -> bool:
        """Whether it has the slot now; else another has, or it is on its way there."""
        return self.source.figures.leads

    @property
    def waits_for_commits(self) -> bool:
        """Whether transactions are told of that others do not see yet."""
        return self.source.figures.waits
