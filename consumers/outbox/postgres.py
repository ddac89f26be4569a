"""An outbox in PostgreSQL. Rows are taken in a transaction, and deleted when it commits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.outbox import database, dead, inserts, letting, locked, serving, standing, vacuum
from cachebus.consumers.outbox.database import TROUBLE, connected, describe
from cachebus.consumers.outbox.elsewhere import RowsElsewhere
from cachebus.consumers.outbox.knowledge import RelayKnowledge
from cachebus.consumers.outbox.letting import Letting, RowsKept
from cachebus.consumers.outbox.locked import APPLICATION, Locked
from cachebus.consumers.outbox.memory import Memories
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import PostgresTaker
from cachebus.consumers.outbox.rows import OutboxSession, PostgresRow, RowName
from cachebus.consumers.outbox.waiting import RestingRow
from cachebus.consumers.worker import commands, table_locks
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import (
    POLL_S,
    Batch,
    Finding,
    Item,
    Left,
    Look,
    Meaning,
    NotStored,
    Session,
    Source,
)
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

IDLE_GRACE_S: Final = 5.0
Asked = tuple[str, Sequence[Item], tuple[Any, ...]]
ROW_POISON: Final = (ValueError, TypeError, asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)


class PostgresOutbox(Source):
    """The rows of one namespace in one table."""

    part = "database"
    trouble = (*TROUBLE, RowsKept)
    poison = ROW_POISON
    assumptions = standing.ASSUMPTIONS

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        self._known = RelayKnowledge(self.again_s)
        self.letters_at = f"the table {OutboxTable.of(options.table).dead}"
        self.options, self.variables = options.found_by(namespace), (commands.DATABASE,)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        self._known.identity, self._known.checks = self.identity, self.checks_for is not None
        self._known.strangers.follows = None if self._known.checks else self.followed
        known, timeout_s = self._known, self._known.patience * database.COMMAND_TIMEOUT_S
        async with connected(self._url, timeout_s) as connection:
            session = PostgresSession(connection, self._namespace, self._options, known)
            try:
                await session.begin()
                yield session
            except TimeoutError:
                known.patience = min(2 * known.patience, database.PATIENCE_MOST)
                raise

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        if isinstance(error, RowsKept):
            return f"rows that were applied can't be removed, so they are taken again with care: {error}"
        return describe(error, self._url, self._options.table)


class PostgresSession(OutboxSession):
    """One connection to the outbox: see `Session`."""

    def __init__(
        self, connection: asyncpg.Connection, namespace: str, options: RelayOptions, known: RelayKnowledge | None = None
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._table = OutboxTable.of(options.table)
        self._options = options
        self._known = known or RelayKnowledge(PostgresOutbox.again_s)
        self._taker = PostgresTaker(connection, self._table, namespace, self._known)
        self._letting = Letting(connection, self._known)
        self._woken = asyncio.Event()
        self._rest_until_s = float("-inf")
        self._busy = asyncio.Lock()
        """Held while the connection is used: from when a batch is taken until it is let go of."""
        self._transaction: Any = None
        self._served = ""
        self._memories = Memories(connection, self._table, namespace, self._known.doubts)
        self._stores = serving.Stores(connection, self._table, self._memories, self._known.strangers)
        self._elsewhere = RowsElsewhere(connection, self._table, namespace)
        self._locked = Locked(connection, self._table, namespace, self._memories, self._known.work_time)
        self._in_hand: dict[str, Item] = {}
        """By place."""
        self._buried: set[RowName] = set()
        """Those in hand that were set aside."""

    async def begin(self) -> None:
        """Have the database free the rows in hand if this process falls silent, and notify it of new rows. Of a check
        others are not told: it takes none."""
        idle_limit_ms = int((self._options.hold_s + IDLE_GRACE_S) * 1000)
        await self._connection.execute(_SESSION.format(idle_limit_ms=idle_limit_ms))
        self._served = await self._serve()
        self._connection.add_termination_listener(lambda _: self._woken.set())
        await self._connection.add_listener(self._table.channel, lambda *_: self._woken.set())

    async def _serve(self) -> str:
        shown = not self._known.checks
        return await serving.serve(self._connection, self._table, self._namespace, self._served, shown=shown)

    # -- rows -----------------------------------------------------------------------------------------------------

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        if not await self._is_time(away):
            return Batch(looked=False)
        self._woken.clear()
        await self._busy.acquire()
        try:
            identity = self._known.identity()
            first = not self._stores.takes(self._what(), identity)
            asks = first or not identity
            may = not asks or await self._stores.may_take(self._what(), identity, self._known.oid)
            if may and (freed := self._known.freed()):
                ids, due_s = zip(*freed, strict=True)
                await self._connection.execute(letting.NOW.format(t=self._table), self._namespace, ids, due_s)
            rows = await self._taken(limit, away) if may else []
            self._known.work_time.looked(through=len(rows) < limit)
            self._locked.refusals.passed("take")
        except table_locks.LOCKED:  # the look says by whom
            self._busy.release()
            self._waited("take")
            return Batch(looked=False)
        except BaseException:
            self._busy.release()
            raise
        if not rows:
            self._busy.release()
            self.look_again = first
            self._rest_until_s = monotonic() + self._options.poll_interval_s
            return Batch()
        self._rest_until_s = float("-inf")
        items = [Item(f"row {row.id}", row, row.since_s, row.named in self._known.unsure) for row in rows]
        self._in_hand, self._buried = {item.place: item for item in items}, set()
        if len(self._in_hand) < len(items):  # of a table that was restored, or its parts were others before
            for item, row in zip(items, rows, strict=True):
                item.place = f"row {row.id} at {row.part} {row.place}"
            self._in_hand = {item.place: item for item in items}
        return Batch(items, len(items) == limit)

    def _what(self) -> str:
        return f"{self._namespace} {self._served}"

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

    async def _taken(self, limit: int, away: Collection[int]) -> list[PostgresRow]:
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
            except table_locks.LOCKED:
                await self._transaction.rollback()
                raise
            self._taker.as_bytes = False
            if not rows:
                await self._transaction.rollback()
            return rows

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        command = _row(item).command
        if command is None:
            raise ValueError(f"it is longer than {LARGEST_BYTES} bytes")
        return Meaning((command,))

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`. The payload stays in the database."""
        return DeadLetter(b"?", reason, item.place, _row(item).attempts)

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        rows = [_row(self._in_hand[letter.source]) for letter in letters]
        try:
            async with self._connection.transaction():
                for letter, row in zip(letters, rows, strict=True):
                    if row.named not in self._known.buried:
                        await dead.bury(self._connection, self._table, letter, row)
            self._locked.refusals.passed("set aside")
        except table_locks.LOCKED:
            self._locked.refusals.refused("set aside")
            self.look_again = True
            raise
        self._buried.update(row.named for row in rows)  # only now: what fails leaves none of them behind

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        kept = {id(item) for item in left.undone}
        put_back: dict[int, list[Item]] = defaultdict(list)
        for waiting in left.waiting:
            kept.add(id(waiting.item))
            if _row(waiting.item).waits_for not in waiting.shards:
                put_back[min(waiting.shards)].append(waiting.item)
        later = [one.item for one in left.not_set_aside if id(one.item) not in kept]
        kept.update(map(id, later))
        gone = [item for item in batch.items if id(item) not in kept]
        names = [_row(item).named for item in gone]
        self._known.unsure.update(names)
        self._taker.shards.update(put_back)
        asked: list[Asked] = [(letting.WAITS, items, (shard,)) for shard, items in put_back.items()]
        asked += [(letting.LATER, later, (PostgresOutbox.again_s,)), (letting.DELETE, gone, ())]
        try:
            stuck = await self._acknowledge(
                [(sql.format(t=self._table), items, more) for sql, items, more in asked if items]
            )
            await self._letting.commit(self._transaction)
        except table_locks.LOCKED:  # they come again
            await self._transaction.rollback()
            self._waited("acknowledge")
        else:
            self._locked.refusals.passed("acknowledge")
            self._known.done(names, stuck)
            for row in map(_row, later):
                self._known.put_off.note(row.named, RestingRow(row.id, row.waits_for, row.since_s), wall_s())
            self._known.buried.update(self._buried & stuck)
        self._in_hand.clear()
        self._busy.release()

    def _waited(self, what: str) -> None:
        """A table is locked: nothing is taken for a while, and a look says by whom."""
        self._locked.refusals.refused(what)
        self.look_again = True
        self._rest_until_s = monotonic() + table_locks.REST_S

    async def _acknowledge(self, asked: Sequence[Asked]) -> set[RowName]:
        """Run each statement for its rows; returns the names of those that the database keeps, which rest."""
        if not self._known.careful:
            await self._letting.all_of(asked)
            return set()
        left: list[Item] = []
        for sql, items, more in asked:
            left += (await self._letting.careful(sql, items, *more)).kept
        if left:
            marked = await self._letting.careful(letting.LATER.format(t=self._table), left, PostgresOutbox.again_s)
            self._known.keep(_row(item).key for item in marked.kept)
            for item in left:
                if (due_s := marked.due_s.get(id(item))) is not None:
                    self._known.marked[_row(item).named] = _row(item).id, due_s
        return {_row(item).named for item in left}

    # -- how it stands -----------------------------------------------------------------------------------------------

    async def look(self) -> Look:
        """See `Session.look`."""
        async with self._busy:
            began_s = monotonic()
            try:
                found = await self._stands()
                if monotonic() - began_s < database.COMMAND_TIMEOUT_S / 2:
                    self._known.patience = 1
                self._known.note(found.findings)
                return found
            except table_locks.LOCKED:
                self._locked.refusals.waited = True
                lockers = await self._locked.of_tables()
                self.look_again = not lockers
                in_the_way = lockers or [Finding(locked.ASSUMPTION, self._table.rows, locked.OVER)]
                return Look([*in_the_way, *self._known.found, *self._known.swallowing])

    async def _stands(self) -> Look:
        self._served = await self._serve()
        unremembered = await self._memories.findings()
        memory = await self._memories.read()
        if self._known.oid is None and memory is not None:
            self._known.oid = memory.oid or None
        before = self._known.oid
        findings, self._known.oid = await standing.findings(
            self._connection, self._table, self._elsewhere, self._known.oid
        )
        findings += unremembered
        if any(finding.stops for finding in findings):
            return Look([*findings, *await self._of_removal(findings), *self._known.swallowing])
        findings += await self._elsewhere.of_namespaces(self._served)
        findings += await self._elsewhere.of_others(self._served, before)
        findings += await self._stores.findings(self._what(), self._known.identity())
        if memory is not None and self._known.oid and self._stores.takes(self._what(), self._known.identity()):
            await self._memories.taken_from(self._known.oid)
        findings += await standing.of_removal(self._connection, self._table, self._known, findings)
        self._known.swallowing, warnings = await inserts.of_inserts(self._connection, self._table)
        findings += self._known.swallowing
        findings += await vacuum.findings(self._connection, self._table)
        findings += await self._locked.of_tables()
        waits = await self._taker.waits()
        if waits.backlog:
            findings += await self._locked.findings(once=self._known.checks)
        hidden = not waits.backlog and any(finding.assumption == "rights" for finding in findings)
        oldest_s = None if hidden else waits.oldest_s
        warnings += inserts.of_those_that_are_late(self._table.rows, self._namespace, waits.latest_s, *_FAR)
        told = self._known.warnings.tell([*warnings, *self._elsewhere.unread])
        return Look(findings, waits.backlog, oldest_s, waits.latest_s, waits.held, told)

    async def _of_removal(self, found: Sequence[Finding]) -> list[Finding]:
        """Where nothing may be taken: a right that is missing may be what has kept rows. Once it is there, the next
        look tries them again."""
        rights = [finding.remedy for finding in found if finding.assumption == "rights"]
        if not rights:
            return []
        try:
            return await standing.of_removal(self._connection, self._table, self._known, found)
        except asyncpg.InsufficientPrivilegeError:  # its schema may not be used
            self._known.suspect(rights)
            return []

    async def has_letters(self, within_s: float) -> bool | None:
        """See `Session.has_letters`."""
        async with self._busy:
            return await dead.has_letters(self._connection, self._table, self._namespace, within_s)

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`. It makes the table by which relays remember, where it may."""
        if self._memories.usable:
            return False
        async with self._busy:
            try:
                return await self._memories.make()
            except asyncpg.PostgresError:  # as a trigger may, that lets nobody make tables: the finding stays
                return False

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        for finding in findings:
            if finding.over and finding.assumption == "stores":
                async with self._busy:
                    try:
                        await self._stores.made_up(finding)
                        self._locked.refusals.passed("made up")
                    except table_locks.LOCKED:
                        self._locked.refusals.refused("made up")
                        raise NotStored from None
            elif finding.over:  # the table that was there when this was found: by now it may be another
                self._known.oid = int(finding.state)


def _row(item: Item) -> PostgresRow:
    row: PostgresRow = item.raw
    return row


# A relay reads the head of an index, however the table's statistics look to the planner: they are made when the table
# happens to be full, or empty.
_SESSION: Final = f"""\
SET application_name = '{APPLICATION}'; SET lock_timeout = '{table_locks.LONGEST}';
SET idle_in_transaction_session_timeout = {{idle_limit_ms}};
SET enable_seqscan = off; SET enable_bitmapscan = off"""
_FAR: Final = ("'-infinity'", f"clock_timestamp() + interval '{inserts.FAR_S:.0f} s'")
