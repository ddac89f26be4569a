"""Acknowledges rows: deletes, moves or marks them, and checks that this happened. A trigger, a rule or a policy of the
database may keep rows as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.outbox.rows import RowName
from cachebus.consumers.outbox.waiting import FirstSeen, PutOff
from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.source import Item
from cachebus.consumers.worker.work_time import WorkTime

CAREFUL_S: Final = 600.0
"""How long after a row was kept each row is checked by itself."""
MOST: Final = 10_000
"""The most rows that rest in memory only, since the database can't even mark them. With more of them nothing is
taken."""
KNOWN: Final = 100_000
OTHERS: Final = frozenset({"08", "25", "40", "53", "55", "57", "58", "XX"})
"""Classes of errors that no row causes: of the connection, the transaction, locks, resources and the server."""


class RowsKept(Exception):
    """The database keeps rows. The rows of the next batch are checked one by one."""


class Resting:
    """What a relay knows of rows that it has applied, and that the database has kept, over all connections. Each goes
    by a name that no other row has, which is more than its id: a table that was restored may give its ids again."""

    def __init__(self, again_s: float, clock: Clock = monotonic) -> None:
        self._clock = clock
        self.again_s = again_s
        self._until_s: dict[Hashable, float] = {}
        self._last_s = float("-inf")
        self.work_time = WorkTime(clock)
        self._worked_s = float("-inf")
        """When the database has last kept rows, by `work_time`."""
        self.why = ""
        """What the database said, if anything."""
        self.put_off = PutOff()
        self.first_seen = FirstSeen()
        self.unsure: set[Hashable] = set()
        """Those that were applied and may not have been let go of: they come again."""
        self.buried: set[RowName] = set()
        """Those that were set aside and are there all the same."""
        self.marked: dict[Hashable, Any] = {}
        """Those that rest in the table, and by what they are found there: they are marked."""
        self._suspects: frozenset[str] = frozenset()
        self._freed: dict[Hashable, Any] = {}

    @property
    def careful(self) -> bool:
        """Whether the database has kept rows lately."""
        return self._clock() - self._last_s < CAREFUL_S

    @property
    def has_some(self) -> bool:
        """Whether there are such rows, as far as is known: if not, each would have come again since."""
        return self.work_time() - self._worked_s < 2.5 * self.again_s

    def refused(self, why: str = "") -> None:
        """The database has kept rows."""
        self.why, self._last_s, self._worked_s = why, self._clock(), self.work_time()

    def suspect(self, keepers: Collection[str]) -> None:
        """This is what may keep rows. Where some of it has gone since, rows are tried again at once, all of them."""
        gone, self._suspects = self._suspects.difference(keepers), frozenset(keepers)
        if gone and self.has_some:
            self._last_s, self._worked_s, self.why = float("-inf"), float("-inf"), ""
            self._until_s.clear()
            self._freed, self.marked = self.marked, {}

    def freed(self) -> list[Any]:
        """By what the rows are found that rest in the table, and are to be due at once. They are given once: at worst
        they rest."""
        freed, self._freed = list(self._freed.values()), {}
        return freed

    def keep(self, rows: Iterable[Hashable]) -> None:
        """These rows can't even be marked: they rest in memory."""
        self._until_s |= dict.fromkeys(rows, self._clock() + self.again_s)

    def anew(self) -> None:
        """The table was made anew: what rested in it is gone, and others have these names."""
        self._until_s.clear()
        self.unsure.clear()
        self.marked.clear()
        self._freed.clear()

    @property
    def now(self) -> list[Any]:
        """The rows that rest in memory now."""
        now_s = self._clock()
        if self._until_s:
            self._until_s = {row: until_s for row, until_s in self._until_s.items() if until_s > now_s}
        return list(self._until_s)

    @property
    def too_many(self) -> bool:
        """Whether no more rows can rest. Nothing is taken then, until some rests are over."""
        return len(self._until_s) >= MOST and len(self.now) >= MOST

    def done(self, gone: Iterable[Hashable], stuck: Collection[Hashable]) -> None:
        """These rows are gone, except those that are stuck."""
        done = set(gone).difference(stuck)
        self.put_off.done(done)
        self.unsure -= done
        for row in done.intersection(self.marked):
            del self.marked[row]
        if len(self.marked) > KNOWN:
            self.marked.clear()
        if len(self.unsure) > KNOWN:
            self.unsure.clear()
        if len(self.buried) > KNOWN:
            self.buried.clear()


class RowsDone(NamedTuple):
    """What became of rows."""

    kept: list[Item]
    """Those that are as they were."""
    due_s: dict[int, float]
    """When the others are due by now, by the `id` of the item, where the database tells that."""

    def and_more(self, other: RowsDone) -> RowsDone:
        """What became of these and others."""
        return RowsDone([*self.kept, *other.kept], self.due_s | other.due_s)


class Letting:
    """Acknowledges the rows that a transaction in PostgreSQL has locked, by one statement for each kind of end."""

    def __init__(self, connection: asyncpg.Connection, resting: Resting) -> None:
        self._connection = connection
        self._resting = resting
        self._silent: set[str] = set()
        """Statements that do not tell which rows they did something to."""

    async def commit(self, transaction: Any) -> None:
        """Commit the transaction; `RowsKept` if a deferred trigger raises."""
        try:
            await transaction.commit()
        except asyncpg.PostgresError as error:
            self._refuse(error)

    def _refuse(self, error: asyncpg.PostgresError) -> None:
        if not _is_the_rows(error):
            raise error
        self._resting.refused(describe(error))
        raise RowsKept(describe(error)) from None

    async def all_of(self, asked: Sequence[tuple[str, Sequence[Item], tuple[Any, ...]]]) -> None:
        """Run each statement for its rows; `RowsKept` if one raises, or leaves some of them as they are."""
        for sql, items, more in asked:
            for part, several in _parts(items).items():
                try:
                    done = await self._connection.execute(sql, part, [item.raw.place for item in several], *more)
                except asyncpg.PostgresError as error:
                    self._refuse(error)
                else:
                    if _count(done) != len(several):
                        self._resting.refused()
                        raise RowsKept("the statement does nothing")

    async def careful(self, sql: str, items: Sequence[Item], *more: Any) -> RowsDone:
        """Run the statement for those rows that it changes."""
        await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        done = RowsDone([], {})
        for part, several in _parts(items).items():
            done = done.and_more(await self._tried(sql, part, several, more))
        return done

    async def _tried(self, sql: str, part: int, items: list[Item], more: tuple[Any, ...]) -> RowsDone:
        due_s: dict[int, float] = {}
        unclear = sql in self._silent
        try:
            async with self._connection.transaction():
                if unclear:
                    await self._all(sql, part, items, more)
                    return RowsDone([], {})
                due_s = await self._done(sql, part, items, more)
                if len(due_s) < len(items):
                    raise RowsKept
        except RowsKept:
            self._resting.refused()
        except asyncpg.FeatureNotSupportedError:  # a rule takes part, which tells nothing of what it does
            if unclear:
                raise
            self._silent.add(sql)
            return await self._tried(sql, part, items, more)
        except asyncpg.PostgresError as error:
            if not _is_the_rows(error):
                raise
            self._resting.refused(describe(error))
            due_s, unclear = {}, True
        else:
            return RowsDone([], due_s)
        some = [item for item in items if id(item) in due_s]
        if some and len(some) < len(items):
            rest = [item for item in items if id(item) not in due_s]
            return RowsDone(rest, {}).and_more(await self._tried(sql, part, some, more))
        if not unclear or len(items) == 1:
            return RowsDone(items, {})
        half = len(items) // 2
        first = await self._tried(sql, part, items[:half], more)
        return first.and_more(await self._tried(sql, part, items[half:], more))

    async def _all(self, sql: str, part: int, items: Sequence[Item], more: tuple[Any, ...]) -> None:
        done = await self._connection.execute(sql, part, [item.raw.place for item in items], *more)
        if _count(done) != len(items):
            raise RowsKept

    async def _done(self, sql: str, part: int, items: Sequence[Item], more: tuple[Any, ...]) -> dict[int, float]:
        """When those are due by now that it changed, by the `id` of the item. Each is known by its place: ids may be
        there twice."""
        at = {item.raw.place: id(item) for item in items}
        each = f" {'USING' if sql.startswith('DELETE') else 'FROM'} {_EACH}"
        rows = await self._connection.fetch(f"{sql.replace(_THOSE, each)} {_TELLS}", part, list(at), *more)
        return {at[row["place"]]: row["due_s"] for row in rows}


# A row is where its part of the table has it, until the transaction ends that has locked it: what changes it moves it.
_THOSE: Final = " WHERE tableoid = $1 AND ctid = ANY($2::tid[])"
DELETE: Final = f"DELETE FROM {{t.rows}}{_THOSE}"
WAITS: Final = f"UPDATE {{t.rows}} SET waits_for = $3{_THOSE}"
LATER: Final = f"UPDATE {{t.rows}} SET due_at = clock_timestamp() + make_interval(secs => $3){_THOSE}"
_EACH: Final = "unnest($2::tid[]) AS had (place) WHERE tableoid = $1 AND ctid = had.place"
_TELLS: Final = "RETURNING had.place, extract(epoch FROM due_at)::float8 AS due_s"
# What rests in the table: no row that a writer wants later.
NOW: Final = """\
UPDATE {t.rows} SET due_at = clock_timestamp() FROM unnest($2::bigint[], $3::float8[]) AS rests (number, due_s)
WHERE namespace = $1 AND waits_for = -1 AND due_at > clock_timestamp()
AND id = rests.number AND extract(epoch FROM due_at)::float8 = rests.due_s"""


def _count(done: str) -> int:
    return int(done.rpartition(" ")[2])


def _is_the_rows(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "XX")[:2] not in OTHERS


def _parts(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items, by the partition of the table."""
    parts: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        parts[item.raw.part].append(item)
    return parts
