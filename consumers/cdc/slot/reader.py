"""Reads a slot over the connection that has its lock: peeks, and advances."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachebus.base.clock import monotonic, wall_s
from cachebus.base.log import logger
from cachebus.consumers.cdc.slot import locks
from cachebus.consumers.cdc.slot.encodings import IN_NO_ENCODING, python_name
from cachebus.consumers.cdc.slot.identity import quoted
from cachebus.consumers.cdc.slot.nearer import NearerStart
from cachebus.consumers.cdc.slot.older import GONE_BACK
from cachebus.consumers.cdc.slot.passed import NO_TRANSACTION, PassedOver, Reached, Transaction, TransactionProgress
from cachebus.consumers.cdc.slot.peek import Peek, PeekQuestion, SlotChange
from cachebus.consumers.cdc.slot.slices import PEEK
from cachebus.consumers.cdc.slot.slot import advance
from cachebus.consumers.cdc.slot.storage import SLOTS, Swallowed, lose, lsn_of
from cachebus.consumers.cdc.slot.too_large import is_too_large, passed_by
from cachebus.consumers.cdc.slot.twins import lock_of
from cachebus.consumers.worker import table_locks
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource

NOW: Final = "SELECT pg_current_wal_flush_lsn()::text AS lsn, pg_current_snapshot()::text AS snapshot"
IDLE_ADVANCE_BYTES: Final = 1 << 20
"""If so much WAL has no changes for these rules, the slot is advanced all the same."""
KEEP_S: Final = 1.0
ALIVE_S: Final = 4.0
"""A server that is there answers the quickest of questions within this. Else the connection is given up: one that a
proxy or a firewall has dropped without a word says nothing."""
FRESH_S: Final = 1.0
"""How long the result of a peek counts as current."""
HOLD_S: Final = 2.0
"""How long a transaction is held open until its changes are taken, or while L2 is away: an old one keeps the database
from vacuuming."""
SEEN_S: Final = 0.1
"""A commit is waited for no longer to be seen by others: what is behind it goes on then."""


class SlotReader:
    """Peeks into the slot, a slice at a time. The caller holds `lock`, since a connection runs one command at a
    time."""

    def __init__(self, source: PostgresSource, connection: asyncpg.Connection) -> None:
        self._source = source
        self._names = source.names
        self._main, self.lock = connection, asyncio.Lock()
        self._statement: Any = None
        self._encoding = ""
        """The database's, once something was to be told that can't be in UTF-8, until the slot is behind that."""
        self.peek: Peek | None = None
        self.passed = PassedOver()
        self._expected: Transaction | None = None
        """The last transaction of which something is done, until this session has told of it, too."""
        self._again = 0
        """How many rows will be told again by the next look, since the slot could not go behind them."""
        self._up_to_s: float | None = None
        """Unix time up to which all that was committed was told."""
        self._done_lsn = 0
        """Where the last change was that is done with."""
        self._now, self._seen, self._snapshot = "", "", ""
        """Up to where the server's log reached when it was looked at, and up to where it was looked through."""
        self._advanced = 0
        self._nearer = NearerStart(connection, source.names.slot)
        self._target: int | None = None
        """Behind where the slot is to go, once its row can be written."""
        self._rests_until_s = float("-inf")
        self._started_s = self._began_s = self._looked_s = 0.0
        self._in_hand = False
        """Whether a slice is being applied."""
        self.has_stored = False
        """Whether something of that slice was stored in the worker's own tables."""
        self._idle_since_s = 0.0
        self.pause_s = 0.0
        """How long there is nothing to look for."""
        self._singly = False
        """Whether transactions are asked for one at a time: the server can't tell one of those that come next."""
        self.in_use_s: float | None = None
        """Since when others use the slot."""
        self.waited_since_s = inf
        """Since when another worker has the lock."""
        self.refusals = table_locks.LockRefusals()
        """What was not done, since the row of the slot was locked when it was to be written."""

    @property
    def has_looked(self) -> bool:
        """Whether the log was looked through up to where it reached."""
        return self.peek is None and self._now == self._seen

    @property
    def is_idle(self) -> bool:
        """Whether all changes are done, by a recent peek."""
        return self.has_looked and not self.passed.unseen and monotonic() - self._looked_s < FRESH_S + self.pause_s

    def oldest_s(self, now_s: float) -> float | None:
        """How long the oldest change that is not done has waited at most; None if that is not known yet."""
        if self.is_idle:
            return 0.0
        if self.passed.since_s is not None:
            return monotonic() - self.passed.since_s
        since_s = self._up_to_s if self.peek is None or self.peek.first_at_s is None else self.peek.first_at_s
        return None if since_s is None else max(0.0, now_s - since_s)

    def behind_bytes(self, here: int) -> int:
        """About how many bytes of the log, up to this position, are not done."""
        heard = 0 if self.passed.unseen or not self._seen else lsn_of(self._seen)
        return 0 if self.is_idle else max(0, here - max(heard, self._done_lsn))

    async def keep(self) -> None:
        """Use the connection and the slot every second. The server ends sessions, and invalidates slots, that are
        idle."""
        touch = f"SELECT count(*) FROM ({PEEK.replace('NULL', repr('0/1'))}) AS touched"
        while True:
            await asyncio.sleep(KEEP_S)
            async with self.lock:
                if self.peek is not None and not self._in_hand and monotonic() - self._idle_since_s > HOLD_S:
                    await self._closed("COMMIT")  # nobody takes: L2 is away; it is told once more
                if self._source.following and self.peek is None:
                    await self._main.execute("SELECT 1", timeout=ALIVE_S)
                    with suppress(asyncpg.PostgresError):
                        await self._main.fetchval(touch, *self._question(1))
                        continue
                if self.peek is not None and self.peek.slices.is_fetching:
                    continue
                with suppress(asyncpg.InFailedSQLTransactionError):
                    await self._main.execute("SELECT 1", timeout=ALIVE_S)

    async def stop(self) -> None:
        """Fetch nothing more."""
        if self.peek is not None:
            await self.peek.slices.drop_ahead(at_once=True)

    async def prepare(self) -> None:
        """Prepare the connection for peeks. What was done before, and lies behind where the slot is, must be told once
        more: otherwise the log is another one by now. So it is where the slot's workers had gone further."""
        self._statement = await self._main.prepare(PEEK)
        older = self._source.older
        far = await older.look(self._main)
        self._source.progress = self._source.progress.over_sessions()
        done = self._source.progress.transaction
        self._expected = done if far.confirmed is not None and 0 < far.confirmed <= done.lsn else None
        if await older.met(self._main, far, leads=True):
            self._begin_anew()

    async def leads(self) -> bool:
        """Whether this worker has the lock of the slot, which ends with the connection."""
        if not self._source.leading:
            name = lock_of(self._names.slot)
            if not await self._main.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name):
                if self.waited_since_s == inf:
                    self.waited_since_s = monotonic()
                    logger.info("cdc: another worker follows the slot {}: standing by", self._names.slot)
                self._source.losses += await self._source.older.met_beside(self._main)
                return False
            self._source.leads(True)
        return True

    async def begins(self, started_s: float) -> bool:
        """Begin a peek into the slot, if the log has grown since the last one."""
        now, self._looked_s = await self._main.fetchrow(NOW, timeout=ALIVE_S), monotonic()
        if self._target is not None and not self.rests and not self._source.mending.has_new_doubts:
            await self._go_behind(self._target)
        if now["lsn"] == self._seen and self.passed.are_unseen_by(now["snapshot"]):
            self.pause_s = self._source.poll_s
            if not self.passed.unseen:
                self._up_to_s = wall_s()
            return False
        self._now, self._snapshot, self._began_s = now["lsn"], now["snapshot"], wall_s()
        self._started_s = started_s
        peek = Peek(self._source.progress, self.passed, self._source.is_followed, self._encoding)
        peek.expected = self._expected
        question = self._question((1 if self._singly else self._source.batch) + self._again)
        try:
            await peek.begin(self._main, self._statement, question, self._source.peek_timeout_s)
        except asyncpg.PostgresError:
            await self._main.execute("ROLLBACK")
            raise
        self.peek = peek
        return True

    def _question(self, count: int) -> PeekQuestion:
        return PeekQuestion(self._names.slot, count, quoted(self._names.publication).encode())

    async def some(self, limit: int) -> list[Item]:
        """The next changes of this peek. At its end, without changes, the slot is advanced behind it."""
        peek = self.peek
        assert peek is not None
        items: list[Item] = []
        try:
            while not items and not peek.over:
                rows = await peek.rows(limit)
                await self._visible(peek)
                peek.slices.fetch_ahead(limit)
                await asyncio.sleep(0)  # so that the server is asked before the rows are read
                items = peek.read(rows)
        except TimeoutError:
            self._source.longer()
            raise
        except asyncpg.ObjectInUseError:  # by the server's process of a worker that was killed, which is about to end
            await self._closed("ROLLBACK")
            self.in_use_s = self.in_use_s or monotonic()
            self.pause_s = self._source.poll_s
            return []
        except IN_NO_ENCODING:
            if self._encoding:
                raise
            await self._closed("ROLLBACK")
            self._encoding = python_name(self._main.get_settings().server_encoding)
            return []
        except asyncpg.UndefinedObjectError:
            await self._closed("ROLLBACK")
            await self._pass_by()
            return []
        except asyncpg.PostgresError as error:
            if not is_too_large(error):
                raise
            await self._closed("ROLLBACK")
            await self._pass_by_large(peek, error)
            return []
        self.in_use_s = None
        if self._has_gone_back(peek):
            await self._go_back()
            return []
        if not items:
            await self._heard(peek)
        self._in_hand = bool(items)
        return items

    async def _visible(self, peek: Peek) -> None:
        """Wait a moment until the changes are visible to other sessions. The log has a commit before that, long before
        where a synchronous standby is waited for. A cache that loads in between would load, and keep, the old value.
        Changes that are not visible in time are passed over, and read once more."""
        pause_s, until_s = 0.001, monotonic() + SEEN_S
        while not peek.seen_by(self._snapshot):
            self._source.waits_for_commits = True
            self._snapshot = (await self._main.fetchrow(NOW, timeout=ALIVE_S))["snapshot"]
            seen, known = peek.seen_by(self._snapshot), peek.waited_for.union(self.passed.unseen.values())
            if seen or peek.xids <= known or monotonic() > until_s:
                peek.waited_for |= peek.xids
                return
            await asyncio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 2)
        self._source.waits_for_commits = bool(self.passed.unseen)

    def _has_gone_back(self, peek: Peek) -> bool:
        """Whether the log is another one than that of which this worker has done something. Of what was lost with the
        old one caches may have loaded rows, and nobody tells that these are no more."""
        if self._expected is None or peek.has_met:
            self._expected = None
            return False
        return peek.has_met is False or (peek.over and not peek.limited)

    async def _go_back(self) -> None:
        logger.error(GONE_BACK, self._names.slot)
        await self._closed("COMMIT")
        await lose(self._main, self._names.slot)
        self._begin_anew()

    def _begin_anew(self) -> None:
        """It is remembered that the log is another one."""
        self._source.losses += 1
        self._source.progress, self._expected, self.passed = TransactionProgress(), None, PassedOver()
        self._target = None

    async def _pass_by(self) -> None:
        """Skip a time without a publication, which some servers can't decode. Its changes count as missed."""
        self.pause_s = 1.0
        if await self._main.fetchval("SELECT true FROM pg_publication WHERE pubname = $1", self._names.publication):
            await lose(self._main, self._names.slot)
            self._source.losses += 1
            self._expected = None
            await self._go_behind(lsn_of(self._now))

    async def _pass_by_large(self, peek: Peek, error: asyncpg.PostgresError) -> None:
        """No server makes a text of more than a gigabyte, whoever asks. What comes before that transaction is told
        first, and waited for; then the log is passed by as missed."""
        if not self._singly or self.passed.unseen:
            self._singly, self.pause_s = True, self._source.poll_s if self._singly else 0.0
            return
        logger.error("cdc: {}", passed_by(error))
        self._singly = False
        await self._pass_by()

    # -- letting go ---------------------------------------------------------------------------------------------------

    async def done(self, last: SlotChange) -> None:
        """All changes up to this one are done."""
        peek = self.peek
        assert peek is not None
        self._in_hand, self._idle_since_s = False, monotonic()
        self._progressed(last.transaction, last.number)
        self.passed.done(last)
        self._done_lsn = max(self._done_lsn, lsn_of(last.place))
        peek.first_at_s = last.sent_s or peek.first_at_s
        if peek.over:
            await self._heard(peek)

    async def left(self, first: SlotChange) -> None:
        """All changes before this one are done. From this one on they are read once more."""
        peek = self.peek
        assert peek is not None
        self._in_hand = False
        self._progressed(first.transaction, first.number - 1)
        self.passed.done_to = max(self.passed.done_to, Reached(first.transaction, first.number - 1))
        if first.behind is None:
            await self._closed("COMMIT")
        else:
            await self._go_behind(first.behind)

    def _progressed(self, transaction: Transaction, number: int) -> None:
        stored, self.has_stored = self.has_stored, False
        self._source.progress = self._source.progress.behind(transaction, number, stored=stored)

    async def _heard(self, peek: Peek) -> None:
        """The peek has ended: advance the slot behind it."""
        self._encoding = ""
        self.passed.heard(peek.unseen, peek.up_to, monotonic())
        limited, now = peek.limited, lsn_of(self._now)
        # All that is told again costs each time. Of what is new twice as much is asked for then, to be through soon.
        self._again = peek.count * (2 if limited else 1) if peek.unseen else 0
        target = peek.last if limited else peek.end
        if not limited and not peek.unseen and (target is not None or now - self._advanced > IDLE_ADVANCE_BYTES):
            # What was committed after the look at the log's end, and was told of all the same, is passed as well.
            target = max(target or 0, now)
        self._looked_s = monotonic()
        if not limited:
            self._singly = False
            self._seen = self._now
            self._up_to_s = self._began_s
        if not limited and (peek.unseen or not peek.given):  # half of the time at most it reads its log over for us
            self.pause_s = max(self._source.poll_s, monotonic() - self._started_s)
        self._source.measured(peek.wal_bytes, peek.count)
        if target is None:
            await self._closed("COMMIT")
        elif not await self._go_behind(target):
            self._again = max(self._again, peek.count * (2 if limited else 1))
            return
        self._source.peek_timeout_s = self._source.first_timeout_s
        if target is not None and self._source.may_shorten and self._nearer.is_due(target):
            self._source.may_shorten = await self._nearer.ask(target)
            self._advanced -= 2 * IDLE_ADVANCE_BYTES  # and pass it by at once

    @property
    def rests(self) -> bool:
        """Whether somebody had locked the row of the slot just now, so that nothing is written there for a while."""
        return monotonic() < self._rests_until_s

    def rest(self, what: str) -> None:
        """Somebody has locked the row of the slot, which was to be written for this."""
        self._rests_until_s = monotonic() + table_locks.REST_S
        self.refusals.refused(what)

    async def _go_behind(self, target: int) -> bool:
        """End the peek, and advance the slot; returns whether it is. It is not while its row is locked, or doubts are
        not stored: what comes next is taken all the same, and what is done is passed over by each peek."""
        self._target = target
        if self.rests or self._source.mending.has_new_doubts:
            await self._closed("COMMIT")
            return False
        try:
            self._advanced = target
            await self._closed(advance(self._names.slot, target))
        except locks.LOCKED:
            await self._main.execute("ROLLBACK")
            self.rest("advance")
            return False
        self.refusals.passed("advance")
        self._target = None
        self._source.older.went(target)
        return True

    async def _closed(self, sql: str) -> None:
        """End the peek and its transaction. What it has passed over, as nobody sees it yet, is remembered however it
        ends: behind it more may be done already."""
        peek, self.peek = self.peek, None
        if peek is not None:
            self.passed.heard(peek.unseen, NO_TRANSACTION, monotonic())
            await peek.slices.drop_ahead()
        try:
            # To advance is to read the log once more, from where the oldest open transaction began.
            status = await self._main.execute(sql, timeout=self._source.peek_timeout_s)
        except TimeoutError:
            self._source.longer()
            raise
        except asyncpg.ObjectInUseError:
            self._seen = ""  # it is told once more, also where nobody writes
        else:
            if status == "SELECT 0":
                raise Swallowed(SLOTS)
