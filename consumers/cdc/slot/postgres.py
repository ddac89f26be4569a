"""A replication slot of PostgreSQL as a source: changes are peeked by SQL and applied, then the slot is advanced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
from prometheus_client import CollectorRegistry, Gauge
from pydantic import SecretStr

from cachebus.base.clock import monotonic
from cachebus.base.log import logger
from cachebus.consumers.cdc.rules.router import Router
from cachebus.consumers.cdc.rules.rules import RuleFile
from cachebus.consumers.cdc.slot import reader
from cachebus.consumers.cdc.slot.catalogue import plain_url
from cachebus.consumers.cdc.slot.commits import Commits, EarlierWriters
from cachebus.consumers.cdc.slot.connecting import OUT_OF_REACH, connected, describe
from cachebus.consumers.cdc.slot.held import AGAIN_S
from cachebus.consumers.cdc.slot.lineage import Lineage
from cachebus.consumers.cdc.slot.making import SlotMaker
from cachebus.consumers.cdc.slot.mending import Mending
from cachebus.consumers.cdc.slot.older import OlderData
from cachebus.consumers.cdc.slot.passed import TransactionProgress
from cachebus.consumers.cdc.slot.pgoutput import Relation
from cachebus.consumers.cdc.slot.session import SlotSession
from cachebus.consumers.cdc.slot.slot import LONGEST_NAME, Names, OnLostSlot, Slot, default_name
from cachebus.consumers.cdc.slot.storage import DEAD, Swallowed
from cachebus.consumers.worker import commands
from cachebus.consumers.worker.clean import clean
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
LOCK_S: Final = 10
"""A worker that is frozen for so long loses its session, and with it the slot's lock. Its keep-alive is sent every
second, so a worker that runs never does."""
PEEK_TIMEOUT_S: Final = 60.0
PEEK_TIMEOUT_MAX_S: Final = 3600.0
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
    on_lost_slot: OnLostSlot = "invalidate"

    def names(self, namespace: str) -> Names:
        """The names for this namespace; `ConfigError` for a name that no slot may have."""
        by_default = default_name(namespace)
        slot = self.slot or by_default
        if not 0 < len(slot) <= LONGEST_NAME or not set(slot) <= set("abcdefghijklmnopqrstuvwxyz0123456789_"):
            raise ConfigError("slot: a name has 1 to 63 of the letters a-z, digits and _")
        publication = self.publication or by_default
        if len(publication.encode()) > LONGEST_NAME:  # PostgreSQL would cut it, and never find it again
            raise ConfigError(f"publication: a name has at most {LONGEST_NAME} bytes")
        return Names(slot, publication, namespace, self.on_lost_slot)


class PostgresSource(Source):
    """A slot, over all connections. One of several workers on a slot works, and the others stand by."""

    part = "database"
    trouble = (*OUT_OF_REACH, Swallowed)
    assumptions = ("slot", "publication", "tables", "storage", "leader")
    hold_s = reader.HOLD_S
    poison = (ValueError, TypeError, asyncpg.DataError, asyncpg.ProgramLimitExceededError)
    again_s = AGAIN_S
    letters_at = f"the table {DEAD}"
    variables = commands.DATABASE, commands.L2

    def __init__(self, given: SlotSource, rules: RuleFile, settings: Settings) -> None:
        self.limit = min(AT_ONCE, given.batch)
        self.hold_s = reader.HOLD_S
        self._given = given
        self._url = plain_url(given.dsn)
        self.names = given.names(settings.namespace)
        self.router = Router(rules, settings.shards)
        self.lineage = Lineage()
        self.commits = Commits()
        self.older = OlderData(self.names.slot)
        self.writers = EarlierWriters()
        self.maker = SlotMaker(self.names.slot, lambda: self._connected(0))
        self.mending = Mending(self.names, self.maker)
        self.options = {"--slot": given.slot, "--namespace": commands.given("namespace", settings.namespace)}
        self.shards = settings.shards
        self._planner: Planner = Orders(settings.shards, rules.cascades).planner
        self.batch, self.poll_s = given.batch, given.poll_s
        self.first_timeout_s = self.peek_timeout_s = PEEK_TIMEOUT_S
        self.progress = TransactionProgress()
        self.losses = 0
        """How often the log was passed by, so that changes were missed."""
        self.all_done_s = monotonic()
        """When all changes were last known to be done; at first when it began."""
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
            self._connected(self._lock_s * 1000) as main,
            self._connected(self._lock_s * 800) as beside,  # gone before the lock is another's
            SlotSession(self, main, beside).kept() as session,
        ):
            try:
                yield session
            except self.trouble as error:
                self.mending.suspect(error)
                raise
            finally:
                await self.maker.stop()

    def _connected(self, idle_ms: int) -> AbstractAsyncContextManager[asyncpg.Connection]:
        return connected(self._url, self.names.slot, idle_ms)

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        return describe(error)

    def register(self, registry: CollectorRegistry) -> None:
        """See `Source.register`."""

        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(name, meaning, registry=registry)

        self._retained = gauge("cachebus_cdc_wal_retained_bytes", "WAL that the server keeps for the slot")
        self._behind = gauge("cachebus_cdc_wal_behind_bytes", "WAL written since what is applied")
        self._letters = gauge("cachebus_cdc_dead_letters", "Dead letters of the slot that lie there, up to 100 000")
        self._active = gauge("cachebus_cdc_active", "Whether this worker has the slot (0: it stands by)")

    def look_once(self) -> None:
        """See `Source.look_once`."""
        super().look_once()
        self.commits.are_told_at_once = self.writers.are_told_at_once = True

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

    def shard_of(self, command: Command | bytes | str) -> int:
        """The shard of a command."""
        return (parse(command) if isinstance(command, bytes | str) else command).plan(self._planner.sparing()).shard

    def measured(self, wal_bytes: int, changes: int) -> None:
        """Learn how much WAL a change takes."""
        if changes >= MEASURED:
            self._change_bytes += 0.2 * (max(50.0, wal_bytes / changes) - self._change_bytes)

    def changes_in(self, wal_bytes: int) -> int:
        """About how many changes are in so much WAL."""
        return round(wal_bytes / self._change_bytes)

    def has_dead_letters(self, count: int) -> None:
        """Set how many there are."""
        self._letters.set(count)

    def stands(self, slot: Slot) -> list[str]:
        """Set the metrics of the slot. If it keeps more WAL than it may, returns the warning, and logs it at times."""
        self._retained.set(slot.retained_bytes)
        self._behind.set(slot.behind_bytes)
        if slot.retained_bytes <= self._given.wal_warning_bytes:
            return []
        kept = f"{slot.retained_bytes / (1 << 30):.1f} GiB of WAL ({slot.behind_bytes} bytes not applied yet)"
        warning = f"the slot {self.names.slot} makes the server keep {kept}"
        if monotonic() - self._warned_s > TELL_EVERY_S:
            self._warned_s = monotonic()
            logger.warning("cdc: {}", warning)
        return [warning]

    def warn(self, warnings: Sequence[str]) -> None:
        """Log each warning once."""
        for warning in warnings:
            if warning not in self._warned:
                logger.warning("cdc: {}", clean(warning, 2000))
        self._warned = set(warnings)


class SlotWorker(SourceWorker):
    """Follows a slot. One of several workers on a slot works, and the others stand by to take over."""

    source: PostgresSource

    def __init__(self, settings: Settings, rules: RuleFile, source: SlotSource) -> None:
        super().__init__("cdc", PostgresSource(source, rules, settings), settings, rules.cascades)

    @property
    def follows(self) -> bool:
        """Whether it follows the slot now. Otherwise another worker does, or it is about to."""
        return self.source.following
