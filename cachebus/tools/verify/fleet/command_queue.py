"""Invalidations that a node leaves to a worker: a queue of commands in memory, which is the worker's source.

So the loop that all workers share (outbox, Kafka, change data capture) runs under every fault, too.
"""

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
from cachebus.tools.verify.fleet.items import SourceItem

HOLD_S: Final = 0.5
LIMIT: Final = 50


class WronglySetAside(Exception):
    """The worker has set aside a command, though nothing is wrong with it."""


class CommandQueue(Source):
    """Commands, each with a future. When that is done the worker has applied it, so every promise of `invalidate`
    holds."""

    part = "commands"
    limit = LIMIT
    hold_s = HOLD_S

    def __init__(self, settings: Settings) -> None:
        self.worker = SourceWorker("commands", self, settings)
        self._waiting: dict[int, tuple[Invalidate, asyncio.Future[None]]] = {}
        self._held: dict[int, frozenset[int]] = {}
        """Commands that wait for a primary that is away, with the shards that they need."""
        self._next = 0
        self._added = asyncio.Event()

    async def invalidate(self, subject: SourceItem) -> None:
        """Return when the worker has invalidated the item."""
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
        self._added.set()
        await done

    def fail_pending(self) -> None:
        """Fail every command that is not applied yet."""
        for _, done in self._waiting.values():
            if not done.done():
                done.set_exception(InvalidationFailed("the worker has not applied it in time"))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Session]:
        """See `Source.opened`."""
        yield _QueueSession(self)

    async def next_batch(self, limit: int, away: Collection[int]) -> Batch:
        """At most `limit` commands that do not need a shard whose primary is away."""
        held = {number for number, shards in self._held.items() if shards.intersection(away)}
        found = [number for number in self._waiting if number not in held][:limit]
        if not found:
            self._added.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await self._added.wait()
        return Batch([Item(f"command {number}", number) for number in found])

    def command(self, number: int) -> Invalidate:
        """The command of this number."""
        return self._waiting[number][0]

    def settle(self, number: int, shards: frozenset[int] | None) -> None:
        """The command is applied; or, where `shards` are given, waits for their primaries."""
        self._held.pop(number, None)
        if shards is not None:
            self._held[number] = shards
            return
        _, done = self._waiting.pop(number)
        if not done.done():
            done.set_result(None)


class _QueueSession(Session):
    def __init__(self, commands: CommandQueue) -> None:
        self._commands = commands

    async def take(self, limit: int, away: Collection[int]) -> Batch:
        """See `Session.take`."""
        return await self._commands.next_batch(limit, away)

    def mean(self, item: Item) -> Meaning:
        """See `Session.mean`."""
        return Meaning([self._commands.command(item.raw)])

    def letter(self, item: Item, reason: str) -> DeadLetter:
        """See `Session.letter`."""
        return DeadLetter(b"", reason, item.place, 1)

    async def set_aside(self, letters: Sequence[DeadLetter]) -> None:
        """See `Session.set_aside`."""
        raise WronglySetAside("; ".join(letter.reason for letter in letters))

    async def acknowledge(self, batch: Batch, left: Left) -> None:
        """See `Session.acknowledge`."""
        waiting = {one.item.raw: one.shards for one in left.waiting}
        undone = {item.raw for item in left.undone}
        for item in batch.items:
            if item.raw not in undone:
                self._commands.settle(item.raw, waiting.get(item.raw))

    async def look(self) -> Look:
        """See `Session.look`."""
        return Look()
