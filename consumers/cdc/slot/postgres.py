"""A replication slot of PostgreSQL as a source: changes are peeked by SQL and applied, then the slot is advanced."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import asyncpg
from prometheus_client import CollectorRegistry, Gauge
from pydantic import SecretStr

from cachebus.base.clock import monotonic
from cachebus.base.log import logger
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import Rules
from cachebus.consumers.cdc.slot.catalogue import plain_url
from cachebus.consumers.cdc.slot.commits import Commits
from cachebus.consumers.cdc.slot.held import AGAIN_S
from cachebus.consumers.cdc.slot.lineage import Lineage
from cachebus.consumers.cdc.slot.mending import Mending
from cachebus.consumers.cdc.slot.peek import Progress
from cachebus.consumers.cdc.slot.pgoutput import Relation
from cachebus.consumers.cdc.slot.session import SlotSession
from cachebus.consumers.cdc.slot.slot import LONGEST_NAME, OnLostSlot, Slot, default_name
from cachebus.consumers.cdc.slot.standing import Names
from cachebus.consumers.cdc.slot.storage import Swallowed
from cachebus.consumers.worker import clean, database_session
from cachebus.consumers.worker.retry import TELL_EVERY_S
from cachebus.consumers.worker.source import Session, Source
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import ConfigError
from cachebus.keys.plan import Planner
from cachebus.producers.base import Orders
from cachebus.producers.command import Command, parse
from cachebus.settings import Settings

AT_ONCE: Final = 2000
"""The most changes of a batch."""
HOLD_S: Final = 2.0
"""How long a transaction is held open while L2 is away: an old one keeps the database from vacuuming."""
LOCK_S: Final = 10
"""A worker that is frozen for so long loses its session, and with it the slot's lock. Its keep-alive is sent every
second, so a worker that runs never does."""
PEEK_TIMEOUT_S: Final = 60.0
PEEK_TIMEOUT_MAX_S: Final = 3600.0
CONNECT_S: Final = 10.0
COMMAND_TIMEOUT_S: Final = 30.0
"""Of quick commands. Peeks and advances read the log, which may take longer: see `PostgresSource.longer`."""
SESSION: Final = """
SELECT set_config(s.name, v.value, false) FROM pg_settings s JOIN (VALUES
  ('statement_timeout', '0'), ('transaction_timeout', '0'), ('tcp_keepalives_idle', '5'),
  ('tcp_keepalives_interval', '2'), ('tcp_keepalives_count', '3'), ('tcp_user_timeout', '10000'),
  ('client_connection_check_interval', '5000'),
  ('synchronous_commit', coalesce($2, current_setting('synchronous_commit'))),
  ('idle_in_transaction_session_timeout', $1), ('idle_session_timeout', $1)) AS v (name, value) USING (name)
"""
OUT_OF_REACH: Final = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # some of its calls raise this on a connection that has gone
)
REFUSES: Final = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
TYPICAL_CHANGE_BYTES: Final = 200
MEASURED: Final = 50
"""From so many changes the size of one in the WAL is estimated."""


@dataclass(frozen=True)
class SlotSource:
    """The slot to follow, and how it is read. Times are in seconds."""

    dsn: SecretStr
    slot: str | None = None
    """The name of the slot and the publication; by default the namespace followed by "_cdc": "cachebus_cdc"."""
    publication: str | None = None
    batch: int = 5000
    """A peek stops after the transaction with which it has returned so many changes."""
    poll_s: float = 0.02
    wal_warning_bytes: int = 1 << 30
    on_lost_slot: OnLostSlot = "stop"

    def names(self, namespace: str) -> Names:
        """The names for this namespace; `ConfigError` for a name that no slot may have."""
        by_default = default_name(namespace)
        slot = self.slot or by_default
        if not 0 < len(slot) <= LONGEST_NAME or not set(slot) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise ConfigError("slot: a name has 1 to 63 of the letters a-z, digits and _")
        return Names(slot, self.publication or by_default, namespace, self.on_lost_slot)


class PostgresSource(Source):
    """A slot, over all connections. One of several workers on a slot works, and the others stand by."""

    if_unnamed = "Name tenants at the head of the rules, or invalidate it by hand"

    part = "database"
    trouble = (*OUT_OF_REACH, Swallowed)
    assumptions = ("slot", "publication", "tables", "storage", "leader")
    hold_s = HOLD_S
    poison = (ValueError, TypeError, asyncpg.DataError, asyncpg.ProgramLimitExceededError)
    again_s = AGAIN_S

    def __init__(self, given: SlotSource, rules: Rules, settings: Settings) -> None:
        self.limit = min(AT_ONCE, given.batch)
        self.hold_s = HOLD_S
        self._given = given
        self._url = plain_url(given.dsn)
        self.names = given.names(settings.namespace)
        self.router = Router(rules)
        self.lineage = Lineage()
        self.commits = Commits()
        self.mending = Mending(self.names)
        self.shards = settings.shards
        self._planner: Planner = Orders(settings.shards, rules.cascades).planner
        self.batch, self.poll_s = given.batch, given.poll_s
        self.first_timeout_s = self.peek_timeout_s = PEEK_TIMEOUT_S
        self.progress = Progress()
        self.losses = 0
        """How often the log was passed by, so that changes were missed."""
        self.leading = False
        """Whether this worker has the slot's lock."""
        self.following = False
        """Whether it works on the slot."""
        self.waits_for_commits = False
        """Whether transactions are told of that others do not see yet."""
        self.may_shorten = True
        self._change_bytes = float(TYPICAL_CHANGE_BYTES)
        self._warned: set[str] = set()
        self._warned_s = float("-inf")
        self._lock_s = max(LOCK_S, int(4 * settings.l2_timeout_s))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        async with (
            # Where the slot goes is written here, which is to wait for no standby that may be away.
            self._connected(str(self._lock_s * 1000), "local") as main,
            self._connected("0") as beside,
            SlotSession(self, main, beside).kept() as session,
        ):
            try:
                yield session
            except Swallowed as error:
                self.mending.suspects.add(error.table)
                raise

    @asynccontextmanager
    async def _connected(self, idle_ms: str, durable: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await asyncpg.connect(
                    self._url,
                    command_timeout=COMMAND_TIMEOUT_S,
                    target_session_attrs="primary",  # of several hosts: after a failover that is another
                    server_settings={"application_name": f"cachebus-cdc {self.names.slot}"[:LONGEST_NAME]},
                )
        except (asyncpg.ClientConfigurationError, ValueError):
            raise ConfigError("the database's URL can't be read") from None
        try:
            await connection.execute(database_session.SET)
            await connection.fetch(SESSION, idle_ms, durable)
            yield connection
        finally:
            # Not in order where the server hangs: what matters is that the lock on the slot goes with the connection.
            with suppress(*OUT_OF_REACH):
                await connection.close(timeout=2)

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        if isinstance(error, REFUSES):
            return f"{type(error).__name__}: the server refuses this user, or has no such database"
        if isinstance(error, OSError):
            return f"{type(error).__name__}: {os.strerror(error.errno) if error.errno else 'no connection'}"
        return clean.describe(error)

    def register(self, registry: CollectorRegistry) -> None:
        """See `Source.register`."""

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, registry=registry)

        self._retained = gauge("cachebus_cdc_wal_retained_bytes", "WAL that the server keeps for the slot")
        self._behind = gauge("cachebus_cdc_wal_behind_bytes", "WAL written since what is applied")
        self._active = gauge("cachebus_cdc_active", "Whether this worker has the slot (0: it stands by)")

    # -- what outlives a connection -----------------------------------------------------------------------------------

    def longer(self) -> None:
        """The server timed out reading its log: double the time-out, up to an hour."""
        self.peek_timeout_s = min(PEEK_TIMEOUT_MAX_S, 2 * self.peek_timeout_s)

    def leads(self, leading: bool) -> None:
        """Note whether this worker has the lock."""
        self.leading = leading
        if not leading:
            self.follows(False)

    def follows(self, following: bool) -> None:
        """Note whether this worker follows the slot."""
        self.following = following
        self._active.set(following)

    def is_followed(self, relation: Relation) -> bool:
        """Whether rules apply to this table."""
        return bool(self.router.table(relation.schema, relation.table, relation.oid).rules)

    @property
    def names_all(self) -> bool:
        """Whether rules name all that changes may touch which nobody has seen."""
        return not self.router.missed(self.router.rules.rule)[1]

    def shard_of(self, command: Command | bytes | str) -> int:
        """The shard of a command."""
        return (parse(command) if isinstance(command, bytes | str) else command).plan(self._planner).shard

    def measured(self, wal_bytes: int, changes: int) -> None:
        """Learn how much WAL a change takes."""
        if changes >= MEASURED:
            self._change_bytes += 0.2 * (max(50.0, wal_bytes / changes) - self._change_bytes)

    def changes_in(self, wal_bytes: int) -> int:
        """About how many changes are in so much WAL."""
        return round(wal_bytes / self._change_bytes)

    def stands(self, slot: Slot) -> None:
        """Set the metrics of the slot."""
        self._retained.set(slot.retained_bytes)
        self._behind.set(slot.behind_bytes)
        if slot.retained_bytes > self._given.wal_warning_bytes and monotonic() - self._warned_s > TELL_EVERY_S:
            self._warned_s = monotonic()
            logger.warning(
                "cdc: the slot {} makes the server keep {:.1f} GiB of WAL ({} bytes not applied yet)",
                self.names.slot,
                slot.retained_bytes / (1 << 30),
                slot.behind_bytes,
            )

    def warn(self, warnings: Sequence[str]) -> None:
        """Log each warning once."""
        for warning in warnings:
            if warning not in self._warned:
                logger.warning("cdc: {}", clean.clean(warning, 2000))
        self._warned = set(warnings)


class SlotWorker(SourceWorker):
    """Follows a slot. One of several workers on a slot works, and the others stand by to take over."""

    source: PostgresSource

    def __init__(self, settings: Settings, rules: Rules, source: SlotSource) -> None:
        if source.on_lost_slot == "invalidate" and not rules.tenants and any(r.needs_tenants for r in rules.rule):
            raise ConfigError(
                "on_lost_slot=invalidate needs the tenants whose caches to invalidate: tenants = [...] at the head of "
                "the rules"
            )
        super().__init__("cdc", PostgresSource(source, rules, settings), settings, rules.cascades)

    @property
    def follows(self) -> bool:
        """Whether it follows the slot now. Otherwise another worker does, or it is about to."""
        return self.source.following
