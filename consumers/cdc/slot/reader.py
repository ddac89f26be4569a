"""Reads a slot over the connection that has its lock: peeks, and advances."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachebus.base.clock import monotonic, wall_s
from cachebus.base.log import logger
from cachebus.consumers.cdc.slot.catalogue import quoted
from cachebus.consumers.cdc.slot.encodings import python_name
from cachebus.consumers.cdc.slot.peek import PEEK, Change, PassedOver, Peek, Progress
from cachebus.consumers.cdc.slot.slot import literal
from cachebus.consumers.cdc.slot.storage import SLOTS, Swallowed, change, lsn_of, lsn_text
from cachebus.consumers.worker.source import Item

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource

NOW: Final = "SELECT pg_current_wal_flush_lsn()::text AS lsn, pg_current_snapshot()::text AS snapshot"
IDLE_ADVANCE_BYTES: Final = 1 << 20
"""If so much WAL has no changes for these rules, the slot is advanced all the same."""
SHORTEN_BYTES: Final = 1 << 18
"""If each peek must read so much WAL again, the server is asked for a nearer starting point."""
SHORTEN_EVERY_S: Final = 1.0
SHORTEN_MAX_S: Final = 15.0
"""The longest pause between two such requests. The server makes a starting point by itself as often."""
SHORTEN: Final = """
SELECT restart_lsn::text FROM pg_log_standby_snapshot(), pg_replication_slots WHERE slot_name = $1
"""
KEEP_S: Final = 1.0
FRESH_S: Final = 1.0
"""How long the result of a peek counts as current."""
HOLD_S: Final = 2.0
"""How long a transaction is held open until its changes are taken."""
SEEN_S: Final = 0.1
"""A commit is waited for no longer to be seen by others: what is behind it goes on then."""
TOO_LARGE: Final = "the server can't tell of a transaction, since something in it is too large as text"
TOO_LARGE_S: Final = 5.0
"""Between trials of what the server can't tell: each may take it gigabytes of memory."""
IN_NO_ENCODING: Final = (asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError)


LEAVE_OUT: Final = (
    "from then on publish the table without the large column (in PostgreSQL 15: ADD TABLE name (columns))"
)


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
        self._again = 0
        """How many rows will be told again by the next look, since the slot could not go behind them."""
        self._up_to_s: float | None = None
        """Unix time up to which all that was committed was told."""
        self._done_lsn = 0
        """Where the last change was that is done with."""
        self._now, self._seen, self._snapshot = "", "", ""
        """Up to where the server's log reached when it was looked at, and up to where it was looked through."""
        self._advanced = self._shortened = 0
        self._shorten_from_s, self._shorten_every_s = float("-inf"), SHORTEN_EVERY_S
        self._begins = ""
        """From where the server read when it was last asked for a nearer point."""
        self._started_s = self._began_s = self._looked_s = 0.0
        self._in_hand = False
        """Whether a slice is being applied."""
        self._idle_since_s = 0.0
        self.pause_s = 0.0
        """How long there is nothing to look for."""
        self._singly = False
        """Whether transactions are asked for one at a time: the server can't tell one of those that come next."""
        self.too_large = ""
        """What the server said of the next one, where it can't tell it and it may not be passed by."""
        self.in_use_s: float | None = None
        """Since when others use the slot."""
        self.waited_since_s: float | None = None
        """Since when another worker has the lock."""

    @property
    def is_idle(self) -> bool:
        """Whether all changes are done, by a recent peek."""
        heard = self.peek is None and self._now == self._seen and not self.passed.unseen
        return heard and monotonic() - self._looked_s < FRESH_S + self.pause_s

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
                    with suppress(asyncpg.PostgresError):
                        await self._main.fetchval(touch, *self._asked(1))
                        continue
                with suppress(asyncpg.InFailedSQLTransactionError):
                    await self._main.execute("SELECT 1")

    async def prepare(self) -> None:
        """Prepare the connection for peeks."""
        self._statement = await self._main.prepare(PEEK)

    async def leads(self) -> bool:
        """Whether this worker has the lock of the slot, which ends with the connection."""
        if not self._source.leading:
            name = f"cachebus-cdc {self._names.slot}"
            if not await self._main.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", name):
                if self.waited_since_s is None:
                    self.waited_since_s = monotonic()
                    logger.info("cdc: another worker follows the slot {}: standing by", self._names.slot)
                return False
            self._source.leads(True)
        return True

    async def begins(self, started_s: float) -> bool:
        """Begin a peek into the slot, if the log has grown since the last one."""
        now, self._looked_s = await self._main.fetchrow(NOW), monotonic()
        if now["lsn"] == self._seen and self.passed.are_unseen_by(now["snapshot"]):
            self.pause_s = self._source.poll_s
            if not self.passed.unseen:
                self._up_to_s = wall_s()
            return False
        self._now, self._snapshot, self._began_s = now["lsn"], now["snapshot"], wall_s()
        self._started_s = started_s
        peek = Peek(self._source.progress, self.passed, self._source.is_followed, self._encoding)
        asked = self._asked((1 if self._singly else self._source.batch) + self._again)
        try:
            await peek.begin(self._main, self._statement, asked, self._source.peek_timeout_s)
        except asyncpg.PostgresError:
            await self._main.execute("ROLLBACK")
            raise
        self.peek = peek
        return True

    def _asked(self, count: int) -> tuple[str, int, bytes]:
        return self._names.slot, count, quoted(self._names.publication).encode()

    async def some(self, limit: int) -> list[Item]:
        """The next changes of this peek. At its end, without changes, the slot is advanced behind it."""
        peek = self.peek
        assert peek is not None
        items: list[Item] = []
        try:
            while not items and not peek.over:
                rows = await peek.rows(limit)
                await self._visible(peek)
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
            if not _is_too_large(error):
                raise
            await self._closed("ROLLBACK")
            await self._pass_by_large(peek, error)
            return []
        self.in_use_s, self.too_large = None, ""
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
            self._snapshot = (await self._main.fetchrow(NOW))["snapshot"]
            seen, known = peek.seen_by(self._snapshot), peek.waited_for.union(self.passed.unseen.values())
            if seen or peek.xids <= known or monotonic() > until_s:
                peek.waited_for |= peek.xids
                return
            await asyncio.sleep(pause_s)
            pause_s = min(0.1, pause_s * 2)
        self._source.waits_for_commits = bool(self.passed.unseen)

    async def _pass_by(self) -> None:
        """Skip a time without a publication, which some servers can't decode. Its changes count as missed."""
        self.pause_s = 1.0
        if await self._main.fetchval("SELECT true FROM pg_publication WHERE pubname = $1", self._names.publication):
            self._source.losses += 1
            sql = f"UPDATE {SLOTS} SET whole = false WHERE slot = $1"
            await change(self._main, SLOTS, sql, self._names.slot)
            await self._closed(self._advance(lsn_of(self._now)))

    async def _pass_by_large(self, peek: Peek, error: asyncpg.PostgresError) -> None:
        """No server makes a text of more than a gigabyte, whoever asks. What comes before that transaction is told
        first, and waited for; then the log is passed by as missed, if rules name all that it may have touched."""
        if not self._singly or self.passed.unseen:
            self._singly, self.pause_s = True, self._source.poll_s if self._singly else 0.0
            return
        said = f"{type(error).__name__} ({error.sqlstate})"
        if self._source.names_all:
            logger.error(
                "cdc: {}: {}; it is passed by, and all is let go of that rules name; {}", TOO_LARGE, said, LEAVE_OUT
            )
            self._singly, self.too_large = False, ""
            await self._pass_by()
        else:
            self.too_large, self.pause_s = said, TOO_LARGE_S

    # -- letting go ---------------------------------------------------------------------------------------------------

    async def done(self, last: Change) -> None:
        """All changes up to this one are done."""
        peek = self.peek
        assert peek is not None
        self._in_hand, self._idle_since_s = False, monotonic()
        self._source.progress = Progress(last.transaction, last.number)
        self.passed.done(last)
        self._done_lsn = max(self._done_lsn, lsn_of(last.place))
        peek.first_at_s = last.sent_s or peek.first_at_s
        if peek.over:
            await self._heard(peek)

    async def left(self, first: Change) -> None:
        """All changes before this one are done. From this one on they are read once more."""
        peek = self.peek
        assert peek is not None
        self._in_hand = False
        self._source.progress = Progress(first.transaction, first.number - 1)
        self.passed.done_to = max(self.passed.done_to, (first.transaction, first.number - 1))
        await self._closed("COMMIT" if first.behind is None else self._advance(first.behind))

    async def _heard(self, peek: Peek) -> None:
        """The peek has ended: advance the slot behind it."""
        self._encoding = ""
        self.passed.heard(peek.unseen, monotonic())
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
        await self._closed("COMMIT" if target is None else self._advance(target))
        self._source.peek_timeout_s = self._source.first_timeout_s
        if target is not None:
            await self._shorten(target)

    def _advance(self, target: int) -> str:
        """Advance the slot. The new position is stored durably first; if that fails, the slot stays. If the slot is
        already beyond it, another worker was there."""
        slot, lsn = literal(self._names.slot), lsn_text(target)
        self._advanced = target
        others = "coalesce(slot_at.at > lsn, false)"
        return (
            f"COMMIT; BEGIN; UPDATE {SLOTS} SET lsn = greatest(lsn, '{lsn}'), whole = whole AND NOT {others}, "
            f"losses = losses + {others}::int FROM (SELECT max(confirmed_flush_lsn) AS at FROM pg_replication_slots "
            f"WHERE slot_name = {slot}) AS slot_at WHERE slot = {slot}; COMMIT; "
            f"SELECT pg_replication_slot_advance({slot}, '{lsn}') FROM {SLOTS} WHERE slot = {slot} AND lsn >= '{lsn}'"
        )

    async def _closed(self, sql: str) -> None:
        """End the peek and its transaction. What it has passed over, as nobody sees it yet, is remembered however it
        ends: behind it more may be done already."""
        if self.peek is not None:
            self.passed.heard(self.passed.unseen | self.peek.unseen, monotonic())
        self.peek = None
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

    async def _shorten(self, target: int) -> None:
        """Have the server log a point from which it may begin to decode. Otherwise each peek reads again what was
        written since the last such point, up to 15 seconds ago."""
        near = target - self._shortened < SHORTEN_BYTES or monotonic() < self._shorten_from_s
        if near or not self._source.may_shorten:
            return
        self._shortened = target
        try:
            begins = await self._main.fetchval(SHORTEN, self._names.slot)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            self._source.may_shorten = False
        else:
            helped, self._begins = begins != self._begins, begins  # it does not while an old transaction is open
            self._shorten_every_s = SHORTEN_EVERY_S if helped else min(SHORTEN_MAX_S, 2 * self._shorten_every_s)
            self._shorten_from_s = monotonic() + self._shorten_every_s
            self._advanced -= 2 * IDLE_ADVANCE_BYTES  # and pass it by at once


def _is_too_large(error: asyncpg.PostgresError) -> bool:
    """Whether the server would need a text, or memory for one, that is longer than it has any."""
    in_memory = isinstance(error, asyncpg.InternalServerError) and "memory alloc request" in str(error)
    return in_memory or isinstance(error, asyncpg.ProgramLimitExceededError)
