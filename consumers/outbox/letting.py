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

    async def all_of(self, asked: Sequence[tuple[str, Sequence[Item], tuple[Any, ...]]]) -> None:
        """Each statement for its rows; `Refused` where one does nothing to some of them, or raises."""
        for sql, items, more in asked:
            for part, several in _parts(items).items():
                try:
                    done = await self._connection.execute(sql, part, [item.raw[1] for item in several], *more)
                except asyncpg.PostgresError as error:
                    if not _is_the_rows(error):
                        raise
                    self._resting.refused(describe(error))
                    raise Refused(describe(error)) from None
                if int(done.rpartition(" ")[2]) != len(several):
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
        try:
            async with self._connection.transaction():
                places = [item.raw[1] for item in items]
                found = await self._connection.fetch(f"{sql} RETURNING id", part, places, *more)
                done.update(row[0] for row in found)
                if len(found) < len(items):
                    raise Refused
        except Refused:
            self._resting.refused()
            rest = [item for item in items if item.raw[2] not in done]
            some = [item for item in items if item.raw[2] in done] if rest else []
            return [*(rest or items), *(await self._tried(sql, part, some, more) if some else [])]
        except asyncpg.FeatureNotSupportedError:  # by a rule
            self._resting.refused()
            return items
        except asyncpg.PostgresError as error:
            if not _is_the_rows(error):
                raise
            self._resting.refused(describe(error))
            half = len(items) // 2
            if not half:
                return items
            return [
                *await self._tried(sql, part, items[:half], more),
                *await self._tried(sql, part, items[half:], more),
            ]
        return []


def _is_the_rows(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "XX")[:2] not in OTHERS


def _parts(items: Iterable[Item]) -> dict[int, list[Item]]:
    """By part of the table."""
    parts: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        parts[item.raw[0]].append(item)
    return parts
