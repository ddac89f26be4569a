"""How much lies in the worker's own tables. Where somebody has one locked, that is told, and the figures stay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import asyncpg

from cachebus.consumers.cdc.slot import locks, standing
from cachebus.consumers.cdc.slot.dead import TableOfDead
from cachebus.consumers.cdc.slot.held import HeldCommands, HeldFigures
from cachebus.consumers.cdc.slot.storage import DEAD, HELD, SLOTS
from cachebus.consumers.worker.source import Finding

if TYPE_CHECKING:
    from cachebus.consumers.cdc.slot.postgres import PostgresSource
    from cachebus.consumers.cdc.slot.reader import SlotReader
    from cachebus.consumers.cdc.slot.standing import SlotStanding

SLOW: Final = "the rows in it can't be counted in time: nobody knows how many lie there"


class OwnFigures:
    """Counts over one connection, which the caller has alone."""

    def __init__(
        self, source: PostgresSource, connection: asyncpg.Connection, held: HeldCommands, dead: TableOfDead
    ) -> None:
        self._source = source
        self._connection = connection
        self._held, self._dead = held, dead
        self._figures = HeldFigures()
        self.dead: int | None = None
        """How many dead letters there are; None where they could not be counted."""
        self._locked = set[str]()
        """Tables that were locked at the last look: each is tried only once nobody has it locked."""

    async def look(self, found: SlotStanding, reader: SlotReader) -> tuple[HeldFigures, list[Finding]]:
        """What is held, and what is in the way of counting, or of writing the row of the slot."""
        broken = {one.subject for one in found.findings}
        stuck: list[Finding] = []
        self.dead = None
        if reader.refusals.has_some and SLOTS not in broken:
            with suppress(*standing.HANGS):
                stuck += await self._blocked(reader)
        if DEAD not in broken:
            await self._tried(DEAD, self._dead, self._count_dead, stuck)
        if found.memory is None or HELD in broken:
            self._figures = HeldFigures()
        elif SLOTS not in broken:
            self._figures = self._figures._replace(missing=0)
            await self._tried(HELD, self._held, self._count_held, stuck)
        return self._figures, stuck

    async def _blocked(self, reader: SlotReader) -> list[Finding]:
        """What is in the way of writing the row of the slot, if anything is."""
        refusals, locked = reader.refusals, None
        if refusals.waited:
            locked = await locks.finding_of(self._connection, SLOTS, self._source.names.slot)
        if refusals.looked(told=locked is not None):
            locked = await locks.refused_again(self._connection, SLOTS)
        return [locked] if locked else []

    async def _count_dead(self) -> None:
        self.dead = await self._dead.count()
        self._source.has_dead_letters(self.dead)

    async def _count_held(self) -> None:
        self._figures = await self._held.figures()

    async def _tried(
        self, table: str, own: HeldCommands | TableOfDead, counting: Callable[[], Awaitable[None]], stuck: list[Finding]
    ) -> None:
        """Count, and add to `stuck` what is in the way of that, or was of writing: some locks let others read."""
        is_slow = False
        if table not in self._locked:
            try:
                async with standing.briefly(self._connection):
                    await counting()
                if not own.refusals.has_some:
                    return
            except standing.HANGS as error:
                is_slow = isinstance(error, asyncpg.QueryCanceledError)
        locked = await locks.finding_of(self._connection, table)
        if locked is not None:
            self._locked.add(table)
        else:
            self._locked.discard(table)
        # What is held is written together with the row of the slot: who has that locked is told by now.
        explained = locked is not None or any(one.subject == SLOTS for one in stuck)
        if own.refusals.looked(told=explained):
            locked = await locks.refused_again(self._connection, table)
        if locked is not None:
            stuck.append(locked)
        elif is_slow:
            stuck.append(Finding("storage", table, SLOW, f"VACUUM (ANALYZE) {table};"))
