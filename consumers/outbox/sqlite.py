"""An outbox in SQLite. No transaction is open while rows are applied, since it would keep writers waiting: they are
removed after that, by numbers that are given once."""

from __future__ import annotations

import asyncio
import errno
import math
import sqlite3
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from cachebus.base.clock import monotonic, wall_s
from cachebus.consumers.outbox.options import RelayOptions
from cachebus.consumers.outbox.reading import COUNTED, Kind, Taker, Waits
from cachebus.consumers.outbox.sqlite_file import TROUBLE, Database, describe, opened, path_of
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import POLL_S, Batch, Finding, Item, Left, Look, Meaning, Session, Source
from cachebus.producers.outbox.table import LARGEST_BYTES, OutboxTable

AGAIN_S: Final = 60.0
POISON: Final = (ValueError, TypeError, OverflowError, sqlite3.IntegrityError, sqlite3.DataError)


async def create_tables(url: str, table: str) -> None:
    """Make the outbox's tables, and the file, where they are not there yet."""
    statements = OutboxTable.of(table).sqlite_statements()
    async with opened(url, create=True) as database:
        await database.change(*((sql, [()]) for sql in statements))


async def replay(url: str, namespace: str, table: str, limit: int | None) -> int:
    """Bring rows that were set aside back, the oldest first; how many came back."""
    where = OutboxTable.of(table)
    of = f"namespace = ? AND id IN (SELECT id FROM {where.dead} WHERE namespace = ? ORDER BY id LIMIT ?)"
    values = [(namespace, namespace, -1 if limit is None else limit)]
    columns = "namespace, command, created_at, attempts"
    async with opened(url) as database:
        return (
            await database.change(
                (
                    f"INSERT INTO {where.rows} ({columns}) SELECT {columns} FROM {where.dead} WHERE {of} ORDER BY id",
                    values,
                ),
                (f"DELETE FROM {where.dead} WHERE {of}", values),
            )
            // 2
        )


class SqliteOutbox(Source):
    """Rows of one namespace in one table of a file."""

    part = "database"
    trouble = TROUBLE
    poison = POISON
    assumptions = ("table", "columns")

    def __init__(self, url: str, namespace: str, options: RelayOptions) -> None:
        self.limit = options.batch
        self.hold_s = options.hold_s
        self._url = url
        self._namespace = namespace
        self._options = options
        path_of(url)
        OutboxTable.of(options.table).sqlite_statements()
        self._unsure: set[int] = set()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        async with opened(self._url) as database:
            yield SqliteSession(database, self._namespace, self._options, self._unsure)

    def describe(self, error: BaseException) -> str:
        """See `Source.told`."""
        return describe(error)


class SqliteTaker(Taker):
    """In SQLite, where two may take the same."""

    def __init__(self, database: Database, table: OutboxTable, namespace: str) -> None:
        super().__init__()
        self._database = database
        self._table = table
        self._namespace = namespace

    async def _some(self, kind: Kind, limit: int, shards: Sequence[int] = ()) -> list[Any]:
        if limit == 0:
            return []
        sql = f"{_HEAD}{_KINDS[kind]} LIMIT ?".format(
            t=self._table, largest=LARGEST_BYTES, shards=",".join(map(str, shards))
        )
        return await self._database.fetch(sql, self._namespace, wall_s(), limit)

    async def waits(self) -> Waits:
        """What waits now: counted up to `COUNTED`."""
        values = (self._namespace, wall_s())
        ((due, due_s, held, held_s),) = await self._database.fetch(_WAITS.format(t=self._table), *values, *values)
        since_s = [each for each in (due_s, held_s) if isinstance(each, float) and math.isfinite(each)]
        shards = await self._database.fetch(_SHARDS.format(t=self._table), *[self._namespace] * 2)
        self.shards.update(shard for (shard,) in shards)
        return Waits(due + held, max(0.0, wall_s() - min(since_s)) if since_s else 0.0, held)


class SqliteSession(Session):
    """See `SqliteOutbox`."""

    def __init__(self, database: Database, namespace: str, options: RelayOptions, unsure: set[int]) -> None:
        self._database = database
        self._table = OutboxTable.of(options.table)
        self._options = options
        self._taker = SqliteTaker(database, self._table, namespace)
        self._unsure = unsure
        self._rest_until_s = float("-inf")
        self._in_hand: dict[str, Item] = {}
        self._unburied: set[str] = set()
        self._swallowed_s = float("-inf")

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        rest_s = self._rest_until_s - monotonic()
        if rest_s > 0 and not self._taker.some_may_go(away):
            await asyncio.sleep(min(rest_s, POLL_S))
            if rest_s > POLL_S:
                return Batch()
        rows = await self._taker.rows(limit, away)
        self._rest_until_s = float("-inf") if rows else monotonic() + self._options.poll_interval_s
        items = [Item(f"row {row[0]}", row, _since_s(row), row[0] in self._unsure) for row in rows]
        self._in_hand = {item.place: item for item in items}
        return Batch(items, len(items) == limit)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        command = item.raw[1]
        if command is None:
            raise ValueError(f"it is longer than {LARGEST_BYTES} bytes")
        if not isinstance(command, bytes):
            raise ValueError(f"command: it is no text, but of the type {type(command).__name__}")
        return Meaning((command,))

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`; what is in it stays in the database."""
        return DeadLetter(b"?", reason, item.place, 1)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.bury`: in one step the row is here no more, and there."""
        ids = [self._in_hand[letter.source].raw[0] for letter in letters]
        bury, gone = _BURY.format(t=self._table), _BURIED.format(t=self._table)
        steps: list[tuple[str, list[tuple[Any, ...]]]] = []
        for letter, number in zip(letters, ids, strict=True):
            steps += [(bury, [(bool(letter.payload), letter.reason, number)]), (gone, [(number,)])]
        try:
            if await self._database.change(*steps) < len(steps):
                await self._not_kept(letters, ids)
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error) and "no column named" not in str(error):
                raise
            self._unburied.update(letter.source for letter in letters)

    async def _not_kept(self, letters: Sequence[DeadLetter], ids: Sequence[int]) -> None:
        """A trigger may ignore what it is to keep: what is not there is still here."""
        sql = f"SELECT id FROM {self._table.rows} WHERE id IN ({','.join(map(str, ids))})"
        left = {number for (number,) in await self._database.fetch(sql)}
        lying = {letter.source for letter, number in zip(letters, ids, strict=True) if number in left}
        if lying:
            self._unburied |= lying
            self._swallowed_s = monotonic()

    async def let_go(self, batch: Batch, left: Left) -> None:
        """See `Session.let_go`."""
        kept = {id(item) for item in left.undone} | {id(waiting.item) for waiting in left.waiting}
        waits = [
            (min(waiting.shards), waiting.item.raw[0])
            for waiting in left.waiting
            if waiting.item.raw[4] not in waiting.shards
        ]
        later = [item for item in batch.items if item.place in self._unburied and id(item) not in kept]
        kept.update(map(id, later))
        gone = [item.raw[0] for item in batch.items if id(item) not in kept]
        self._unsure.update(gone)
        self._taker.shards.update(shard for shard, _ in waits)
        again_s = wall_s() + AGAIN_S
        await self._database.change(
            (_WAITING.format(t=self._table), waits),
            (_LATER.format(t=self._table), [(again_s, item.raw[0]) for item in later]),
            (_DELETE.format(t=self._table), [(number,) for number in gone]),
        )
        self._unsure.clear()
        self._unburied.clear()
        self._in_hand.clear()

    async def look(self) -> Look:
        """See `Session.look`."""
        if not await self._database.run(self._database.is_there):
            raise FileNotFoundError(errno.ENOENT, "another file is in its place")
        findings = await self._findings()
        if any(finding.stops for finding in findings):
            return Look(findings)
        waits = await self._taker.waits()
        return Look(findings, waits.backlog, waits.oldest_s, waits.held)

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
        if monotonic() - self._swallowed_s < 2 * AGAIN_S:  # by then it was tried again
            dead = f"{self._table.name}_dead"
            found.append(
                Finding(
                    "table",
                    dead,
                    "what can't be applied is not kept there, nor is it refused, and lies",
                    f"drop the trigger on {dead} that ignores it",
                )
            )
        return found


def _since_s(row: Sequence[Any]) -> float | None:
    """Since when it is to be done, where that is a time."""
    times = [each for each in row[2:4] if isinstance(each, int | float)]
    return max(times) if len(times) == 2 else None


ROWS: Final = ("namespace", "id", "command", "created_at", "due_at", "attempts", "waits_for")
DEAD: Final = ("namespace", "row_id", "command", "reason", "attempts", "created_at")
REMAKE: Final = "make the table anew, with its rows"
_HEAD: Final = """\
SELECT id, CASE WHEN length(CAST(command AS BLOB)) <= {largest} THEN command END, created_at, due_at, waits_for
FROM {t.rows} WHERE namespace = ? AND due_at <= ? AND """
_KINDS: Final[dict[Kind, str]] = {
    "due": "waits_for = -1 ORDER BY due_at, id",
    "fresh": "waits_for = -1 AND due_at = 0 ORDER BY due_at, id",
    "late": "waits_for = -1 AND due_at > 0 ORDER BY due_at, id",
    "held": "waits_for IN ({shards})",
}
_DELETE: Final = "DELETE FROM {t.rows} WHERE id = ?"
_BURIED: Final = f"{_DELETE} AND changes() > 0"
"""What was just set aside: where a trigger has ignored that, nothing."""
_WAITING: Final = "UPDATE {t.rows} SET waits_for = ? WHERE id = ?"
_LATER: Final = "UPDATE {t.rows} SET due_at = ? WHERE id = ?"
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
