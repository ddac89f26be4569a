"""A worker's source in memory, and every way in which one can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cachebus.base.clock import monotonic
from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Batch, Finding, Item, Left, Look, Meaning, Session, Source
from cachebus.producers.command import Command, InvalidateScope


class Gone(Exception):
    """The source is out of reach."""


class Poisoned(ValueError):
    """A letter can't be kept."""


class MemorySource(Source):
    """Rows by number; those that are taken come again, unless they were let go of. Faults are functions that tests
    set; each is called at its step, and may raise or wait."""

    part = "place"
    trouble = (Gone,)
    poison = (Poisoned,)
    assumptions = ("shape", "access")
    letters_at = "a list"
    set_aside_s = 0.3
    again_s = 0.1

    def __init__(self, *, limit: int = 500, hold_s: float | None = None) -> None:
        self.limit = limit
        self.hold_s = hold_s
        self.rows: dict[int, Any] = {}
        self.dead: list[DeadLetter] = []
        self.held: dict[int, frozenset[int]] = {}
        """Rows that wait, and for which shards."""
        self.resting: dict[int, float] = {}
        """Rows whose letters could not be kept, and until when they rest."""
        self.findings: list[Finding] = []
        self.mends: Callable[[Sequence[Finding]], bool] = lambda _: False
        self.names: Callable[[Finding], list[Command]] = lambda _: []
        self.made_up: list[Finding] = []
        self.origins: Callable[[int], str] = lambda _: ""
        """Which of several places a row came from, by its number."""
        self.is_seen = False
        """Whether it is told if letters lie there."""
        self.is_not_due = False
        """Whether a take looks for nothing, as before the next poll is due."""
        self.elsewhere: set[str] = set()
        """Places that another worker reads."""
        self.asked_s: list[float] = []
        """Of how many seconds letters were asked for."""
        self.sent_s: float | None = None
        """When all items were sent."""
        self.faults: dict[str, Callable[..., Any]] = {}
        self.taken: list[int] = []
        """How many were taken each time."""
        self.opens = 0
        self._next = 0

    def put(self, *rows: Any) -> None:
        """Have these come, in this order."""
        for row in rows:
            self._next += 1
            self.rows[self._next] = row

    def rests(self, numbers: Collection[int]) -> None:
        """These come again after a while."""
        self.resting |= dict.fromkeys(numbers, monotonic() + self.again_s)

    async def fault(self, step: str, *given: Any) -> None:
        """What a test has set for this step happens."""
        if step in self.faults:
            found = self.faults[step](*given)
            if asyncio.iscoroutine(found):
                await found

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        self.opens += 1
        await self.fault("open")
        yield MemorySession(self)


class MemorySession(Session):
    """See `MemorySource`."""

    def __init__(self, source: MemorySource) -> None:
        self._source = source

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        source = self._source
        await source.fault("take", limit)
        if source.is_not_due:
            await asyncio.sleep(0.005)
            return Batch(looked=False)
        waiting = {number for number, shards in source.held.items() if shards & set(away)}
        waiting |= {number for number, until_s in source.resting.items() if monotonic() < until_s}
        items = [Item(f"row {number}", number, source.sent_s) for number in source.rows if number not in waiting][
            :limit
        ]
        if items:
            source.taken.append(len(items))
        else:
            await asyncio.sleep(0.005)
        return Batch(items)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        row = self._source.rows[item.raw]
        if callable(row):
            row = row()
        return row if isinstance(row, Meaning) else Meaning([row])

    def origin(self, item: Item) -> str:
        """See `Session.origin`."""
        return self._source.origins(item.raw)

    def reads(self, origin: str) -> bool:
        """See `Session.reads`."""
        return origin not in self._source.elsewhere

    async def has_letters(self, within_s: float) -> bool | None:
        """See `Session.has_letters`."""
        self._source.asked_s.append(within_s)
        await self._source.fault("has_letters")
        return bool(self._source.dead) if self._source.is_seen else None

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        row = self._source.rows[item.raw]
        return DeadLetter(row if isinstance(row, bytes) else repr(row).encode(), reason, item.place, 1)

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        await self._source.fault("set_aside", letters)
        self._source.dead += letters

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        await self._source.fault("acknowledge", batch, left)
        waiting = {one.item.raw: one.shards for one in left.waiting}
        resting = {one.item.raw for one in left.not_set_aside}
        kept = {item.raw for item in left.undone} | waiting.keys() | resting
        self._source.rests(resting)
        for item in batch.items:
            self._source.held.pop(item.raw, None)
        self._source.held |= waiting
        for item in batch.items:
            if item.raw not in kept:
                del self._source.rows[item.raw]

    async def look(self) -> Look:
        """See `Session.look`."""
        await self._source.fault("look")
        return Look(list(self._source.findings), len(self._source.rows), 0.0, held=len(self._source.held))

    async def mend(self, findings: Sequence[Finding]) -> bool:
        """See `Session.mend`."""
        return self._source.mends(findings)

    def scopes(self, findings: Sequence[Finding]) -> list[Command] | None:
        """See `Session.scopes`."""
        return [one for finding in findings for one in self._source.names(finding)] or None

    async def made_up(self, findings: Sequence[Finding]) -> None:
        """See `Session.made_up`."""
        await self._source.fault("made_up", findings)
        self._source.made_up += findings


def scope(data_type: str, tenant_id: str = "acme") -> InvalidateScope:
    """All of a type."""
    return InvalidateScope(tenant_id=tenant_id, data_type=data_type)
