"""One connection's life with a slot: peek, apply, advance."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import asyncpg
from loguru import logger
from prometheus_client import Gauge

from cachebus.clock import monotonic, wall_s
from consumers.cdc.catalogue import quoted
from consumers.cdc.change import UnusableChange
from consumers.cdc.dead import TableOfDead
from consumers.cdc.held import HeldCommands
from consumers.cdc.peek import Peek, Slice, Told
from consumers.cdc.standing import Standing
from consumers.dead import DeadLetter
from consumers.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session
from producers.command import Command

if TYPE_CHECKING:
    from consumers.cdc.postgres import PostgresSlot

HOLD_S: Final = 2.0
"""A transaction is held open no longer than this while L2 is away: an old one keeps the database from cleaning up."""
NOW: Final = "SELECT pg_current_wal_flush_lsn()::text"
NOTE: Final = """
WITH at_once AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true))
UPDATE cachebus_cdc_slots AS noted SET
  whole = whole AND (noted.confirmed IS NULL OR slot.confirmed_flush_lsn <= noted.confirmed),
  confirmed = greatest(noted.confirmed, $2::text::pg_lsn)
FROM pg_replication_slots AS slot, at_once WHERE noted.slot = $1::text AND slot.slot_name = $1::text
"""
# No standby is waited for, nor the disk: the slot's own place is written later than this is, by the next checkpoint.
ADVANCE: Final = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)"
LOCK: Final = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
IDLE_ADVANCE_BYTES: Final = 1 << 20
"""Of others' WAL: past that the slot moves on, though nothing in it is for these rules."""
TOUCH_S: Final = 5.0
"""A slot that nothing is told by is used all the same, before a server takes it for one that nobody wants."""
STAND_BY_S: Final = 0.5
PING_S: Final = 3.0
PEEK_TIMEOUT_S: Final = 60.0
PEEK_TIMEOUT_MAX_S: Final = 3600.0
WARN_EVERY_S: Final = 60.0


class SlotFigures:
    """What a worker tells of its slot, over all sessions."""

    retained: Gauge | None = None
    behind: Gauge | None = None
    active: Gauge | None = None
    leads = False
    waits = False
    peek_timeout_s = PEEK_TIMEOUT_S
    warned_s = float("-inf")

    def leading(self, leads: bool) -> None:
        """Whether this worker has the slot."""
        self.leads = leads
        if self.active is not None:
            self.active.set(int(leads))


class SlotSession(Session):
    """`connection` peeks and has the lock that stands for the slot; `beside` looks, and keeps what is set aside."""

    def __init__(self, source: PostgresSlot, connection: asyncpg.Connection, beside: asyncpg.Connection) -> None:
        self._source = source
        self._options = source.options
        self._names = source.names
        self._router = source.router
        self._figures = source.figures
        self._connection, self._beside = connection, beside
        self._busy, self._busy_beside = asyncio.Lock(), asyncio.Lock()
        self._dead = TableOfDead(beside, self._names.slot, self._busy_beside)
        self._held = HeldCommands(beside, self._names.slot, self._busy_beside)
        self._standing = Standing(
            beside, self._busy_beside, self._router, self._names,
            invalidates=self._options.on_lost_slot == "invalidate", lead=self._leads,
        )  # fmt: skip
        self._peek: Peek | None = None
        self._slice: Slice | None = None
        self._taken_held = False
        self._now = ""
        self._seen = ""
        """Up to where the server's log has been looked through."""
        self._advanced = 0
        self._touched_s = monotonic()
        self._rests_until_s = float("-inf")

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """While the server is to believe that this worker is."""
        pinging = asyncio.create_task(self._ping(), name="cachebus-cdc-ping")
        try:
            yield
        finally:
            self._figures.leading(False)
            pinging.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await pinging

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING_S)
            for connection, busy in (self._connection, self._busy), (self._beside, self._busy_beside):
                if not busy.locked():
                    async with busy:
                        await connection.execute("SELECT 1")

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        if not self._standing.leads and not await self._leads():
            await asyncio.sleep(STAND_BY_S)
            return Batch()
        if self._peek is None:
            held = await self._held.take(limit, away)
            if held:
                self._taken_held = True
                return Batch(held)
            rest_s = self._rests_until_s - monotonic()
            if rest_s > 0:
                await asyncio.sleep(min(rest_s, POLL_S))
                return Batch()
        async with self._busy:
            if self._peek is None and not await self._opened():
                return Batch()
            return await self._next(limit)

    async def _leads(self) -> bool:
        """Have the lock that stands for the slot, which goes with the connection."""
        async with self._busy:
            has = await self._connection.fetchval(LOCK, f"cachebus-cdc {self._names.slot}")
        if not has:
            return False
        self._standing.leads = True
        await self._standing.findings()
        await self._standing.note()
        await self._held.found()
        self._figures.leading(True)
        self.look_again = True
        return True

    async def _opened(self) -> bool:
        """Begin a peek, if there may be something to be told."""
        began_s = monotonic()
        now = await self._connection.fetchval(NOW)
        if now == self._seen and began_s - self._touched_s < TOUCH_S:
            self._rests_until_s = began_s + self._options.poll_s
            return False
        self._touched_s = began_s
        self._now = now
        self._peek = Peek(self._connection, skip=self._source.place)
        await self._peek.open(
            self._names.slot, self._options.batch, quoted(self._names.publication), self._figures.peek_timeout_s
        )
        return True

    async def _next(self, limit: int) -> Batch:
        peek = self._peek
        assert peek is not None
        try:
            self._slice = await peek.slice(limit, self._figures.peek_timeout_s)
        except TimeoutError:
            self._figures.peek_timeout_s = min(PEEK_TIMEOUT_MAX_S, self._figures.peek_timeout_s * 2)
            raise
        except asyncpg.ObjectInUseError:  # by the server's process of a worker that was killed, which is about to end
            await self._closed()
            self._rests_until_s = monotonic() + self._options.poll_s
            return Batch()
        except asyncpg.UndefinedObjectError as error:
            await self._closed()
            if "publication" in str(error):  # else it is the slot that is gone
                self._standing.unreadable = str(error)
            self.look_again = True
            self._rests_until_s = monotonic() + POLL_S
            return Batch()
        self._figures.waits = peek.waits
        await peek.seen_by_all()
        self._figures.waits = False
        if not self._slice.items:
            await self._passed(peek, self._slice)
            return Batch()
        return Batch(self._slice.items)

    async def _passed(self, peek: Peek, part: Slice) -> None:
        """All that a peek has told is done with: it is over, and the slot moves on."""
        peek.done(part, len(part.items))
        limited = peek.count >= self._options.batch
        place, end = peek.place, peek.end
        took_s = monotonic() - peek.opened_s
        await self._closed()
        self._figures.peek_timeout_s = PEEK_TIMEOUT_S
        self._source.place = place
        if end or _lsn(self._now) - self._advanced > IDLE_ADVANCE_BYTES:
            # What was committed after the look at the log's end, and was told of all the same, is passed as well.
            await self._advance(end if limited else max(end, _lsn(self._now)))
        if not limited:
            self._seen = self._now
        if not peek.count:
            # At most half of the time is the server kept reading its log over for us.
            self._rests_until_s = monotonic() + max(self._options.poll_s, took_s)

    async def _closed(self) -> None:
        peek, self._peek, self._slice = self._peek, None, None
        if peek is not None:
            await peek.close()

    # -- what is taken ------------------------------------------------------------------------------------------------

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        if not isinstance(item.raw, Told):
            return Meaning([item.raw["command"]])
        if item.raw.change is None:
            raise UnusableChange(item.raw.problem)
        return self._router.meaning(item.raw.change)

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        if not isinstance(item.raw, Told):
            return DeadLetter(item.raw["command"].encode(), reason, item.place, 1, wall_s())
        payload = item.raw.data if item.raw.change is None else item.raw.change.payload()
        return DeadLetter(payload, reason, item.place, 1, wall_s())

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.bury`."""
        await self._dead.put(letters)

    async def let_go(self, batch: Batch, left: Left) -> None:
        """See `Session.let_go`."""
        if self._taken_held:
            self._taken_held = False
            undone = {id(item) for item in left.undone}
            await self._held.let_go([item for item in batch.items if id(item) not in undone], left.waiting)
            return
        peek, part = self._peek, self._slice
        assert peek is not None
        assert part is not None
        if left.waiting:
            await self._held.put(left.waiting)
        undone = {id(item) for item in left.undone}
        count = next((at for at, item in enumerate(part.items) if id(item) in undone), len(part.items))
        async with self._busy:
            if peek.over and not undone:
                await self._passed(peek, part)
                return
            peek.done(part, count)
            self._source.place = peek.place
            if undone or monotonic() - peek.opened_s > HOLD_S:
                end = peek.end
                await self._closed()
                if end:
                    await self._advance(end)

    async def _advance(self, end: int) -> None:
        """The slot's confirmed place is noted before it is there: one beyond what is noted was moved by others."""
        target = _lsn_text(end)
        async with self._busy_beside:
            await self._beside.execute(NOTE, self._names.slot, target)
        await self._connection.execute(ADVANCE, self._names.slot, target)
        self._advanced = end

    # -- how it stands ------------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        findings = await self._standing.findings()
        if not self._standing.leads:  # whoever leads makes up for what was missed
            findings = [finding for finding in findings if not finding.over]
        facts = self._standing.facts
        assert facts is not None
        held, oldest_s = await self._held.waits() if not facts.missing else (0, None)
        if self._standing.leads:
            await self._standing.note()
        retained = behind = 0
        if facts.slot is not None:
            retained, behind = facts.slot["retained_bytes"] or 0, facts.slot["behind_bytes"] or 0
        if self._figures.retained is not None and self._figures.behind is not None:
            self._figures.retained.set(retained)
            self._figures.behind.set(behind)
        if retained > self._options.wal_warning_bytes and monotonic() - self._figures.warned_s > WARN_EVERY_S:
            self._figures.warned_s = monotonic()
            logger.warning(
                "cdc: the slot {} makes the server keep {:.1f} GiB of WAL ({} bytes not applied yet)",
                self._names.slot, retained / (1 << 30), behind,
            )  # fmt: skip
        in_hand = len(self._slice.items) if self._slice is not None else 0
        return Look(findings, held + in_hand, oldest_s, held)

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        return await self._standing.mend(findings)

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """See `Session.scopes`."""
        return self._standing.scopes(findings)

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        await self._standing.made_up(findings)


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def _lsn_text(lsn: int) -> str:
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
