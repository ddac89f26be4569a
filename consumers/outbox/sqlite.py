"""An outbox in SQLite. No transaction is open while rows are applied, since writers would wait for it. Rows are deleted
afterwards, by their ids and what they were: a table that was made anew, or restored, gives its ids again."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.outbox import dead, inserts
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import COUNTED, Kind, Taker, Waits
from cachebus.consumers.outbox.rows import OutboxSession, SqliteRow
from cachebus.consumers.outbox.sqlite_file import (
    TROUBLE,
    CheckedStatement,
    Database,
    changed,
    describe,
    kept,
    opened,
    path_of,
)
from cachebus.consumers.outbox.sqlite_standing import ASSUMPTIONS, Standing
from cachebus.consumers.outbox.waiting import RestingRow
from cachebus.consumers.worker import commands
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import (
    POLL_S,
    SENT_FROM_S,
    Batch,
    Finding,
    Item,
    Left,
    Look,
    Meaning,
    Session,
    Source,
)
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

ANEW: Final = "it was made anew, or an older state of it came back: rows that it still had may be gone"
POISON: Final = (ValueError, TypeError, OverflowError, sqlite3.IntegrityError, sqlite3.DataError)


async def create_tables(url: str, table: str) -> None:
    """Create the file, and missing tables of the outbox."""
    statements = OutboxTable.of(table).sqlite_statements()
    async with opened(url, create=True) as database:
        await database.whole(lambda connection: [connection.execute(sql) for sql in statements])


async def replay(url: str, namespace: str, table: str, limit: int | None) -> int:
    """Move dead letters back into the outbox, the oldest first; returns how many."""
    where = OutboxTable.of(table)
    of = f"namespace = ? AND id IN (SELECT id FROM {where.dead} WHERE namespace = ? ORDER BY id LIMIT ?)"
    values = [(namespace, namespace, -1 if limit is None else limit)]
    columns = "namespace, command, created_at, attempts"
    back = f"INSERT INTO {where.rows} ({columns}) SELECT {columns} FROM {where.dead} WHERE {of} ORDER BY id"

    def moved(connection: sqlite3.Connection) -> int:
        there = connection.execute(f"SELECT count(*) FROM {where.dead} WHERE {of}", *values).fetchone()[0]
        put = changed(connection, back, values)
        gone = changed(connection, f"DELETE FROM {where.dead} WHERE {of}", values)
        if not put == gone == there:
            raise ConfigError("a trigger keeps rows out of the outbox, or in the table of the dead: nothing was moved")
        return put

    async with opened(url) as database:
        return await database.whole(moved)


async def dead_elsewhere(url: str, namespace: str, table: str) -> list[str]:
    """The other namespaces that have dead letters."""
    where = OutboxTable.of(table)
    async with opened(url) as database:
        found = await database.fetch(f"SELECT DISTINCT namespace FROM {where.dead} WHERE namespace <> ?", namespace)
        return sorted(name.decode("utf-8", "replace") for (name,) in found if isinstance(name, bytes))


class SqliteKnowledge(Resting):
    """What a relay knows of its rows, over all connections."""

    def __init__(self, again_s: float) -> None:
        super().__init__(again_s)
        self.last_id = 0
        """The largest id that the table has ever given, as far as was seen."""
        self.warnings = inserts.Warnings()
        self.checks = False
        """Whether it is no relay, but a check."""


class SqliteOutbox(Source):
    """The rows of one namespace in one table of a file."""

    part = "database"
    trouble = TROUBLE
    poison = POISON
    assumptions = ASSUMPTIONS

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        path_of(url)
        table = OutboxTable.of(options.table)
        table.sqlite_statements()
        self.letters_at = f"the table {table.dead}"
        self.options, self.variables = options.found_by(namespace), (commands.DATABASE,)
        self._known = SqliteKnowledge(self.again_s)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        self._known.checks = self.checks_for is not None
        async with opened(self._url) as database:
            yield SqliteSession(database, self._namespace, self._options, self._known)

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        return describe(error)


class SqliteTaker(Taker[SqliteRow]):
    """Takes rows in SQLite, where two relays may take the same row."""

    def __init__(self, database: Database, table: OutboxTable, namespace: str, resting: Resting) -> None:
        super().__init__(resting)
        self._database = database
        self._table = table
        self._namespace = namespace
        self._has_odd = False
        """Whether there may be rows with text in the place of numbers."""

    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[SqliteRow]:
        if limit == 0:
            return []
        sql = f"{_HEAD}{_KINDS[kind]} LIMIT ?".format(
            t=self._table, shards=",".join(map(str, shards)), resting=",".join(map(str, self._resting.now))
        )
        return [SqliteRow(*row) for row in await self._database.fetch(sql, self._namespace, wall_s(), limit)]

    async def waits(self) -> Waits:
        """The rows that wait now, counted up to `COUNTED`."""
        values = (self._namespace, wall_s())
        ((due, since_s, first, last, held),) = await self._database.fetch(_WAITS.format(t=self._table), *values)
        rest, rests_since_s = await self._rest()
        ages_s = [wall_s() - each for each in (since_s, rests_since_s) if each is not None]
        oldest_s = max(0.0, *ages_s, self._resting.first_seen.age_s(first, last))
        shards = await self._database.fetch(_SHARDS.format(t=self._table), *[self._namespace] * 2)
        self.shards.update(shard for (shard,) in shards)
        ((odd,),) = await self._database.fetch(_ANY_ODD.format(t=self._table), self._namespace)
        self._has_odd = bool(odd)
        ((latest_s,),) = await self._database.fetch(_LATEST.format(t=self._table), *values)
        ahead_s = latest_s - wall_s() if isinstance(latest_s, int | float) else 0.0
        return Waits(due + rest, oldest_s, held, max(0.0, ahead_s))

    async def _rest(self) -> tuple[int, float | None]:
        """How many rows rest that this relay could neither apply nor set aside, and since when the first waits."""
        rows, now_s = self._resting.put_off.rows, wall_s()
        if not rows:
            return 0, None
        sql = _REST.format(t=self._table, ids=",".join(str(row.id) for row in rows))
        found = await self._database.fetch(sql, now_s, self._namespace, now_s + self._resting.again_s)
        return sum(rests for _, rests in found), self._resting.put_off.seen(number for number, _ in found)

    async def rows(self, limit: int, away: Collection[int]) -> list[SqliteRow]:
        """See `Taker.rows`. First come some rows whose columns have a type by which no index finds them."""
        odd: list[SqliteRow] = []
        if self._has_odd and not self._resting.too_many:
            resting = ",".join(map(str, self._resting.now))
            sql = _ODD.format(t=self._table, resting=resting)
            found = await self._database.fetch(sql, self._namespace, wall_s(), max(1, limit // 2))
            odd = [SqliteRow(*row) for row in found]
            self._has_odd = bool(odd)
        return odd + await super().rows(limit - len(odd), away) if len(odd) < limit else odd


class SqliteSession(OutboxSession):
    """One connection to the outbox: see `Session`."""

    def __init__(
        self, database: Database, namespace: str, options: RelayOptions, known: SqliteKnowledge | None = None
    ) -> None:
        self._database = database
        self._table = OutboxTable.of(options.table)
        self._namespace = namespace
        self._options = options
        self._known = known or SqliteKnowledge(SqliteOutbox.again_s)
        self._taker = SqliteTaker(database, self._table, namespace, self._known)
        self._standing = Standing(database, self._table, namespace)
        self._rest_until_s = float("-inf")
        self._in_hand: dict[str, Item] = {}
        self._is_full = False
        """Whether more may be due than what is in hand."""

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        rest_s = self._rest_until_s - monotonic()
        if rest_s > 0 and not self._taker.some_may_go(away):
            await asyncio.sleep(min(rest_s, POLL_S))
            if rest_s > POLL_S:
                return Batch(looked=False)
        if freed := self._known.freed():
            now_s = wall_s()
            values = [(now_s, number, now_s, now_s + SqliteOutbox.again_s) for number in freed]
            await self._database.whole(lambda connection: changed(connection, _NOW.format(t=self._table), values))
        rows = await self._taker.rows(limit, away)
        if not rows:
            self._known.work_time.looked(through=True)
        self._rest_until_s = float("-inf") if rows else monotonic() + self._options.poll_interval_s
        items = [Item(f"row {row.id}", row, row.since_s, row.id in self._known.unsure) for row in rows]
        self._in_hand = {item.place: item for item in items}
        self._is_full = len(items) == limit
        return Batch(items, self._is_full)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        row = _row(item)
        command = row.command
        if row.is_due_at_no_time:
            raise ValueError("due_at: it is neither a number of seconds nor a time")
        if command is None:
            raise ValueError(f"it is longer than {LARGEST_BYTES} bytes")
        if not isinstance(command, bytes):
            raise ValueError(f"command: it is no text, but of the type {type(command).__name__}")
        return Meaning((command,))

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`. The payload stays in the database."""
        return DeadLetter(b"?", reason, item.place, 1)

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`. Each row is moved in one transaction."""
        rows = [_row(self._in_hand[letter.source]).named for letter in letters]
        buried = [(bool(letter.payload), letter.reason, *row) for letter, row in zip(letters, rows, strict=True)]
        await self._database.whole(lambda connection: self._buried(connection, buried, rows))

    def _buried(
        self, connection: sqlite3.Connection, dead: Sequence[Sequence[Any]], rows: Sequence[Sequence[Any]]
    ) -> None:
        there = sum(bool(connection.execute(_IS_THERE.format(t=self._table), row).fetchone()) for row in rows)
        put = changed(connection, _BURY.format(t=self._table), dead)
        gone = changed(connection, _DELETE.sql.format(t=self._table), rows)
        if not put == gone == there:  # of others' the row may be gone already
            raise RuntimeError("a trigger keeps rows out of the table of the dead, or in that of the outbox")

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        left_there = {id(item) for item in left.undone} | {id(waiting.item) for waiting in left.waiting}
        waits = [
            (min(waiting.shards), *_row(waiting.item).named)
            for waiting in left.waiting
            if _row(waiting.item).waits_for not in waiting.shards
        ]
        later = [one.item for one in left.not_set_aside if id(one.item) not in left_there]
        left_there.update(map(id, later))
        gone = [_row(item) for item in batch.items if id(item) not in left_there]
        ids = [row.id for row in gone]
        self._known.unsure.update(ids)
        self._taker.shards.update(shard for shard, *_ in waits)
        asked: list[tuple[CheckedStatement, Sequence[Any]]] = [
            (_WAITING, waits),
            (_LATER, self._later(_row(item) for item in later)),
            (_DELETE, [row.named for row in gone]),
        ]
        stuck = await self._database.whole(lambda connection: self._kept(connection, asked))
        self._known.done(ids, stuck)
        for row in map(_row, later):
            self._known.put_off.note(row.id, RestingRow(row.id, -1, row.since_s or 0.0), wall_s())
        self._in_hand.clear()

    def _later(self, rows: Iterable[SqliteRow]) -> list[tuple[Any, ...]]:
        again_s = wall_s() + SqliteOutbox.again_s
        return [(again_s, *row.named) for row in rows]

    def _kept(
        self, connection: sqlite3.Connection, asked: Sequence[tuple[CheckedStatement, Sequence[Any]]]
    ) -> set[int]:
        """Run these changes; returns the ids of the rows that triggers keep as they were, which rest."""
        stuck: set[int] = set()
        self._known.work_time.looked(through=not self._is_full)
        for change, values in asked:
            stuck |= kept(connection, change.of(self._table), values)
        if stuck:
            self._known.refused()
            rows = (_row(item) for item in self._in_hand.values() if _row(item).id in stuck)
            unmarked = kept(connection, _LATER.of(self._table), self._later(rows))
            self._known.keep(unmarked)
            self._known.marked |= {number: number for number in stuck - unmarked}
        return stuck

    async def look(self) -> Look:
        """See `Session.look`."""
        if not await self._database.run(self._database.is_there):
            raise FileNotFoundError(errno.ENOENT, "another file is in its place")
        if self._known.checks:  # to read it tells not whether anybody may write
            await self._database.whole(lambda _: None)
        findings = await self._standing.findings()
        if any(finding.stops for finding in findings):
            return Look(findings)
        before, last_id = self._known.last_id, await self._standing.last_id()
        if last_id < before:
            findings.append(Finding("table", self._table.name, ANEW, missed=True, over=True, state=str(before)))
            self._known.anew()
        self._known.last_id = max(before, last_id)
        findings += await self._standing.of_removal(self._known)
        waits = await self._taker.waits()
        late = inserts.of_those_that_are_late(self._table.name, self._namespace, waits.latest_s, "0", _FAR)
        warnings = self._known.warnings.tell([*await self._standing.warnings(), *late])
        return Look(findings, waits.backlog, waits.oldest_s, waits.latest_s, waits.held, warnings)

    async def has_letters(self, within_s: float) -> bool | None:
        """See `Session.has_letters`."""
        return await dead.has_letters_in_file(self._database, self._table, self._namespace, within_s)

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        if any(finding.problem == ANEW for finding in findings):
            self._known.last_id = 0  # the next look sees what it is by now


def _row(item: Item) -> SqliteRow:
    row: SqliteRow = item.raw
    return row


_COMMAND: Final = f"CASE WHEN length(CAST(command AS BLOB)) <= {LARGEST_BYTES} THEN command END"
# Those of `SqliteRow`.
_COLUMNS: Final = f"""\
SELECT id, {_COMMAND}, created_at, due_at, waits_for,
    typeof(due_at) IN ('text', 'blob') AND julianday(due_at) IS NULL
FROM {{t.rows}}"""
_HEAD: Final = f"""\
{_COLUMNS} WHERE namespace = ? AND due_at <= ? AND id NOT IN ({{resting}}) AND """
_KINDS: Final[dict[Kind, str]] = {
    "due": "waits_for = -1 ORDER BY due_at, id",
    "fresh": "waits_for = -1 AND due_at = 0 ORDER BY due_at, id",
    "late": "waits_for = -1 AND due_at > 0 ORDER BY due_at, id",
    "held": "waits_for IN ({shards})",
}
# See `SqliteRow.named`. Text was read as bytes, which are equal to no text.
_IS_NAMED: Final = f"""\
CAST({_COMMAND} AS BLOB) IS CAST(? AS BLOB) AND CAST(created_at AS BLOB) IS CAST(? AS BLOB) AND id = ?"""
_IS_THERE: Final = f"SELECT 1 FROM {{t.rows}} WHERE {_IS_NAMED}"
# Columns have values of any type here: what is text, as `datetime('now')` is, or a blob, comes behind all numbers.
_IS_ODD: Final = """\
namespace = ? AND (waits_for = -1 AND due_at >= '' OR waits_for >= ''
    OR waits_for > -1 AND waits_for < '' AND typeof(waits_for) <> 'integer')"""
_ANY_ODD: Final = f"SELECT EXISTS (SELECT 1 FROM {{t.rows}} WHERE {_IS_ODD})"
_ODD: Final = f"""\
{_COLUMNS} WHERE {_IS_ODD} AND id NOT IN ({{resting}}) AND CASE WHEN typeof(due_at) IN ('text', 'blob')
    THEN coalesce((julianday(due_at) - 2440587.5) * 86400.0, 0) ELSE due_at END <= ? ORDER BY id LIMIT ?"""
_LATEST: Final = """\
SELECT max(due_at) FROM {t.rows} WHERE namespace = ? AND waits_for = -1 AND due_at > ? AND due_at < ''"""
_DELETE: Final = CheckedStatement(f"DELETE FROM {{t.rows}} WHERE {_IS_NAMED}", _IS_THERE)
_WAITING: Final = CheckedStatement(
    f"UPDATE {{t.rows}} SET waits_for = ? WHERE {_IS_NAMED}",
    f"SELECT 1 FROM {{t.rows}} WHERE waits_for IS NOT ? AND {_IS_NAMED}",
)
_LATER: Final = CheckedStatement(
    f"UPDATE {{t.rows}} SET due_at = ? WHERE {_IS_NAMED}",
    f"SELECT 1 FROM {{t.rows}} WHERE due_at IS NOT ? AND {_IS_NAMED}",
)
_FAR: Final = f"CAST(strftime('%s', 'now') AS INTEGER) + {inserts.FAR_S:.0f} AND due_at < ''"
# What rests in the table: no row that a writer wants later than that.
_NOW: Final = "UPDATE {t.rows} SET due_at = ? WHERE id = ? AND due_at > ? AND due_at <= ?"
_BURY: Final = f"""\
INSERT INTO {{t.dead}} (namespace, row_id, command, reason, attempts, created_at)
SELECT namespace, id, CASE WHEN ? THEN command ELSE '' END, ?,
    min(CAST(attempts AS INTEGER), 9007199254740992) + 1, created_at
FROM {{t.rows}} WHERE {_IS_NAMED}"""
# What was written at a time to come, or before this was, or at none, tells nobody since when it waits.
_SINCE: Final = f"""\
id, CASE WHEN typeof(created_at) IN ('integer', 'real') AND created_at <= (SELECT at FROM given)
    AND max(created_at, due_at) > {SENT_FROM_S} THEN max(created_at, due_at) END AS since
FROM {{t.rows}} WHERE namespace = (SELECT ns FROM given) AND due_at <= (SELECT at FROM given)"""
_WAITS: Final = f"""\
WITH given AS (SELECT ? AS ns, ? AS at),
due AS (SELECT {_SINCE} AND waits_for = -1 ORDER BY due_at, id LIMIT {COUNTED}),
held AS (SELECT {_SINCE} AND waits_for > -1 LIMIT {COUNTED}),
waits AS (SELECT * FROM due UNION ALL SELECT * FROM held)
SELECT count(*), CAST(min(since) AS REAL), min(CASE WHEN since IS NULL THEN id END),
    max(CASE WHEN since IS NULL THEN id END), (SELECT count(*) FROM held) FROM waits"""
_REST: Final = """\
SELECT id, due_at > ? FROM {t.rows}
WHERE namespace = ? AND due_at > 0 AND due_at <= ? AND id IN ({ids})"""
_SHARDS: Final = f"""\
SELECT DISTINCT waits_for FROM (
    SELECT waits_for FROM {{t.rows}} WHERE namespace = ? AND waits_for > -1 LIMIT {COUNTED})
WHERE typeof(waits_for) = 'integer'
UNION SELECT waits_for FROM (SELECT waits_for FROM {{t.rows}} WHERE namespace = ? AND waits_for < -1 LIMIT {COUNTED})"""
