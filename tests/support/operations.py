"""Every operation of a cache, each from a state in which its steps matter, on a stage of two nodes and one source."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from cachebus import Cache, CacheManager, Policy, Receipt, cached, get_with_cache_aside, invalidate_coordinated
from cachebus.helpers import increment_counter
from cachebus.keys.key import Key
from cachebus.reading.waiting import Waiters
from tests.support.caches import key_of, parts, until
from tests.support.steps import Cancelling, Steps

OLD = 1
"""The version that everything begins with; what an invalidation that has returned replaced."""
LEASE_MS = 5_000
WHERE: dict[str, Any] = {"tenant_id": "acme"}
DEEP: dict[str, Any] = {"tenant_id": "acme", "agent_id": "a", "collection_id": "c"}
POLICIES = {"safe": Policy(ttl_s=60, fail_safe_s=60, retries=0), "fresh": Policy(ttl_s=60, soft_ttl_s=0.3)}
Clock = Callable[[], float]


class Stage:
    """Node a, to which things happen; node b, which works; and a source with one resource "x"."""

    def __init__(self, a: Cache, b: Cache, clock: Clock) -> None:
        self.a, self.b, self.clock = a, b, clock
        self.version = OLD
        self.data_type = "config"
        self.steps = Steps()
        self.receipt: Receipt | None = None
        self.deafened = False
        self.loads = 0
        self.others: list[asyncio.Task[Any]] = []

    async def load(self) -> int:
        """The source: slow, and it gives what it had when it was asked."""
        return await self.steps.step("load", self._read)

    async def _read(self) -> int:
        self.loads += 1
        version = self.version
        await asyncio.sleep(0.01)
        return version

    async def load_many(self, ids: list[str]) -> dict[str, int]:
        """The source, asked for several: it has the same for each."""
        return dict.fromkeys(ids, await self.load())

    async def failing(self) -> int:
        """The source, while it is down."""
        await asyncio.sleep(0.01)
        raise RuntimeError("down")

    def key(self) -> Key:
        """The key of "x"."""
        return key_of(self.b, self.data_type, "x", "acme")

    async def read(self, cache: Cache, **how: Any) -> Any:
        """What a node has of "x"."""
        return await cache.get(self.data_type, "x", **WHERE, **how)

    async def get_or_load(self, cache: Cache, **how: Any) -> Any:
        """What a node has of "x", or loads."""
        return await cache.get_or_load(self.data_type, "x", self.load, **{**WHERE, "tags": ["t"], **how})

    async def set(self, cache: Cache) -> Receipt:
        """A newer version, by a node."""
        self.version += 1
        return await cache.set(self.data_type, "x", self.version, **WHERE, tags=["t"])

    def lose_connections(self) -> None:
        """What lies behind them must be asked for anew, as after a restart."""
        for cache in (self.a, self.b):
            if cache._parts is not None:
                parts(cache).store.checked = [False]

    def deafen(self) -> None:
        """Node a hears nothing from the bus any more, and nothing tells it."""
        if self.a._parts is not None and not self.deafened:
            self.deafened = True
            self._ears: Any = parts(self.a).listening.receiver
            self._woken, self._ears._waiters = self._ears._waiters, Waiters()
            self._ears._on_event = lambda shard, message: None

    def hear(self) -> None:
        """It hears again."""
        if self.deafened:
            self.deafened = False
            self._ears._waiters = self._woken
            del self._ears._on_event

    async def settle(self) -> None:
        """Let what is under way on the bus arrive."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def both_hold(self, data_type: str = "config", ttl: float | None = None) -> None:
        """Version 1 in L2, and in the memory of both."""
        self.data_type = data_type
        for _ in range(1 if ttl is None else 20):  # a busy machine may take longer to read it twice than it lives
            receipt = await self.b.set(data_type, "x", OLD, **WHERE, ttl=ttl, tags=["t"])
            held = [await self.read(cache, after=receipt) for cache in (self.a, self.b)]
            if held == [OLD, OLD]:
                break
        assert held == [OLD, OLD]
        await self.settle()


Prepare = Callable[[Stage], Awaitable[None]]
Run = Callable[[Stage], Awaitable[Any]]


class Operation(NamedTuple):
    """What to prepare, and what to run then on node a."""

    prepare: Prepare
    run: Run
    tagged: bool = True
    """Whether what it stores bears the tag "t"."""


async def empty(stage: Stage) -> None:
    """Nothing anywhere."""


async def in_l2(stage: Stage) -> None:
    """Version 1 in L2 and with b; a has not read it."""
    receipt = await stage.b.set(stage.data_type, "x", OLD, **WHERE, tags=["t"])
    assert await stage.read(stage.b, after=receipt) == OLD
    await stage.settle()


async def everywhere(stage: Stage) -> None:
    """Version 1 in L2 and in the memory of both."""
    await stage.both_hold()


async def unleased(stage: Stage) -> None:
    """As `in_l2`, and a may not judge by itself what it reads."""
    await in_l2(stage)
    parts(stage.a).node.void(0, "test")


async def behind(stage: Stage) -> None:
    """B has replaced what both held, and a has not heard of it."""
    await stage.both_hold()
    stage.deafen()
    stage.receipt = await stage.b.invalidate_scope("acme", "other")


async def replaced(stage: Stage) -> None:
    """As `behind`, and what b replaced is "x"."""
    await stage.both_hold()
    stage.deafen()
    stage.version += 1
    stage.receipt = await stage.b.invalidate("config", "x", **WHERE)


async def trimmed(stage: Stage) -> None:
    """As `behind`, and the log does not go back as far."""
    await behind(stage)
    store: Any = parts(stage.a).store
    for shard in store._shards:
        shard.messages.clear()


async def expired(stage: Stage) -> None:
    """Version 1 is past its time, and may stand in for a source that is down."""
    await stage.both_hold("safe", 0.3)
    await asyncio.sleep(0.35)


async def soft(stage: Stage) -> None:
    """Version 1 is old enough to be refreshed."""
    await stage.both_hold("fresh")
    await asyncio.sleep(0.35)


async def loading_elsewhere(stage: Stage) -> None:
    """B loads, and holds the lease."""
    stage.others.append(asyncio.create_task(stage.get_or_load(stage.b)))
    await asyncio.sleep(0.001)


@contextmanager
def process_wide(cache: Cache) -> Iterator[None]:
    """Node a as the process's cache, for the function API."""
    CacheManager._cache = cache
    try:
        yield
    finally:
        CacheManager._cache = None  # not what was there before: several stages may play at once


async def _aside(stage: Stage) -> Any:
    with process_wide(stage.a):
        value, _ = await get_with_cache_aside(stage.data_type, "x", "acme", stage.load)
        return value


async def _decorated(stage: Stage) -> Any:
    @cached("config", resource_id="{name}", tenant_id="acme", cache=stage.a)
    async def value(name: str) -> int:
        return await stage.load()

    return await value("x")


async def _coordinated(stage: Stage) -> Any:
    stage.version += 1
    with process_wide(stage.a):
        related = [{"data_type": "other", "resource_id": "*"}, {"data_type": "config", "resource_id": "y"}]
        return (await invalidate_coordinated("acme", "config", "x", related)).receipt


async def _counted(stage: Stage) -> Any:
    with process_wide(stage.a):
        return await increment_counter("hits", "acme", request_id="once")


async def _joined(stage: Stage) -> Any:
    """Two callers of one load."""
    other = asyncio.create_task(stage.get_or_load(stage.a))
    stage.others.append(other)
    await asyncio.sleep(0.001)
    return await stage.get_or_load(stage.a)


async def _many(stage: Stage) -> Any:
    """Of three ids, as one batch."""
    found = await stage.a.get_or_load_many(stage.data_type, ["w", "x", "y"], stage.load_many, **WHERE, tags=["t"])
    return found.get("x")


async def _some(stage: Stage) -> Any:
    """Two batches at once that overlap."""
    other = stage.a.get_or_load_many(stage.data_type, ["y", "x"], stage.load_many, **WHERE, tags=["t"])
    stage.others.append(asyncio.create_task(other))
    await asyncio.sleep(0.001)
    return await _many(stage)


async def _coalesced(stage: Stage) -> Any:
    """Three calls of one tick."""
    found = await asyncio.gather(
        *(
            stage.a.get_or_load(stage.data_type, one, batch=stage.load_many, **WHERE, tags=["t"])
            for one in ("w", "x", "y")
        )
    )
    return found[1]


async def _set_many(stage: Stage) -> Any:
    stage.version += 1
    values = dict.fromkeys(("w", "x", "y"), stage.version)
    return await stage.a.set_many(stage.data_type, values, **WHERE, tags=["t"])


async def _refreshed(stage: Stage) -> Any:
    value = await stage.get_or_load(stage.a)
    await until(lambda: not parts(stage.a).loads.flights)
    return value


async def _added(stage: Stage) -> Any:
    stage.version += 1
    return await stage.a.add("config", "x", stage.version, **WHERE)


async def _replaced(stage: Stage, how: str) -> Any:
    stage.version += 1
    return await REPLACING[how](stage.a)


async def _invalidated_many(stage: Stage) -> Any:
    stage.version += 1
    return await stage.a.invalidate_many("config", ["w", "x", "y"], **WHERE)


async def _reopened(stage: Stage) -> Any:
    await stage.a.aclose()
    await stage.a.__aenter__()


REPLACING: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "key": lambda cache: cache.invalidate("config", "x", **WHERE),
    "contexts": lambda cache: cache.invalidate("config", "x", **WHERE, contexts="all"),
    "type": lambda cache: cache.invalidate_scope("acme", "config"),
    "tenant": lambda cache: cache.invalidate_scope("acme"),
    "tag": lambda cache: cache.invalidate_tags(["t"], **WHERE),
}
LOADS = {
    "get_or_load": Operation(empty, lambda s: s.get_or_load(s.a)),
    "get_or_load after a write": Operation(replaced, lambda s: s.get_or_load(s.a, after=s.receipt)),
    "get_or_load by contexts": Operation(
        empty, lambda s: s.a.get_or_load("config", "x", s.load, **DEEP, search_hierarchy=True, tags=["t"])
    ),
    "get_or_load while another node loads": Operation(loading_elsewhere, lambda s: s.get_or_load(s.a)),
    "get_or_load of an expired value": Operation(expired, lambda s: s.get_or_load(s.a)),
    "get_or_load, the source down": Operation(
        expired, lambda s: s.a.get_or_load("safe", "x", s.failing, **WHERE, tags=["t"])
    ),
    "a load for two": Operation(empty, _joined),
    "a refresh ahead": Operation(soft, _refreshed),
    "a batch": Operation(empty, _many),
    "a batch, another node loading some": Operation(loading_elsewhere, _many),
    "a batch of expired values": Operation(expired, _many),
    "two batches that overlap": Operation(empty, _some),
    "loads of one tick": Operation(empty, _coalesced),
    "cache-aside": Operation(empty, _aside, tagged=False),
    "a cached function": Operation(empty, _decorated, tagged=False),
}
READS = {
    "get": Operation(in_l2, lambda s: s.read(s.a)),
    "get without a lease": Operation(unleased, lambda s: s.read(s.a)),
    "get past memory": Operation(everywhere, lambda s: s.read(s.a, use_memory=False)),
    "get after a write": Operation(behind, lambda s: s.read(s.a, after=s.receipt)),
    "get_many": Operation(in_l2, lambda s: s.a.get_many("config", ["x", "y", "z"], **WHERE)),
    "get by contexts": Operation(in_l2, lambda s: s.a.get("config", "x", **DEEP, search_hierarchy=True)),
}
WRITES = {
    "set": Operation(everywhere, lambda s: s.set(s.a)),
    "set_many": Operation(everywhere, _set_many),
    "invalidate_many": Operation(everywhere, _invalidated_many),
    "add": Operation(empty, _added, tagged=False),
    "delete": Operation(everywhere, lambda s: _replaced(s, "key")),
    **{f"invalidate by {how}": Operation(everywhere, lambda s, how=how: _replaced(s, how)) for how in REPLACING},
    "invalidate_coordinated": Operation(everywhere, _coordinated),
}
UPKEEP = {
    "increment": Operation(everywhere, _counted),
    "a probe": Operation(everywhere, lambda s: s.a.probe()),
    "catching up": Operation(behind, lambda s: s.a.probe()),
    "a flush": Operation(trimmed, lambda s: s.a.probe()),
    "close and open": Operation(everywhere, _reopened),
}
OPERATIONS = {**READS, **LOADS, **WRITES, **UPKEEP}
__all__ = ["LOADS", "OLD", "OPERATIONS", "READS", "REPLACING", "UPKEEP", "WRITES", "Cancelling", "Operation", "Stage"]
