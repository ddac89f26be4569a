"""The store over shards in memory: the twin of the one on Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import overload

from cachebus.base.backoff import RECONNECT_FIRST_S
from cachebus.base.clock import monotonic
from cachebus.base.losses import Losses
from cachebus.core.ports import Caller, Change, FillLeaseReply, KeyFacts, LogEntry, NodesReply, ProbeReply, ReadReply
from cachebus.core.requests import FillLeaseRequest, FillRequest, GuardRequest, WriteRequest
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.l2.memory import MemoryShard


class MemoryShards(Sequence[MemoryShard]):
    """All shards of one memory store; `away` plays an outage: every operation then raises `L2Unavailable`."""

    def __init__(self, shards: Sequence[MemoryShard]) -> None:
        self._shards = tuple(shards)
        self.away = False

    def __len__(self) -> int:
        return len(self._shards)

    @overload
    def __getitem__(self, index: int) -> MemoryShard: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[MemoryShard]: ...

    def __getitem__(self, index: int | slice) -> MemoryShard | Sequence[MemoryShard]:
        if self.away:
            raise L2Unavailable("the memory store is away")
        return self._shards[index]


async def _answered(data: bytes | None) -> bytes | None:
    return data


class MemoryStore:
    """A `Store` over `MemoryShards`, which several caches of a process may share."""

    def __init__(self, shards: MemoryShards) -> None:
        self._shards = shards
        self._open = False
        self.checked = [False] * len(shards)
        """By shard: whether a probe has been answered since the last outage."""
        self.opened = 0
        self.losses = Losses(monotonic)
        """There are none."""

    @property
    def connected(self) -> bool:
        """Whether the store can be reached."""
        return self._open and not self._shards.away

    def reaches(self, shard: int) -> bool:
        """See `Store.reaches`."""
        return self.connected

    def lies_at(self, shard: int) -> None:
        """See `Store.lies_at`."""

    async def reach(self, shard: int) -> None:
        """See `Store.reach`."""
        if self._shards.away:
            await asyncio.sleep(RECONNECT_FIRST_S)
        await self.connect()

    async def connect(self) -> None:
        """See `Store.connect`."""
        if self._shards.away:
            raise L2Unavailable("the memory store is away")
        if not self._open:
            self._open = True
            self.opened += 1

    async def close(self) -> None:
        """The shards stay, for others that share them."""
        self._open = False
        self.checked = [False] * len(self.checked)

    def _shard(self, index: int) -> MemoryShard:
        if not self._open:
            raise L2Unavailable("not connected to the memory store")
        return self._shards[index]

    async def probe(self, shard: int, caller: Caller, *, with_invalidated: bool) -> ProbeReply:
        """See `Store.probe`."""
        self.checked[shard] = False
        reply = self._shard(shard).probe(caller, with_invalidated)
        self.checked[shard] = True
        return reply

    async def nodes(self, shard: int, caller: Caller) -> NodesReply:
        """See `Store.nodes`."""
        return self._shard(shard).nodes(caller)

    async def forget(self, shard: int, caller: Caller, node: str, *, lives: bool) -> bool:
        """See `Store.forget`."""
        return self._shard(shard).forget(caller, node, lives)

    def get(self, key: Key) -> Awaitable[bytes | None]:
        """See `Store.get`."""
        # Asked at once, and a store that is away raises here: of many gets none must be left that nobody awaits.
        return _answered(self._shard(key.shard).get(key))

    async def read(self, shard: int, caller: Caller, keys: Sequence[Key]) -> ReadReply:
        """See `Store.read`."""
        return self._shard(shard).read(caller, keys)

    async def fill_lease(self, key: Key, caller: Caller, request: FillLeaseRequest) -> FillLeaseReply:
        """See `Store.fill_lease`."""
        return self._shard(key.shard).fill_lease(key, caller, request)

    def extend(self, key: Key, token: str, px_ms: int) -> None:
        """See `Store.extend`."""
        if self.connected:  # else the fill lease ends by its px
            self._shard(key.shard).hold(key, token, px_ms=px_ms)

    def release(self, key: Key, token: str) -> None:
        """See `Store.release`."""
        if self.connected:
            self._shard(key.shard).hold(key, token, px_ms=0)

    def cool_down(self, key: Key, token: str, px_ms: int) -> None:
        """See `Store.cool_down`."""
        if self.connected:
            self._shard(key.shard).hold(key, token, px_ms=px_ms, cools_down=True)

    async def fill(self, key: Key, caller: Caller, request: FillRequest) -> Change:
        """See `Store.fill`."""
        return self._shard(key.shard).fill(key, caller, request)

    async def invalidate(
        self, shard: int, caller: Caller, keys: Sequence[Key], scopes: Sequence[str], body: bytes
    ) -> Change:
        """See `Store.invalidate`."""
        return self._shard(shard).invalidate(caller, keys, scopes, body)

    async def guard(self, shard: int, caller: Caller, request: GuardRequest, body: bytes) -> Change:
        """See `Store.guard`."""
        return self._shard(shard).guard(caller, request, body)

    async def write(self, key: Key, caller: Caller, request: WriteRequest) -> Change:
        """See `Store.write`."""
        return self._shard(key.shard).write(key, caller, request)

    async def counter(self, key: Key, caller: Caller, amount: int, request: str, expires_ms: int) -> int | None:
        """See `Store.counter`."""
        return self._shard(key.shard).counter(key, caller, amount, request, expires_ms)

    async def log(self, shard: int, after: int, count: int) -> list[LogEntry]:
        """See `Store.log`."""
        return self._shard(shard).log(after, count)

    async def inspect(self, key: Key) -> KeyFacts:
        """See `Store.inspect`."""
        return self._shard(key.shard).inspect(key)

    async def identity(self) -> str:
        """See `Store.identity`."""
        return self._shards[0].identity

    async def publish(self, shard: int, message: bytes, *, to: str = "", sharded: bool = False) -> None:
        """See `Store.publish`. In one process there is one channel for all."""
        self._shard(shard).publish(message)
