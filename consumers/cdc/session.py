"""A slot's worker while it is connected: peeks, and advances the slot behind what was let go of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from loguru import logger

from cachebus.clock import monotonic, wall_s
from consumers.cdc import standing
from consumers.cdc.catalogue import quoted
from consumers.cdc.dead import TableOfDead
from consumers.cdc.held import HeldCommand, HeldCommands
from consumers.cdc.peek import PEEK, Change, Peek, Progress, Unreadable
from consumers.cdc.pgoutput import PgOutputError
from consumers.cdc.slot import literal
from consumers.cdc.standing import Standing
from consumers.cdc.storage import SLOTS, lsn_of, lsn_text
from consumers.dead import DeadLetter
from consumers.source import Batch, Finding, Item, Left, Look, Meaning, Session
from producers.command import Command

if TYPE_CHECKING:
    from consumers.cdc.postgres import PostgresSource

NOW: Final = "SELECT pg_current_wal_flush_lsn()::text AS lsn, pg_current_snapshot()::text AS snapshot"
IDLE_ADVANCE_BYTES: Final = 1 << 20
"""Of others' WAL: past that the slot moves on, though nothing in it is for these rules."""
SHORTEN_BYTES: Final = 1 << 18
"""Of WAL: so much is read again at each look before the server is asked for a point to begin at that is nearer."""
SHORTEN_EVERY_S: Final = 1.0
STAND_BY_S: Final = 0.5
STILL_S: Final = 15.0
"""A worker that has the slot's lock and does nothing with it for so long is said to by those who stand by."""
KEEP_S: Final = 1.0
TAKEN_S: Final = 5.0
"""Others may use the slot for so long before that is told: the server's process of a worker that was killed does."""
VISIBLE_S: Final = 2.0
"""A transaction is held open no longer for a commit to be seen by others."""
PEEK_TIMEOUT_MAX_S: Final = 3600.0
NOTHING: Final = Meaning()


class SlotSession(Session):
    """Two connections: the one has the lock, peeks and advances; the other is for all else."""

    def __init__(self, source: PostgresSource, main: asyncpg.Connection, beside: asyncpg.Connection) -> None:
        self._source = source
        self._names = source.names
        self._main, self._in_main = main, asyncio.Lock()
        self._beside, self._in_beside = beside, asyncio.Lock()
        self._held = HeldCommands(beside, self._names.slot, source.shards, source.shard_of)
        self._dead = TableOfDead(beside, self._names.slot)
        self._found = Standing()
        self._statement: Any = None
        self._peek: Peek | None = None
        self._now, self._seen = "", ""
        """Up to where the server's log reached when it was looked at, and up to where it was looked through."""
        self._advanced = self._shortened = 0
        self._shorten_from_s = float("-inf")
        self._turn = False
        self._pause_s = 0.0
        self._in_use_s: float | None = None
        self._still: tuple[int, float] = (0, monotonic())
        self._waited_since_s: float | None = None

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[SlotSession]:
        """Neither idle for the server, which ends a session that is, nor is its slot."""
        keeping = asyncio.create_task(self._keep(), name="cachebus-cdc-keep")
        try:
            yield self
        finally:
            self._source.leads(False)
            keeping.cancel()
            with suppress(asyncio.CancelledError, *self._source.trouble):
                await keeping

    async def _keep(self) -> None:
        touch = f"SELECT count(*) FROM ({PEEK.replace('NULL', repr('0/1'))}) AS touched"
        while True:
            await asyncio.sleep(KEEP_S)
            async with self._in_main:
                if self._source.following and self._peek is None:
                    with suppress(asyncpg.PostgresError):
                        await self._main.fetchval(touch, self._names.slot, 1, quoted(self._names.publication))
                        continue
                with suppress(asyncpg.InFailedSQLTransactionError):
                    await self._main.execute("SELECT 1")

    # -- taking -------------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        items: list[Item] = []
        async with self._in_main:
            if await self._leads():
                await self._follow()
                items = await self._taken(limit, away)
            else:
                self._pause_s = STAND_BY_S
        if not items and self._pause_s:
            await asyncio.sleep(self._pause_s)
        return Batch(items, full=not self._pause_s)

    async def _leads(self) -> bool:
        """Whether this worker has the lock that stands for the slot; it goes with the connection."""
        if not self._source.leading:
            name = f"cachebus-cdc {self._names.slot}"
            if not await self._main.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name):
                if self._waited_since_s is None:
                    self._waited_since_s = monotonic()
                    logger.info("cdc: another worker follows the slot {}: standing by", self._names.slot)
                return False
            self._source.leads(True)
        return True

    async def _follow(self) -> None:
        if not self._source.following:
            self._statement = await self._main.prepare(PEEK)
            async with self._in_beside:
                await self._held.found()
            self._source.follows(True)

    async def _taken(self, limit: int, away: Collection[int]) -> list[Item]:
        self._pause_s = 0.0
        if self._peek is None:
            if self._found.quiet:
                async with self._in_beside:
                    await self._source.mending.keep(self._beside, self._found)
            self._turn = not self._turn
            if self._turn and self._held.shards:
                async with self._in_beside:
                    held = await self._held.take(limit, away)
                if held:
                    return held
            if not await self._looked_at(monotonic()):
                return []
        return await self._slice(limit)

    async def _looked_at(self, started_s: float) -> bool:
        """Begin a look into the slot, where the log has grown since the last one."""
        now = await self._main.fetchrow(NOW)
        if now["lsn"] == self._seen:
            self._pause_s = self._source.poll_s
            return False
        self._now, self._snapshot = now["lsn"], now["snapshot"]
        self._started_s = started_s
        peek = Peek(self._source.progress, self._source.is_followed)
        timeout_s = self._source.peek_timeout_s
        asked = self._names.slot, self._source.batch, quoted(self._names.publication)
        try:
            await peek.begin(self._main, self._statement, asked, timeout_s)
        except asyncpg.PostgresError:
            await self._main.execute("ROLLBACK")
            raise
        self._peek = peek
        return True

    async def _slice(self, limit: int) -> list[Item]:
        peek = self._peek
        assert peek is not None
        items: list[Item] = []
        try:
            while not items and not peek.over:
                items = await peek.some(limit)
        except TimeoutError:
            self._source.peek_timeout_s = min(PEEK_TIMEOUT_MAX_S, self._source.peek_timeout_s * 2)
            raise
        except asyncpg.ObjectInUseError:  # by the server's process of a worker that was killed, which is about to end
            await self._closed("ROLLBACK")
            self._in_use_s = self._in_use_s or monotonic()
            self._pause_s = self._source.poll_s
            return []
        except asyncpg.UndefinedObjectError:
            await self._closed("ROLLBACK")
            await self._pass_by()
            return []
        self._in_use_s = None
        if items and not await self._visible(peek):
            await self._closed("COMMIT")
            return []
        if not items:
            await self._heard(peek)
        return items

    async def _visible(self, peek: Peek) -> bool:
        """Wait until whoever begins to read sees what was told of: the log has a commit before that, by far where a
        synchronous standby is waited for. Who loads in between loads what is old, and would keep it. False where that
        takes longer than a transaction may be open: it is told of once more."""
        pause_s, until_s = 0.001, monotonic() + VISIBLE_S
        while not peek.seen_by(self._snapshot):
            self._source.waits_for_commits = True
            if monotonic() > until_s:
                return False
            self._snapshot = (await self._main.fetchrow(NOW))["snapshot"]
            if not peek.seen_by(self._snapshot):
                await asyncio.sleep(pause_s)
                pause_s = min(0.1, pause_s * 2)
        self._source.waits_for_commits = False
        return True

    async def _pass_by(self) -> None:
        """Some servers can't tell of a time when there was no publication: it is passed by, as missed."""
        self._pause_s = 1.0
        if await self._main.fetchval("SELECT true FROM pg_publication WHERE pubname = $1", self._names.publication):
            await self._main.execute(f"UPDATE {SLOTS} SET whole = false WHERE slot = $1", self._names.slot)
            await self._closed(self._advance(lsn_of(self._now)))

    # -- letting go ---------------------------------------------------------------------------------------------------

    async def let_go(self, batch: Batch, left: Left) -> None:
        """See `Session.let_go`."""
        if isinstance(batch.items[0].raw, HeldCommand):
            await self._let_go_held(batch, left)
            return
        if left.waiting:
            async with self._in_beside:
                await self._held.put(left.waiting)
        undone = {id(item) for item in left.undone}
        first = next((item for item in batch.items if id(item) in undone), None)
        async with self._in_main:
            peek = self._peek
            assert peek is not None
            if isinstance(first, Change):
                self._source.progress = Progress(first.transaction, first.number - 1)
                await self._closed("COMMIT" if first.behind is None else self._advance(first.behind))
                return
            last = batch.items[-1]
            assert isinstance(last, Change)
            self._source.progress = Progress(last.transaction, last.number)
            if peek.over:
                await self._heard(peek)

    async def _let_go_held(self, batch: Batch, left: Left) -> None:
        kept = {id(item) for item in left.undone} | {id(one.item) for one in left.waiting}
        async with self._in_beside:
            moved = [one for one in left.waiting if one.shards != {one.item.raw.shard}]
            if moved:
                await self._held.put(moved)
            await self._held.let_go([item for item in batch.items if id(item) not in kept])

    async def _heard(self, peek: Peek) -> None:
        """It was heard to its end: the slot goes behind it."""
        self._source.peek_timeout_s = self._source.first_timeout_s
        limited = peek.count >= self._source.batch
        now = lsn_of(self._now)
        target = peek.last if limited else peek.end
        if not limited and (target is not None or now - self._advanced > IDLE_ADVANCE_BYTES):
            # What was committed after the look at the log's end, and was told of all the same, is passed as well.
            target = max(target or 0, now)
        if not limited:
            self._seen = self._now
        if not peek.count:  # at most half of the time is the server kept reading its log over for us
            self._pause_s = max(self._source.poll_s, monotonic() - self._started_s)
        self._source.measured(peek.wal_bytes, peek.count)
        await self._closed("COMMIT" if target is None else self._advance(target))
        if target is not None:
            await self._shorten(target)

    def _advance(self, target: int) -> str:
        """The SQL: where the slot goes is durable before it does. Where it is beyond already, others were there."""
        slot, lsn = literal(self._names.slot), lsn_text(target)
        self._advanced = target
        return (
            f"COMMIT; BEGIN; UPDATE {SLOTS} SET lsn = greatest(lsn, '{lsn}'), whole = whole AND NOT EXISTS "
            f"(SELECT FROM pg_replication_slots WHERE slot_name = {slot} AND confirmed_flush_lsn > lsn) "
            f"WHERE slot = {slot}; COMMIT; SELECT pg_replication_slot_advance({slot}, '{lsn}')"
        )

    async def _closed(self, sql: str) -> None:
        """The look is over, and its transaction."""
        self._peek = None
        with suppress(asyncpg.ObjectInUseError):  # then it is told once more
            await self._main.execute(sql)

    async def _shorten(self, target: int) -> None:
        """Have the server log where it may begin to read: else each look reads again what was written since the last
        time that it did so, which is up to 15 seconds ago."""
        near = target - self._shortened < SHORTEN_BYTES or monotonic() < self._shorten_from_s
        if near or not self._source.may_shorten:
            return
        self._shortened, self._shorten_from_s = target, monotonic() + SHORTEN_EVERY_S
        try:
            await self._main.execute("SELECT pg_log_standby_snapshot()")
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            self._source.may_shorten = False
        else:
            self._advanced -= 2 * IDLE_ADVANCE_BYTES  # and pass it by at once

    # -- items --------------------------------------------------------------------------------------------------------

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        raw = item.raw
        if raw is None:
            return NOTHING
        if isinstance(raw, HeldCommand):
            return Meaning([raw.command])
        if isinstance(raw, Unreadable):
            raise PgOutputError(raw.problem)
        several = [self._source.router.meaning(change) for change in raw.changes(self._source.wanted(raw.relations))]
        if len(several) == 1:
            return several[0]
        commands = dict.fromkeys(command for one in several for command in one.commands)
        return Meaning(list(commands), [problem for one in several for problem in one.problems])

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        raw = item.raw
        if isinstance(raw, HeldCommand):
            payload = raw.command.encode()
        else:
            try:
                payload = b"\n".join(change.payload() for change in raw.changes())
            except (PgOutputError, AttributeError):
                payload = repr(raw.data).encode()
        return DeadLetter(payload, reason, item.place, 1, wall_s())

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.bury`."""
        async with self._in_beside:
            await self._dead.put(letters)

    # -- what is assumed ----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._in_beside:
            found = self._found = await self._standing()
            waits = not any(one.subject == "cachebus_cdc_held" for one in found.findings)
            held, oldest_s = await self._held.figures() if waits and found.memory is not None else (0, 0.0)
        findings = list(found.findings)
        if found.slot is not None:
            self._source.stands(found.slot)
            findings += self._others(found.slot)
        self._source.warn(found.warnings)
        backlog = None
        if self._source.leading and found.slot is not None:
            backlog = held + self._source.changes_in(0 if self._is_idle() else found.slot.behind_bytes)
        return Look(findings, backlog, oldest_s, held)

    def _is_idle(self) -> bool:
        return self._peek is None and self._now == self._seen

    async def _standing(self) -> Standing:
        return await standing.look(self._beside, self._source.router, self._names, self._source.mending.refused)

    def _others(self, slot: Any) -> list[Finding]:
        """What others do with the slot, and do not."""
        if self._source.leading:
            if self._in_use_s is not None and monotonic() - self._in_use_s > TAKEN_S and slot.active_pid:
                who = f"another program reads it: {slot.active_as!r}, process {slot.active_pid}"
                return [Finding("slot", self._names.slot, who, f"SELECT pg_terminate_backend({slot.active_pid});")]
            return []
        confirmed, since_s = self._still
        if slot.confirmed != confirmed or slot.behind_bytes < IDLE_ADVANCE_BYTES:
            self._still = slot.confirmed, monotonic()
        unmoved = monotonic() - since_s > 4 * STILL_S and self._still[0] == confirmed
        if self._waited_since_s is not None and (slot.untouched_s > STILL_S or unmoved):
            return [Finding(
                "leader", self._names.slot, "another worker has the lock of the slot, and does nothing with it: it is "
                "frozen, or all that it needs is out of reach", "end the other worker",
            )]  # fmt: skip
        return []

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        async with self._in_main:
            if not await self._leads():
                return False
        made = False
        async with self._in_beside:
            for _ in range(5):  # one makes the next possible
                if not await self._source.mending.mend(self._beside, self._found):
                    break
                made = True
                self._found = await self._standing()
        return made

    def scopes(self, findings: Sequence[Finding]) -> tuple[list[Command], list[str]]:
        """See `Session.scopes`."""
        router = self._source.router
        rules: dict[int, Any] = {}
        for one in findings:
            schema, _, table = one.subject.partition(".")
            meant = router.rules_of(schema, table) if table else router.rules.rule
            rules |= {id(rule): rule for rule in meant}
        return router.missed(rules.values())

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        async with self._in_beside:
            if self._source.leading:
                await self._source.mending.made_up(self._beside, self._found, findings)
