"""An outbox in SQLite. No transaction is open while rows are applied, since writers would wait for it. Rows are deleted
afterwards, by ids that are given once."""

from __future__ import annotations

import asyncio
import errno
import math
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.outbox.letting import Resting
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import COUNTED, Kind, Taker, Waits
from cachebus.consumers.outbox.sqlite_file import TROUBLE, Change, Database, changed, describe, kept, opened, path_of
from cachebus.consumers.worker.clean import clean
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session, Source
from cachebus.errors import ConfigError
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

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


class SqliteOutbox(Source):
    """The rows of one namespace in one table of a file."""

    part = "database"
    trouble = TROUBLE
    poison = POISON
    assumptions = ("table", "columns", "removal")

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        path_of(url)
        OutboxTable.of(options.table).sqlite_statements()
        self._known = Resting(self.again_s)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        async with opened(self._url) as database:
            yield SqliteSession(database, self._namespace, self._options, self._known)

    def describe(self, error: BaseException) -> str:
        """See `Source.describe`."""
        return describe(error)


class SqliteTaker(Taker):
    """Takes rows in SQLite, where two relays may take the same row."""

    def __init__(self, database: Database, table: OutboxTable, namespace: str, resting: Resting) -> None:
        super().__init__(resting)
        self._database = database
        self._table = table
        self._namespace = namespace
        self._has_odd = False
        """Whether there may be rows with text in the place of numbers."""

    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[Any]:
        if limit == 0:
            return []
        sql = f"{_HEAD}{_KINDS[kind]} LIMIT ?".format(
            t=self._table,
            largest=LARGEST_BYTES,
            shards=",".join(map(str, shards)),
            resting=",".join(map(str, self._resting.ids)),
        )
        return await self._database.fetch(sql, self._namespace, wall_s(), limit)

    async def waits(self) -> Waits:
        """The rows that wait now, counted up to `COUNTED`."""
        values = (self._namespace, wall_s())
        ((due, due_s, held, held_s),) = await self._database.fetch(_WAITS.format(t=self._table), *values, *values)
        since_s = [each for each in (due_s, held_s) if isinstance(each, float) and math.isfinite(each)]
        shards = await self._database.fetch(_SHARDS.format(t=self._table), *[self._namespace] * 2)
        self.shards.update(shard for (shard,) in shards)
        ((odd,),) = await self._database.fetch(_ANY_ODD.format(t=self._table), self._namespace)
        self._has_odd = bool(odd)
        ((latest_s,),) = await self._database.fetch(_LATEST.format(t=self._table), *values)
        ahead_s = latest_s - wall_s() if isinstance(latest_s, int | float) else 0.0
        return Waits(due + held, max(0.0, wall_s() - min(since_s)) if since_s else 0.0, held, max(0.0, ahead_s))

    async def rows(self, limit: int, away: Collection[int]) -> list[Any]:
        """See `Taker.rows`. First come some rows whose columns have a type by which no index finds them."""
        odd: list[Any] = []
        if self._has_odd and not self._resting.too_many:
            resting = ",".join(map(str, self._resting.ids))
            sql = _ODD.format(t=self._table, largest=LARGEST_BYTES, resting=resting)
            odd = await self._database.fetch(sql, self._namespace, wall_s(), max(1, limit // 2))
            self._has_odd = bool(odd)
        return odd + await super().rows(limit - len(odd), away) if len(odd) < limit else odd


class SqliteSession(Session):
    """One connection to the outbox: see `Session`."""

    def __init__(self, database: Database, namespace: str, options: RelayOptions, known: Resting | None = None) -> None:
        self._database = database
        self._table = OutboxTable.of(options.table)
        self._options = options
        self._known = known or Resting(SqliteOutbox.again_s)
        self._taker = SqliteTaker(database, self._table, namespace, self._known)
        self._rest_until_s = float("-inf")
        self._in_hand: dict[str, Item] = {}

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        rest_s = self._rest_until_s - monotonic()
        if rest_s > 0 and not self._taker.some_may_go(away):
            await asyncio.sleep(min(rest_s, POLL_S))
            if rest_s > POLL_S:
                return Batch()
        rows = await self._taker.rows(limit, away)
        self._rest_until_s = float("-inf") if rows else monotonic() + self._options.poll_interval_s
        items = [Item(f"row {row[0]}", row, _since_s(row), row[0] in self._known.unsure) for row in rows]
        self._in_hand = {item.place: item for item in items}
        return Batch(items, len(items) == limit)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        command = item.raw[1]
        if item.raw[5]:
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
        ids = [self._in_hand[letter.source].raw[0] for letter in letters]
        rows = [(bool(letter.payload), letter.reason, number) for letter, number in zip(letters, ids, strict=True)]
        await self._database.whole(lambda connection: self._buried(connection, rows, ids))

    def _buried(
        self, connection: sqlite3.Connection, rows: Sequence[tuple[bool, str, int]], ids: Sequence[int]
    ) -> None:
        there = sum(bool(connection.execute(_IS_THERE.format(t=self._table), (one,)).fetchone()) for one in ids)
        put = changed(connection, _BURY.format(t=self._table), rows)
        gone = changed(connection, _DELETE.sql.format(t=self._table), [(number,) for number in ids])
        if not put == gone == there:  # of others' the row may be gone already
            raise RuntimeError("a trigger keeps rows out of the table of the dead, or in that of the outbox")

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        left_there = {id(item) for item in left.undone} | {id(waiting.item) for waiting in left.waiting}
        waits = [
            (min(waiting.shards), waiting.item.raw[0])
            for waiting in left.waiting
            if waiting.item.raw[4] not in waiting.shards
        ]
        later = [one.item for one in left.not_set_aside if id(one.item) not in left_there]
        left_there.update(map(id, later))
        gone = [item.raw[0] for item in batch.items if id(item) not in left_there]
        self._known.unsure.update(gone)
        self._taker.shards.update(shard for shard, _ in waits)
        asked: list[tuple[Change, Sequence[Any]]] = [
            (_WAITING, waits),
            (_LATER, self._later(item.raw[0] for item in later)),
            (_DELETE, [(number,) for number in gone]),
        ]
        stuck = await self._database.whole(lambda connection: self._kept(connection, asked))
        self._known.done(gone, stuck)
        self._in_hand.clear()

    def _later(self, ids: Iterable[int]) -> list[tuple[float, int]]:
        again_s = wall_s() + SqliteOutbox.again_s
        return [(again_s, number) for number in ids]

    def _kept(self, connection: sqlite3.Connection, asked: Sequence[tuple[Change, Sequence[Any]]]) -> set[int]:
        """Run these changes; returns the ids of the rows that triggers keep as they were, which rest."""
        stuck: set[int] = set()
        for change, values in asked:
            stuck |= kept(connection, change.of(self._table), values)
        if stuck:
            self._known.refused()
            self._known.keep(kept(connection, _LATER.of(self._table), self._later(stuck)))
        return stuck

    async def look(self) -> Look:
        """See `Session.look`."""
        if not await self._database.run(self._database.is_there):
            raise FileNotFoundError(errno.ENOENT, "another file is in its place")
        findings = await self._findings()
        if any(finding.stops for finding in findings):
            return Look(findings)
        if self._known.told:
            findings.append(await self._of_removal())
        waits = await self._taker.waits()
        return Look(findings, waits.backlog, waits.oldest_s, waits.latest_s, waits.held)

    async def _of_removal(self) -> Finding:
        triggers = await self._database.fetch(
            "SELECT name FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", self._table.name
        )
        names = [name.decode("utf-8", "replace").replace('"', '""') for (name,) in triggers]
        remedy = clean(" ".join(f'DROP TRIGGER "{name}";' for name in names))
        problem = "rows that were applied can't be removed, or marked: they come again and again"
        return Finding("removal", self._table.name, problem, remedy)

    async def _findings(self) -> list[Finding]:
        found: list[Finding] = []
        remedy = f"cachebus worker outbox --create-table --table {self._table.name}"
        for name, needed, stops in ((self._table.name, ROWS, True), (f"{self._table.name}_dead", DEAD, False)):
            made = await self._database.fetch("SELECT type, sql FROM sqlite_master WHERE name = ?", name)
            if not made or made[0][0] != b"table":
                found.append(Finding("table", name, "it is not there", remedy, stops=stops))
                continue
            there = await self._database.fetch("SELECT name FROM pragma_table_info(?)", name)
            found += [
                Finding("columns", f"{name}.{column}", "it is not there", f"{REMAKE}: {remedy}", stops=stops)
                for column in needed
                if (column.encode(),) not in there
            ]
            if stops and b"AUTOINCREMENT" not in made[0][1].upper():
                problem = "ids are given again: a new row may be taken for one that was applied"
                found.append(Finding("columns", f"{name}.id", problem, f"{REMAKE}: {remedy}", stops=True))
        return found


def _since_s(row: Sequence[Any]) -> float | None:
    """Since when the row is due, if that is a time."""
    times = [each for each in row[2:4] if isinstance(each, int | float)]
    return max(times) if len(times) == 2 else None


ROWS: Final = ("namespace", "id", "command", "created_at", "due_at", "attempts", "waits_for")
DEAD: Final = ("namespace", "row_id", "command", "reason", "attempts", "created_at")
REMAKE: Final = "make the table anew, with its rows"
_COLUMNS: Final = """\
SELECT id, CASE WHEN length(CAST(command AS BLOB)) <= {largest} THEN command END, created_at, due_at, waits_for,
    typeof(due_at) IN ('text', 'blob') AND julianday(due_at) IS NULL
FROM {t.rows}"""
_HEAD: Final = f"""\
{_COLUMNS} WHERE namespace = ? AND due_at <= ? AND id NOT IN ({{resting}}) AND """
_KINDS: Final[dict[Kind, str]] = {
    "due": "waits_for = -1 ORDER BY due_at, id",
    "fresh": "waits_for = -1 AND due_at = 0 ORDER BY due_at, id",
    "late": "waits_for = -1 AND due_at > 0 ORDER BY due_at, id",
    "held": "waits_for IN ({shards})",
}
_IS_THERE: Final = "SELECT 1 FROM {t.rows} WHERE id = ?"
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
_DELETE: Final = Change("DELETE FROM {t.rows} WHERE id = ?", _IS_THERE)
_WAITING: Final = Change(
    "UPDATE {t.rows} SET waits_for = ? WHERE id = ?", "SELECT 1 FROM {t.rows} WHERE waits_for IS NOT ? AND id = ?"
)
_LATER: Final = Change(
    "UPDATE {t.rows} SET due_at = ? WHERE id = ?", "SELECT 1 FROM {t.rows} WHERE due_at IS NOT ? AND id = ?"
)
_BURY: Final = """\
INSERT INTO {t.dead} (namespace, row_id, command, reason, attempts, created_at)
SELECT namespace, id, CASE WHEN ? THEN command ELSE '' END, ?,
    min(CAST(attempts AS INTEGER), 9007199254740992) + 1, created_at
FROM {t.rows} WHERE id = ?"""
_SINCE: Final = "max(created_at, due_at) AS since FROM {t.rows} WHERE namespace = ?"
_WAITS: Final = f"""\
SELECT d.n, d.since, h.n, h.since FROM
    (SELECT count(*) AS n, min(since) AS since FROM (
        SELECT {_SINCE} AND waits_for = -1 AND due_at <= ? ORDER BY due_at, id LIMIT {COUNTED})) AS d,
    (SELECT count(*) AS n, min(since) AS since FROM (
        SELECT {_SINCE} AND waits_for > -1 AND due_at <= ? LIMIT {COUNTED})) AS h"""
_SHARDS: Final = f"""\
SELECT DISTINCT waits_for FROM (
    SELECT waits_for FROM {{t.rows}} WHERE namespace = ? AND waits_for > -1 LIMIT {COUNTED})
WHERE typeof(waits_for) = 'integer'
UNION SELECT waits_for FROM (SELECT waits_for FROM {{t.rows}} WHERE namespace = ? AND waits_for < -1 LIMIT {COUNTED})"""
