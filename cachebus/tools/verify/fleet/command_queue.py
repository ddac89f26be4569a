"""What a node has a worker say for it: commands in memory, carried by the workers' own loop, as a relay's rows are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from cachebus.consumers.worker.dead import DeadLetter
from cachebus.consumers.worker.source import Batch, Item, Left, Look, Meaning, Session, Source
from cachebus.consumers.worker.source_worker import SourceWorker
from cachebus.errors import InvalidationFailed
from cachebus.producers.command import Invalidate
from cachebus.settings import Settings
from cachebus.tools.verify.fleet.items import Item as Subject

HOLD_S: Final = 0.5
LIMIT: Final = 50


class Refused(Exception):
    """A worker has set aside a command that there is nothing wrong with."""


class CommandQueue(Source):
    """Each is done with when its future is: then L2 has let go, and everything that `invalidate` promises holds."""

    part = "commands"
    limit = LIMIT
    hold_s = HOLD_S

    def __init__(self, settings: Settings) -> None:
        self.worker = SourceWorker("commands", self, settings)
        self._waiting: dict[int, tuple[Invalidate, asyncio.Future[None]]] = {}
        self._kept: dict[int, frozenset[int]] = {}
        """Those that wait for a primary that is away, and for which shards."""
        self._next = 0
        self._come = asyncio.Event()

    async def invalidate(self, subject: Subject) -> None:
        """Return when L2 has let go of the item."""
        agent, conversation, collection = subject.contexts
        command = Invalidate(
            op="invalidate",
            tenant_id=subject.tenant,
            data_type=subject.data_type,
            resource_id=subject.resource_id,
            agent_id=agent,
            conversation_id=conversation,
            collection_id=collection,
        )
        done = asyncio.get_running_loop().create_future()
        self._next += 1
        self._waiting[self._next] = command, done
        self._come.set()
        await done

    def give_up(self) -> None:
        """Fail those that are not done with."""
        for _, done in self._waiting.values():
            if not done.done():
                done.set_exception(InvalidationFailed("the worker did not come to it"))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        yield _QueueSession(self)

    async def next_of(self, limit: int, away: Collection[int]) -> Batch:
        """Some that may be carried now."""
        held = {number for number, shards in self._kept.items() if shards.intersection(away)}
        found = [number for number in self._waiting if number not in held][:limit]
        if not found:
            self._come.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._come.wait()
        return Batch([Item(f"command {number}", number) for number in found])

    def command(self, number: int) -> Invalidate:
        """What it asks for."""
        return self._waiting[number][0]

    def over(self, number: int, shards: frozenset[int] | None) -> None:
        """It is done with, or (`shards`) waits for their primaries."""
        self._kept.pop(number, None)
        if shards is not None:
            self._kept[number] = shards
            return
        _, done = self._waiting.pop(number)
        if not done.done():
            done.set_result(None)


class _QueueSession(Session):
    def __init__(self, commands: CommandQueue) -> None:
        self._commands = commands

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        return await self._commands.next_of(limit, away)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        return Meaning([self._commands.command(item.raw)])

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        return DeadLetter(b"", reason, item.place, 1)

    async def bury(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.bury`."""
        raise Refused("; ".join(letter.reason for letter in letters))

    async def let_go(self, batch: Batch, left: Left) -> None:
        """See `Session.let_go`."""
        waiting = {one.item.raw: one.shards for one in left.waiting}
        undone = {item.raw for item in left.undone}
        for item in batch.items:
            if item.raw not in undone:
                self._commands.over(item.raw, waiting.get(item.raw))

    async def look(self) -> Look:
        """See `Session.look`."""
        return Look()
