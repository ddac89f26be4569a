"""Rows in hand are let go of, and it is seen to that they are: a trigger, a rule or a policy may keep them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final

import asyncpg

from cachebus.base.clock import Clock, monotonic
from cachebus.consumers.worker.clean import describe
from cachebus.consumers.worker.source import Item

CAREFUL_S: Final = 600.0
"""So long after the last row that was not let go of each is looked after."""
MOST: Final = 10_000
"""Rows that rest though nothing in the database says so; with more of them all rows rest."""
KNOWN: Final = 100_000
OTHERS: Final = frozenset({"08", "25", "40", "53", "57", "58", "XX"})
"""Classes of errors that no row makes: the connection, the transaction, others' locks, resources, the server."""


class Refused(Exception):
    """The database does not let go of rows; the next batch is let go of with care."""


class Resting:
    """What a relay knows of rows that it has done with, and that the database has kept; over all connections."""

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
        """Whether rows were not let go of lately."""
        return self._clock() - self._last_s < CAREFUL_S

    @property
    def told(self) -> bool:
        """Whether there are such rows, as far as is known: all of them have come again since."""
        return self._clock() - self._last_s < 2.5 * self._again_s

    def refused(self, why: str = "") -> None:
        """Rows were not let go of."""
        self.why, self._last_s = why, self._clock()

    def keep(self, ids: Collection[int]) -> None:
        """These can't even be marked: they rest in here."""
        self._until_s |= dict.fromkeys(ids, self._clock() + self._again_s)

    @property
    def ids(self) -> list[int]:
        """Those that rest now."""
        now_s = self._clock()
        if self._until_s:
            self._until_s = {number: until_s for number, until_s in self._until_s.items() if until_s > now_s}
        return list(self._until_s)

    @property
    def too_many(self) -> bool:
        """Whether no more can rest: nothing is taken until some have rested."""
        return len(self._until_s) >= MOST and len(self.ids) >= MOST

    def done(self, gone: Iterable[int], stuck: Collection[int]) -> None:
        """What was to go is gone, but for those that are stuck."""
        self.unsure.difference_update(set(gone).difference(stuck))
        for known in self.unsure, self.buried:
            if len(known) > KNOWN:
                known.clear()


class Letting:
    """Statements of one connection to PostgreSQL, each for some of the rows that its transaction has locked."""

    def __init__(self, connection: asyncpg.Connection, resting: Resting) -> None:
        self._connection = connection
        self._resting = resting
        self._tells = True
        """Whether a statement tells which rows it did something to."""

    async def commit(self, transaction: Any) -> None:
        """The end of it; `Refused` where a trigger that is deferred raises."""
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
        """Each statement for its rows; `Refused` where one does nothing to some of them, or raises."""
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
        """The statement for those of the rows that it does something to; gives the others."""
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
        """The ids of those that it did something to, where that is told; else all, or none where it was not all."""
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
    """By part of the table."""
    parts: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        parts[item.raw[0]].append(item)
    return parts
