"""Acknowledges rows: deletes, moves or marks them, and checks that this happened. A trigger, a rule or a policy of the
database may keep rows as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import asyncpg

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.source import Item

CAREFUL_S: Final = 600.0
"""How long after a row was kept each row is checked by itself."""
MOST: Final = 10_000
"""The most rows that rest in memory only, since the database can't even mark them. With more of them nothing is
taken."""
KNOWN: Final = 100_000
OTHERS: Final = frozenset({"08", "25", "40", "53", "57", "58", "XX"})
"""Classes of errors that no row causes: of the connection, the transaction, locks, resources and the server."""


class Refused(Exception):
    """The database keeps rows. The rows of the next batch are checked one by one."""


class Resting:
    """What a relay knows of rows that it has applied, and that the database has kept, over all connections."""

    def __init__(self, again_s: float, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._again_s = again_s
        self._until_s: dict[int, float] = {}
        self._last_s = float("-inf")
        self.why = ""
        """What the database said, if anything."""
        self.unsure: set[int] = set()
        """Ids of rows that were applied and may not have been let go of: they come again."""
        self.buried: set[int] = set()
        """Ids of those that were set aside and are there all the same."""

    @property
    def careful(self) -> bool:
        """Whether the database has kept rows lately."""
        return self._clock() - self._last_s < CAREFUL_S

    @property
    def told(self) -> bool:
        """Whether there are such rows, as far as is known: each has come again since."""
        return self._clock() - self._last_s < 2.5 * self._again_s

    def refused(self, why: str = "") -> None:
        """The database has kept rows."""
        self.why, self._last_s = why, self._clock()

    def keep(self, ids: Collection[int]) -> None:
        """These rows can't even be marked: they rest in memory."""
        self._until_s |= dict.fromkeys(ids, self._clock() + self._again_s)

    @property
    def ids(self) -> list[int]:
        """The ids of the rows that rest now."""
        now_s = self._clock()
        if self._until_s:
            self._until_s = {number: until_s for number, until_s in self._until_s.items() if until_s > now_s}
        return list(self._until_s)

    @property
    def too_many(self) -> bool:
        """Whether no more rows can rest. Nothing is taken then, until some rests are over."""
        return len(self._until_s) >= MOST and len(self.ids) >= MOST

    def done(self, gone: Iterable[int], stuck: Collection[int]) -> None:
        """These rows are gone, except those that are stuck."""
        self.unsure.difference_update(set(gone).difference(stuck))
        for known in self.unsure, self.buried:
            if len(known) > KNOWN:
                known.clear()


class Letting:
    """Acknowledges the rows that a transaction in PostgreSQL has locked, by one statement for each kind of end."""

    def __init__(self, connection: asyncpg.Connection, resting: Resting) -> None:
        self._connection = connection
        self._resting = resting
        self._tells = True
        """Whether a statement tells which rows it did something to."""

    async def commit(self, transaction: Any) -> None:
        """Commit the transaction; `Refused` if a deferred trigger raises."""
        try:
            await transaction.commit()
        except asyncpg.PostgresError as error:
            self._refuse(error)

    def _refuse(self, error: asyncpg.PostgresError) -> None:
        if not _is_the_rows(error):
            raise error
        self._resting.refused(describe(error))
        raise Refused(describe(error)) from None

    async def all_of(self, asked: Sequence[tuple[str, Sequence[Item], tuple[Any, ...]]]) -> None:
        """Run each statement for its rows; `Refused` if one raises, or leaves some of them as they are."""
        for sql, items, more in asked:
            for part, several in _parts(items).items():
                try:
                    done = await self._connection.execute(sql, part, [item.raw[1] for item in several], *more)
                except asyncpg.PostgresError as error:
                    self._refuse(error)
                else:
                    if _count(done) != len(several):
                        self._resting.refused()
                        raise Refused("the statement does nothing")

    async def careful(self, sql: str, items: Sequence[Item], *more: Any) -> list[Item]:
        """Run the statement for those rows that it changes; returns the others."""
        await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        left: list[Item] = []
        for part, several in _parts(items).items():
            left += await self._tried(sql, part, several, more)
        return left

    async def _tried(self, sql: str, part: int, items: list[Item], more: tuple[Any, ...]) -> list[Item]:
        done: set[int] = set()
        unclear = not self._tells
        try:
            async with self._connection.transaction():
                done = await self._done(sql, part, items, more)
                if len(done) < len(items):
                    raise Refused
        except Refused:
            self._resting.refused()
        except asyncpg.FeatureNotSupportedError:  # a rule takes part, which tells nothing of what it does
            self._tells = False
            return await self._tried(sql, part, items, more)
        except asyncpg.PostgresError as error:
            if not _is_the_rows(error):
                raise
            self._resting.refused(describe(error))
            done, unclear = set(), True
        else:
            return []
        if done:
            some = [item for item in items if item.raw[2] in done]
            rest = [item for item in items if item.raw[2] not in done]
            return [*rest, *await self._tried(sql, part, some, more)]
        if not unclear or len(items) == 1:
            return items
        half = len(items) // 2
        first, second = items[:half], items[half:]
        return [*await self._tried(sql, part, first, more), *await self._tried(sql, part, second, more)]

    async def _done(self, sql: str, part: int, items: list[Item], more: tuple[Any, ...]) -> set[int]:
        """The ids of the rows that it changed. If the database does not tell them: all, or none if not all were
        changed."""
        places = [item.raw[1] for item in items]
        if self._tells:
            return {row[0] for row in await self._connection.fetch(f"{sql} RETURNING id", part, places, *more)}
        done = await self._connection.execute(sql, part, places, *more)
        return {item.raw[2] for item in items} if _count(done) == len(items) else set()


def _count(done: str) -> int:
    return int(done.rpartition(" ")[2])


def _is_the_rows(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "XX")[:2] not in OTHERS


def _parts(items: Iterable[Item]) -> dict[int, list[Item]]:
    """The items, by the partition of the table."""
    parts: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        parts[item.raw[0]].append(item)
    return parts
