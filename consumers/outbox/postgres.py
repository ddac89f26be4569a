"""An outbox in PostgreSQL. Rows are taken in a transaction, and deleted when it commits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from cachebus.base.clock import monotonic
from cachebus.consumers.outbox import standing, vacuum
from cachebus.consumers.outbox.database import TROUBLE, connected, describe
from cachebus.consumers.outbox.letting import Letting, Refused, Resting
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import PostgresTaker
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session, Source
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

IDLE_GRACE_S: Final = 5.0
Asked = tuple[str, Sequence[Item], tuple[Any, ...]]
ROW_POISON: Final = (ValueError, TypeError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
KEPT: Final = "INSERT 0 1"


class Known(Resting):
    """What a relay knows over all connections."""

    oid: int | None = None
    """The number of the table that rows were last taken from."""
    identity: Callable[[], str] = staticmethod(lambda: "")
    """See `Source.identity`."""


class PostgresOutbox(Source):
    """The rows of one namespace in one table."""

    part = "database"
    trouble = (*TROUBLE, Refused)
    poison = ROW_POISON
    assumptions = standing.ASSUMPTIONS

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        self._known = Known(self.again_s)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        self._known.identity = self.identity
        async with connected(self._url) as connection:
            session = PostgresSession(connection, self._namespace, self._options, self._known)
            await session.begin()
            yield session

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        if isinstance(error, Refused):
            return f"rows that were applied can't be removed, so they are taken again with care: {error}"
        return describe(error, self._url)


class PostgresSession(Session):
    """One connection to the outbox: see `Session`."""

    def __init__(
        self, connection: asyncpg.Connection, namespace: str, options: RelayOptions, known: Known | None = None
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._table = OutboxTable.of(options.table)
        self._options = options
        self._known = known or Known(PostgresOutbox.again_s)
        self._taker = PostgresTaker(connection, self._table, namespace, self._known)
        self._letting = Letting(connection, self._known)
        self._woken = asyncio.Event()
        self._rest_until_s = float("-inf")
        self._busy = asyncio.Lock()
        """Held while the connection is used: from when a batch is taken until it is let go of."""
        self._transaction: Any = None
        self._served = ""
        self._stores = standing.Stores(connection)
        self._in_hand: dict[str, Item] = {}
        """By place."""
        self._buried = set[int]()
        """Ids of those in hand that were set aside."""

    async def begin(self) -> None:
        """Have the database free the rows in hand if this process falls silent, and notify it of new rows."""
        idle_limit_ms = int((self._options.hold_s + IDLE_GRACE_S) * 1000)
        await self._connection.execute(_SESSION.format(idle_limit_ms=idle_limit_ms))
        self._served = await standing.serve(self._connection, self._table, self._namespace, "")
        self._connection.add_termination_listener(lambda _: self._woken.set())
        await self._connection.add_listener(self._table.channel, lambda *_: self._woken.set())

    # -- rows -----------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        if not await self._is_time(away):
            return Batch()
        self._woken.clear()
        await self._busy.acquire()
        try:
            rows = await self._taken(limit, away)
        except BaseException:
            self._busy.release()
            raise
        if not rows:
            self._busy.release()
            self._rest_until_s = monotonic() + self._options.poll_interval_s
            return Batch()
        self._rest_until_s = float("-inf")
        items = [Item(f"row {row[2]}", row, row[5], row[2] in self._known.unsure) for row in rows]
        self._in_hand, self._buried = {item.place: item for item in items}, set()
        if len(self._in_hand) < len(items):  # of parts of a table that were others before
            for item in items:
                item.place = f"row {item.raw[2]} at {item.raw[0]} {item.raw[1]}"
            self._in_hand = {item.place: item for item in items}
        return Batch(items, len(items) == limit)

    async def _is_time(self, away: Collection[int]) -> bool:
        """Whether there may be rows. Waits a little if there are hardly any."""
        rest_s = self._rest_until_s - monotonic()
        if rest_s <= 0 or self._woken.is_set() or self._taker.some_may_go(away):
            return True
        try:
            async with asyncio.timeout(min(rest_s, POLL_S)):
                await self._woken.wait()
        except TimeoutError:
            return rest_s <= POLL_S
        return True

    async def _taken(self, limit: int, away: Collection[int]) -> list[Any]:
        """Rows, in a transaction that has locked them; without rows there is no transaction."""
        while True:
            self._transaction = self._connection.transaction(isolation="read_committed", readonly=False)
            await self._transaction.start()
            try:
                rows = await self._taker.rows(limit, away)
            except (UnicodeDecodeError, asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError):
                # One of them is in no encoding: fewer together, until it is alone, and then as it is.
                await self._transaction.rollback()
                if limit == 1 and self._taker.as_bytes:
                    raise
                self._taker.as_bytes, limit = limit == 1, max(1, limit // 2)
                continue
            self._taker.as_bytes = False
            if not rows:
                await self._transaction.rollback()
            return rows

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        command = item.raw[3]
        if command is None:
            raise ValueError(f"it is longer than {LARGEST_BYTES} bytes")
        return Meaning((command,))

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`. The payload stays in the database."""
        return DeadLetter(b"?", reason, item.place, item.raw[6])

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        async with self._connection.transaction():
            for letter in letters:
                row = self._in_hand[letter.source].raw
                self._buried.add(row[2])
                if row[2] in self._known.buried:
                    continue
                done = await self._connection.execute(
                    _BURY.format(t=self._table), row[0], row[1], letter.reason, bool(letter.payload)
                )
                if done != KEPT:
                    await self._connection.reload_schema_state()  # prepared under a rule it stays nothing
                    raise RuntimeError("the table of the dead takes no rows, and says nothing: by a trigger, or a rule")

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        kept = {id(item) for item in left.undone}
        put_back: dict[int, list[Item]] = defaultdict(list)
        for waiting in left.waiting:
            kept.add(id(waiting.item))
            if waiting.item.raw[4] not in waiting.shards:
                put_back[min(waiting.shards)].append(waiting.item)
        later = [one.item for one in left.not_set_aside if id(one.item) not in kept]
        kept.update(map(id, later))
        gone = [item for item in batch.items if id(item) not in kept]
        self._known.unsure.update(item.raw[2] for item in gone)
        self._taker.shards.update(put_back)
        asked: list[Asked] = [(_WAITS, items, (shard,)) for shard, items in put_back.items()]
        asked += [(_LATER, later, (PostgresOutbox.again_s,)), (_DELETE, gone, ())]
        stuck = await self._acknowledge(
            [(sql.format(t=self._table), items, more) for sql, items, more in asked if items]
        )
        await self._letting.commit(self._transaction)
        self._known.done((item.raw[2] for item in gone), stuck)
        self._known.buried.update(stuck.intersection(self._buried))
        self._in_hand.clear()
        self._busy.release()

    async def _acknowledge(self, asked: Sequence[Asked]) -> set[int]:
        """Run each statement for its rows; returns the ids of those that the database keeps, which rest."""
        if not self._known.careful:
            await self._letting.all_of(asked)
            return set()
        left: list[Item] = []
        for sql, items, more in asked:
            left += await self._letting.careful(sql, items, *more)
        if left:
            unmarked = await self._letting.careful(_LATER.format(t=self._table), left, PostgresOutbox.again_s)
            self._known.keep([item.raw[2] for item in unmarked])
        return {item.raw[2] for item in left}

    # -- how it stands -----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._busy:
            self._served = await standing.serve(self._connection, self._table, self._namespace, self._served)
            findings, oid = await standing.findings(self._connection, self._table, self._namespace, self._known.oid)
            self._known.oid = oid
            if any(finding.stops for finding in findings):
                return Look(findings)
            served = f"{self._namespace} {self._served}"
            findings += await self._stores.findings(self._table, served, self._known.identity())
            findings += await standing.of_removal(self._connection, self._table, self._known)
            findings += await vacuum.findings(self._connection, self._table)
            waits = await self._taker.waits()
        return Look(findings, waits.backlog, waits.oldest_s, waits.latest_s, waits.held)

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        for finding in findings:
            if finding.over:  # the table that was there when this was found: by now it may be another
                self._known.oid = int(finding.state)


# A relay reads the head of an index, however the table's statistics look to the planner: they are made when the table
# happens to be full, or empty.
_SESSION: Final = """\
SET application_name = 'cachebus outbox'; SET idle_in_transaction_session_timeout = {idle_limit_ms};
SET enable_seqscan = off; SET enable_bitmapscan = off"""

# A row is where its part of the table has it, until the transaction ends that has locked it.
_DELETE: Final = "DELETE FROM {t.rows} WHERE tableoid = $1 AND ctid = ANY($2::tid[])"
_WAITS: Final = "UPDATE {t.rows} SET waits_for = $3 WHERE tableoid = $1 AND ctid = ANY($2::tid[])"
_LATER: Final = """\
UPDATE {t.rows} SET due_at = clock_timestamp() + make_interval(secs => $3)
WHERE tableoid = $1 AND ctid = ANY($2::tid[])"""

# All of it stays where it is: nothing in it can be too old or too odd for a way to here and back. Of what would take
# the database longer to copy than anybody waits, the beginning is enough.
_BURY: Final = """\
INSERT INTO {t.dead} (namespace, row_id, command, reason, attempts, created_at)
SELECT namespace, id,
    CASE WHEN NOT $4 THEN '' WHEN octet_length(command) > 16777216 THEN left(command, 1000) ELSE command END,
    $3, least(attempts::bigint + 1, 2147483647), created_at
FROM {t.rows} WHERE tableoid = $1 AND ctid = $2"""
