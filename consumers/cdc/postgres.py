"""The source that needs neither Debezium nor Kafka: PostgreSQL's own slot, peeked by SQL, applied, then advanced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import asyncpg
from loguru import logger
from prometheus_client import Gauge
from pydantic import SecretStr

from cachebus.clock import monotonic
from cachebus.errors import ConfigError
from cachebus.settings import Settings
from consumers.apply import Applier
from consumers.cdc.carry import Ask, Batch, Carrier
from consumers.cdc.catalogue import OWN_TABLES, plain_url
from consumers.cdc.dead import TableOfDead
from consumers.cdc.held import HeldCommands
from consumers.cdc.pgoutput import Begin, Commit, Decoder, PgOutputError
from consumers.cdc.router import Router
from consumers.cdc.rules import Rules
from consumers.cdc.slot import LostSlot, Setup, look
from consumers.patience import Patience
from consumers.worker import Worker

NAME: Final = "cachebus_cdc"
PEEK: Final = (
    "SELECT lsn::text AS lsn, data FROM pg_logical_slot_peek_binary_changes("
    "$1, NULL, $2, 'proto_version', '1', 'publication_names', $3)"
)
ADVANCE: Final = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)"
NOW: Final = "SELECT pg_current_wal_flush_lsn()::text"
AT_ONCE: Final = 1000
"""Changes that are applied together."""
HOLD_S: Final = 2.0
"""A transaction is held open no longer than this while L2 is away: an old one keeps the database from cleaning up."""
IDLE_ADVANCE_BYTES: Final = 1 << 20
"""Of others' WAL: past that the slot moves on, though nothing in it is for these rules."""
WATCH_EVERY_S: Final = 5.0
STAND_BY_S: Final = 0.5
SNAPSHOT: Final = "SELECT pg_current_snapshot()::text"
XID_BITS: Final = 0xFFFFFFFF
VISIBLE_FIRST_S: Final = 0.001
VISIBLE_MAX_S: Final = 0.1
PEEK_TIMEOUT_S: Final = 60.0
PEEK_TIMEOUT_MAX_S: Final = 3600.0
NO_LIMITS: Final = """
SELECT set_config(name, '0', false) FROM pg_settings
WHERE name IN
  ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout')
"""
OUT_OF_REACH: Final = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,  # some of its calls raise this on a connection that has gone
)
OnLostSlot = Literal["stop", "invalidate"]


@dataclass(frozen=True)
class SlotSource:
    """Which slot of which database, and how it is read. Times are in seconds."""

    dsn: SecretStr
    slot: str = NAME
    publication: str = NAME
    batch: int = 5000
    """A peek stops behind the transaction with which it has told so many changes."""
    poll_s: float = 0.02
    wal_warning_bytes: int = 1 << 30
    on_lost_slot: OnLostSlot = "stop"


class Peek:
    """What one look into the slot has told so far."""

    def __init__(self) -> None:
        self.decoder = Decoder()
        self.batch = Batch()
        self.count = 0
        self.end: int | None = None
        """Where the last whole transaction ends."""
        self.xids: set[int] = set()
        """Transactions that it has told of, and that others may not see yet."""
        self.whole = True
        """Whether it was heard to its end."""


class Aside(NamedTuple):
    """Where that is put for which the slot does not wait."""

    dead: TableOfDead
    held: HeldCommands


class SlotWorker(Worker):
    """Follows a slot. Of several workers on one slot one works, and the others stand by to take over."""

    def __init__(self, settings: Settings, rules: Rules, source: SlotSource) -> None:
        super().__init__("cdc", ("l2", "database", "slot"))
        plain_url(source.dsn)
        if source.on_lost_slot == "invalidate" and not rules.tenants and any(r.needs_tenants for r in rules.rule):
            raise ConfigError(
                "on_lost_slot=invalidate needs the tenants whose caches to invalidate: tenants = [...] at the head of "
                "the rules"
            )
        self.source = source
        self._rules = rules
        self._router = Router(rules)
        self._applier = Applier(settings, self.health, self.meters, rules.cascades)
        self._carrier = Carrier(self._router, self._applier, self.meters)
        self._patience = Patience("database", self.health)
        self._seen = ""
        """Up to where the server's log has been looked through."""
        self._advanced = 0
        self._peek_timeout_s = PEEK_TIMEOUT_S
        self._retained = self._gauge("cachebus_cdc_wal_retained_bytes", "WAL that the server keeps for the slot")
        self._behind = self._gauge("cachebus_cdc_wal_behind_bytes", "WAL written since what is applied")
        self._active = self._gauge("cachebus_cdc_active", "Whether this worker has the slot (0: it stands by)")
        self._warned_s = float("-inf")
        self._has_l2 = False
        self.waits_for_commits = False
        """Whether transactions are told of that others do not see yet."""

    @property
    def follows(self) -> bool:
        """Whether it has the slot now; else another has, or it is on its way there."""
        return bool(self._active._value.get())

    async def run(self) -> None:
        """Follow the slot until drained."""
        work = asyncio.create_task(self._run(), name="cachebus-cdc")
        asked = asyncio.create_task(self._draining.wait(), name="cachebus-cdc-drain")
        try:
            await asyncio.wait((work, asked), return_when=asyncio.FIRST_COMPLETED)
            if not self._has_l2:  # nothing is in hand
                work.cancel()
            await asyncio.wait((work,))
        finally:
            for task in (work, asked):
                task.cancel()
                await asyncio.wait((task,))
        if not work.cancelled():
            work.result()

    async def _run(self) -> None:
        async with self._applier.opened():
            self._has_l2 = True
            while not self.draining:
                try:
                    async with self._connected() as connection:
                        self._patience.over()
                        await self._follow(connection)
                except LostSlot as lost:
                    self.health.down("slot", f"lost: {lost}")
                except asyncpg.ClientConfigurationError as error:
                    raise ConfigError(f"the database's URL: {error}") from None
                except OUT_OF_REACH as error:
                    await self._patience.wait(f"{type(error).__name__}: {error}")
                finally:
                    self._active.set(0)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.meters.registry)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        async with asyncio.timeout(10):
            connection = await asyncpg.connect(
                plain_url(self.source.dsn),
                command_timeout=30,
                target_session_attrs="primary",  # of several hosts: after a failover that is another
                server_settings={"application_name": f"cachebus-cdc {self.source.slot}"[:63]},
            )
        try:
            await connection.execute(NO_LIMITS)
            yield connection
        finally:
            # Not in order where the server hangs: what matters is that the lock on the slot goes with the connection.
            with suppress(*OUT_OF_REACH):
                await connection.close(timeout=2)

    async def _follow(self, connection: asyncpg.Connection) -> None:
        self._seen, self._advanced = "", 0
        setup = Setup(connection, self._router, self.source.slot, self.source.publication)
        if not await self._had_lock(connection):
            return
        await setup.done()
        while not await self._has_slot(setup):
            if await self.drained(WATCH_EVERY_S):
                return
        self._active.set(1)
        self.health.up("slot")
        async with self._connected() as beside:
            busy = asyncio.Lock()  # of a connection that two use
            watching = asyncio.create_task(self._watch(beside, busy), name="cachebus-cdc-watch")
            try:
                held = HeldCommands(beside, self.source.slot, busy, self._applier, self.meters)
                await held.found()
                await self._work(connection, Aside(TableOfDead(beside, self.source.slot, busy), held), watching)
            finally:
                watching.cancel()
                with suppress(asyncio.CancelledError, LostSlot, *OUT_OF_REACH):
                    await watching

    async def _had_lock(self, connection: asyncpg.Connection) -> bool:
        """Wait for the lock that stands for the slot; it goes with the connection. False when drained before."""
        name = f"cachebus-cdc {self.source.slot}"
        told = False
        while not self.draining:
            if await connection.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name):
                return True
            if not told:
                logger.info("cdc: another worker follows the slot {}: standing by", self.source.slot)
                self.health.up("slot")
                told = True
            await self.drained(STAND_BY_S)
        return False

    async def _has_slot(self, setup: Setup) -> bool:
        """Whether there is a slot to follow. One that was lost is replaced if the operator said so; else it is told."""
        try:
            await setup.slot()
        except LostSlot as lost:
            self.health.down("slot", f"lost: {lost}")
            what = f"cdc: the slot {self.source.slot} is lost: {lost}. Changes were missed, so caches may hold old rows"
            if self.source.on_lost_slot != "invalidate":
                if monotonic() - self._warned_s > 60:
                    self._warned_s = monotonic()
                    logger.error(
                        "{} until they expire. Start with --on-lost-slot=invalidate to make a new slot and invalidate "
                        "all that the rules name", what,
                    )  # fmt: skip
                return False
            logger.error("{}: making a new slot, and invalidating all that the rules name", what)
            await setup.make_anew()
            tenants = self._rules.tenants
            await self._applier.apply([self._applier.plan_of(c) for c in self._router.everything(tenants)])
            await setup.remember(whole=True)
            logger.warning("cdc: invalidated all that the rules name, for {} tenants", len(tenants))
        return True

    async def _work(self, connection: asyncpg.Connection, aside: Aside, watching: asyncio.Task[None]) -> None:
        while not self.draining:
            if watching.done():
                watching.result()  # a lost slot, or a lost connection: begin anew
                return
            started_s = monotonic()
            await aside.held.tried()
            now = await connection.fetchval(NOW)
            more = now != self._seen and await self._peek(connection, now, aside)
            if not more:
                # At most half of the time is the server kept reading its log over for us.
                await self.drained(max(self.source.poll_s, monotonic() - started_s))

    async def _peek(self, connection: asyncpg.Connection, now: str, aside: Aside) -> bool:
        """Look at what comes next, apply it, and advance the slot behind it. Whether there is more already."""
        peek = Peek()
        try:
            async with connection.transaction(readonly=True, isolation="read_committed"):
                cursor = await connection.cursor(
                    PEEK, self.source.slot, self.source.batch, self.source.publication, timeout=self._peek_timeout_s
                )
                while rows := await cursor.fetch(AT_ONCE, timeout=self._peek_timeout_s):
                    for row in rows:
                        self._take(row, peek)
                    if len(peek.batch) >= AT_ONCE and not await self._in_time(connection, peek, aside):
                        break
        except TimeoutError:
            self._peek_timeout_s = min(PEEK_TIMEOUT_MAX_S, self._peek_timeout_s * 2)
            raise
        except asyncpg.ObjectInUseError:  # by the server's process of a worker that was killed, which is about to end
            return False
        await self._finish(connection, peek, aside)
        if not peek.whole:
            return True  # what came behind it is told once more
        self._peek_timeout_s = PEEK_TIMEOUT_S
        limited = peek.count >= self.source.batch
        if peek.end is not None or self._is_far(now):
            end = peek.end or 0
            # What was committed after the look at the log's end, and was told of all the same, is passed as well.
            await self._advance(connection, _lsn_text(end if limited else max(end, _lsn(now))))
        if not limited:
            self._seen = now
        return peek.count > 0  # where there was something, there may be more

    def _take(self, row: Any, peek: Peek) -> None:
        peek.count += 1
        try:
            found = peek.decoder.decode(row["data"], row["lsn"])
        except PgOutputError as error:
            self._carrier.refuse(peek.batch, row["data"], str(error), row["lsn"])
            return
        if isinstance(found, Begin):
            peek.xids.add(found.xid)
        elif isinstance(found, Commit):
            peek.end = found.end_lsn
        elif isinstance(found, list):
            for change in found:
                if change.table not in OWN_TABLES:
                    self._carrier.take(change, peek.batch, source=change.position)

    async def _in_time(self, connection: asyncpg.Connection, peek: Peek, aside: Aside) -> bool:
        """Finish with what has been told so far; False where L2 makes that wait longer than the transaction may."""
        try:
            async with asyncio.timeout(HOLD_S):
                await self._finish(connection, peek, aside)
        except TimeoutError:
            peek.whole = False
            return False
        peek.batch = Batch()
        return True

    async def _seen_by_all(self, connection: asyncpg.Connection, peek: Peek) -> None:
        """Wait until whoever begins to read sees what was told of: the log has a commit before that, by far where a
        synchronous standby is waited for. Who loads in between loads what is old, and would keep it."""
        patience_s = VISIBLE_FIRST_S
        while peek.xids:
            _, end, running = str(await connection.fetchval(SNAPSHOT)).split(":")
            under_way = {int(one) & XID_BITS for one in running.split(",") if one}
            peek.xids = {xid for xid in peek.xids if xid in under_way or _is_behind(xid, int(end))}
            self.waits_for_commits = bool(peek.xids)
            if peek.xids:
                await asyncio.sleep(patience_s)
                patience_s = min(VISIBLE_MAX_S, patience_s * 2)

    async def _finish(self, connection: asyncpg.Connection, peek: Peek, aside: Aside) -> None:
        batch = peek.batch
        await self._seen_by_all(connection, peek)
        if batch.dead:
            await aside.dead.put(batch.dead)
            self._carrier.buried(batch.dead)
        self._carrier.applied(await self._applied(batch.asks, aside.held))
        self.meters.done("ignored", batch.ignored)

    async def _applied(self, asks: Sequence[Ask], held: HeldCommands) -> list[Ask]:
        """Apply what can be, and hold what waits for one primary of several that is away, with what comes behind it;
        gives what was applied. While all are away, nothing goes on."""
        away = await self._applier.apply_around([ask.plan for ask in asks], held.shards)
        waiting = [ask for ask in asks if ask.plan.shard in away]
        if waiting:
            await held.put(waiting)
        return [ask for ask in asks if ask.plan.shard not in away]

    def _is_far(self, now: str) -> bool:
        return _lsn(now) - self._advanced > IDLE_ADVANCE_BYTES

    async def _advance(self, connection: asyncpg.Connection, target: str) -> None:
        await connection.execute(ADVANCE, self.source.slot, target)
        self._advanced = _lsn(target)

    async def _watch(self, connection: asyncpg.Connection, busy: asyncio.Lock) -> None:
        """How much the slot holds back, for those who watch; raises `LostSlot` when it is no more."""
        told_s = float("-inf")
        while True:
            async with busy:
                slot = await look(connection, self.source.slot)
            if slot is None or slot.lost:
                raise LostSlot("it is gone" if slot is None else "the server has removed WAL that it was to keep")
            self._retained.set(slot.retained_bytes)
            self._behind.set(slot.behind_bytes)
            if slot.retained_bytes > self.source.wal_warning_bytes and monotonic() - told_s > 60:
                told_s = monotonic()
                logger.warning(
                    "cdc: the slot {} makes the server keep {:.1f} GiB of WAL ({} bytes not applied yet)",
                    self.source.slot, slot.retained_bytes / (1 << 30), slot.behind_bytes,
                )  # fmt: skip
            await asyncio.sleep(WATCH_EVERY_S)


def _is_behind(xid: int, end: int) -> bool:
    """Whether a transaction, by the 32 bits of its number, is none of those before `end`: nearer behind it than
    before."""
    return (xid - end) & XID_BITS < 1 << 31


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def _lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
