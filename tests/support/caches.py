"""Several caches in one process, each a node of its own, and what tests do to them: count, deafen, wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from cachebus import Cache, Policy, Receipt, Settings
from cachebus.assembly.factory import Parts
from cachebus.base.clock import monotonic
from cachebus.base.ids import Id, check_part
from cachebus.errors import L2Unavailable
from cachebus.keys.key import Key
from cachebus.policy import Rules

D_S = 0.6
"""The staleness bound of the caches in tests."""
QUICK: dict[str, Any] = {
    "staleness_bound_s": D_S,
    "probe_interval_s": 0.1,
    "gap_grace_s": 0.02,
    "l2_timeout_s": 0.5,
    "connect_timeout_s": 5.0,
    "close_timeout_s": 2.0,
}
PATIENCE_S = 30.0
_ASKED = ("probe", "get", "read", "fill_lease", "fill", "invalidate", "write", "counter", "log")


def quick(url: str, **more: Any) -> Settings:
    """Settings with a small D."""
    return Settings(**{"url": url, **QUICK, **more})


@asynccontextmanager
async def nodes(
    url: str, count: int = 2, *, policies: dict[str, Policy] | None = None, **more: Any
) -> AsyncIterator[list[Cache]]:
    """So many open caches at the URL."""
    async with AsyncExitStack() as stack:
        caches = [Cache(quick(url, policies=policies or {}, **more)) for _ in range(count)]
        yield [await stack.enter_async_context(cache) for cache in caches]


def parts(cache: Cache) -> Parts:
    """What an open cache is made of."""
    found = cache._parts
    assert found is not None
    return found


def key_of(cache: Cache, data_type: str, resource_id: Id, tenant_id: Id) -> Key:
    """The key of these ids."""
    return parts(cache).naming.key(data_type, resource_id, tenant_id)


def waiting_in(cache: Cache) -> int:
    """How many of its flights wait for another node's load."""
    return len(parts(cache).listening.receiver._waiters)


def never_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for another node's load asks again only when it is woken: its pause is longer than any test."""
    for name in ("BACKOFF_FIRST_S", "BACKOFF_MAX_S"):
        monkeypatch.setattr(f"cachebus.reading.miss.{name}", 60.0)


def rules_of(cache: Cache, data_type: str) -> Rules:
    """The rules of a data type; `InvalidKey`."""
    return parts(cache).policies.rules(check_part("data_type", data_type))


async def until(met: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
    """What `met` gives, or what the coroutine that it gives returns, once that is true. What can't be asked, as L2 is
    away or this machine is busy, is not true yet."""
    deadline_s = monotonic() + within_s
    while True:
        found, refused = met(), ""
        if asyncio.iscoroutine(found):
            try:
                found = await found
            except L2Unavailable as error:
                found, refused = None, f": {error}"
        if found:
            return found
        assert monotonic() < deadline_s, f"waited {within_s:g} s in vain{refused}"
        await asyncio.sleep(0.005)


async def heard(caches: list[Cache], *receipts: Receipt) -> None:
    """Until each of the caches has applied all of the receipts."""

    def met() -> bool:
        return all(cache.stats().shards[r.shard].applied >= r.seq for cache in caches for r in receipts)

    await until(met)


async def past(at_s: float) -> None:
    """Until the clock has passed this time."""
    await until(lambda: monotonic() > at_s)


@contextmanager
def asked(cache: Cache) -> Iterator[Counter[str]]:
    """Counts what the cache asks of its store meanwhile, by operation; the heartbeat's `probe` too."""
    store: Any = parts(cache).store
    counts: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return method(*args, **kwargs)

        return call

    for name in _ASKED:
        setattr(store, name, counted(name))
    try:
        yield counts
    finally:
        for name in _ASKED:
            delattr(store, name)


def data_calls(counts: Counter[str]) -> int:
    """How many of the counted operations were for data, and not the heartbeat's."""
    return sum(count for name, count in counts.items() if name not in ("probe", "log"))


@contextmanager
def deaf(*caches: Cache) -> Iterator[None]:
    """These caches hear nothing from the bus meanwhile; their commands work, and nothing tells them."""
    buses: list[Any] = [parts(cache).bus for cache in caches]
    heard = [bus._listener for bus in buses]
    for bus in buses:
        bus._listener = lambda shard, message: None
    try:
        yield
    finally:
        for bus, listener in zip(buses, heard, strict=True):
            bus._listener = listener


class Source:
    """A database: values by id, how often it was asked, and what it does when asked."""

    def __init__(self, **values: Any) -> None:
        self.values: dict[str, Any] = values
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def load(self, resource_id: str) -> Any:
        """The value, read when the load begins and given when the gate is open: a slow query."""
        self.calls += 1
        value = self.values.get(resource_id)
        self.asked.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return value

    def hold(self) -> None:
        """Let loads hang until `release`."""
        self.gate.clear()
        self.asked.clear()

    def release(self) -> None:
        """Let them go on."""
        self.gate.set()


async def fill(caches: list[Cache], *ids: str) -> None:
    """Every node holds these in its memory."""
    for one in ids:
        await caches[0].set("config", one, "old", "acme")
        for cache in caches:
            assert await cache.get("config", one, "acme") == "old"


async def gone(caches: list[Cache], *ids: str) -> None:
    """Until no node has any of them."""
    for cache in caches:
        for one in ids:
            await until(lambda c=cache, i=one: _absent(c, i))


async def _absent(cache: Cache, resource_id: str) -> bool:
    with suppress(L2Unavailable):
        return await cache.get("config", resource_id, "acme") is None
    return False
