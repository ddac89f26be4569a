"""An outbox in PostgreSQL: rows are taken in a transaction, and gone when that commits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from cachebus.base.clock import monotonic
from cachebus.consumers.outbox import standing
from cachebus.consumers.outbox.database import TROUBLE, connected, describe
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import PostgresTaker
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session, Source
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

IDLE_GRACE_S: Final = 5.0
AGAIN_S: Final = 60.0
"""So long a row lies that can be neither applied nor set aside."""
ROW_POISON: Final = (ValueError, TypeError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
NO_PLACE: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.NotNullViolationError,
    asyncpg.WrongObjectTypeError,
    asyncpg.DatatypeMismatchError,
)
"""There is no table of the dead as it is expected: what is for it lies where it is."""


@dataclass
class Known:
    """What a relay knows beyond one connection."""

    unsure: set[int] = field(default_factory=set)
    """Ids of rows that were applied and may not have been let go: they come again."""
    oid: int | None = None
    """Of the table that rows were last taken from."""
    swallowed_s: float = float("-inf")
    """When a dead letter was last not kept, nor refused."""


class _Swallowed(ValueError):
    """A dead letter is not there, though the database has refused nothing: a trigger, or a rule."""


class PostgresOutbox(Source):
    """Rows of one namespace in one table."""

    part = "database"
    trouble = TROUBLE
    poison = ROW_POISON
    assumptions = standing.ASSUMPTIONS

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        self._known = Known()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        async with connected(self._url) as connection:
            session = PostgresSession(connection, self._namespace, self._options, self._known)
            await session.begin()
            yield session

    def describe(self, error: BaseException) -> str:
        """See `Source.told`."""
        return describe(error, self._url)


class PostgresSession(Session):
    """One connection's; see `PostgresOutbox`."""

    def __init__(
        self, connection: asyncpg.Connection, namespace: str, options: RelayOptions, known: Known | None = None
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._table = OutboxTable.of(options.table)
        self._options = options
        self._known = known or Known()
        self._taker = PostgresTaker(connection, self._table, namespace)
        self._woken = asyncio.Event()
        self._rest_until_s = float("-inf")
        self._busy = asyncio.Lock()
        """Held while the connection is used: from when a batch is taken until it is let go of."""
        self._transaction: Any = None
        self._in_hand: dict[str, Item] = {}
        """By place."""
        self._unburied: set[str] = set()
        """Places of what there is no table of the dead for."""

    async def begin(self) -> None:
        """Have the database free what this process has in hand when nothing is heard of it, and tell of new rows."""
        idle_limit_ms = int((self._options.hold_s + IDLE_GRACE_S) * 1000)
        await self._connection.execute(_SESSION.format(idle_limit_ms=idle_limit_ms))
        await self._connection.execute(_SERVED, standing.LOCK, self._namespace)
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
        self._in_hand = {item.place: item for item in items}
        if len(self._in_hand) < len(items):  # of parts of a table that were others before
            for item in items:
                item.place = f"row {item.raw[2]} at {item.raw[0]} {item.raw[1]}"
            self._in_hand = {item.place: item for item in items}
        return Batch(items, len(items) == limit)

    async def _is_time(self, away: Collection[int]) -> bool:
        """Whether there may be rows; waits a little where there are hardly any."""
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
        """Rows, with a transaction that has them; none, without."""
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
        """See `Session.letter`; what is in it stays in the database."""
        return DeadLetter(b"?", reason, item.place, item.raw[6])

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.bury`."""
        try:
            async with self._connection.transaction():
                for letter in letters:
                    row = self._in_hand[letter.source].raw
                    status = await self._connection.execute(
                        _BURY.format(t=self._table), row[0], row[1], letter.reason, bool(letter.payload)
                    )
                    if status != "INSERT 0 1":
                        raise _Swallowed
        except NO_PLACE:
            self._unburied.update(letter.source for letter in letters)
        except ROW_POISON as error:
            if len(letters) > 1 or letters[0].payload:
                raise  # each by itself, and then without what is in it
            self._unburied.add(letters[0].source)
            if isinstance(error, _Swallowed):
                self._known.swallowed_s = monotonic()
                await self._connection.reload_schema_state()  # prepared under a rule it stays nothing

    async def let_go(self, batch: Batch, left: Left) -> None:
        """See `Session.let_go`."""
        kept = {id(item) for item in left.undone}
        put_back: dict[int, list[Item]] = defaultdict(list)
        for waiting in left.waiting:
            kept.add(id(waiting.item))
            if waiting.item.raw[4] not in waiting.shards:
                put_back[min(waiting.shards)].append(waiting.item)
        later = [item for item in batch.items if item.place in self._unburied and id(item) not in kept]
        kept.update(map(id, later))
        gone = [item for item in batch.items if id(item) not in kept]
        self._known.unsure.update(item.raw[2] for item in gone)
        for shard, items in put_back.items():
            self._taker.shards.add(shard)
            await self._each(_WAITS.format(t=self._table), items, shard)
        await self._each(_LATER.format(t=self._table), later, AGAIN_S)
        await self._each(_DELETE.format(t=self._table), gone)
        await self._transaction.commit()
        self._known.unsure.clear()
        self._unburied.clear()
        self._in_hand.clear()
        self._busy.release()

    async def _each(self, sql: str, items: Iterable[Item], *more: Any) -> None:
        """A statement for these rows of each part of the table."""
        parts: dict[int, list[Any]] = defaultdict(list)
        for item in items:
            parts[item.raw[0]].append(item.raw[1])
        for part, places in parts.items():
            await self._connection.execute(sql, part, places, *more)

    # -- how it stands -----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._busy:
            findings, oid = await standing.findings(self._connection, self._table, self._namespace, self._known.oid)
            self._known.oid = oid
            if monotonic() - self._known.swallowed_s < 2 * AGAIN_S:  # by then it was tried again
                findings += await standing.swallowing(self._connection, self._table)
            if any(finding.stops for finding in findings):
                return Look(findings)
            waits = await self._taker.waits()
        return Look(findings, waits.backlog, waits.oldest_s, waits.held)

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        if any(finding.over for finding in findings):
            self._known.oid = None


# A relay reads the head of an index, however the table's statistics look to the planner: they are made when the table
# happens to be full, or empty.
_SESSION: Final = """\
SET application_name = 'cachebus outbox'; SET idle_in_transaction_session_timeout = {idle_limit_ms};
SET enable_seqscan = off; SET enable_bitmapscan = off"""

_SERVED: Final = "SELECT pg_try_advisory_lock_shared($1::int, hashtext($2))"

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
