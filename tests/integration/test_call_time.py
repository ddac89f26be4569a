"""However many steps of a call a server lets wait, the call waits no longer than for one that is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus import Cache, L2Unavailable
from cachebus.base.budget import AT_ONCE
from cachebus.errors import CacheBusError, InvalidationFailed
from cachebus.producers import DirectProducer
from cachebus.resp import mapped
from cachebus.testing import Fleet
from cachebus.tools.servers.redis import HOST, EmbeddedServer
from tests.support.caches import PATIENCE_S, Source, parts, quick
from tests.support.way import Way

TIMEOUT_S = 0.1
WHERE = {"tenant_id": "acme"}


def slow(answer: Any) -> Callable[..., Any]:
    """A step that has an answer, but late."""

    async def step(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(2 * AT_ONCE * TIMEOUT_S)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return step


async def never(*_: Any, **__: Any) -> Any:
    """A step that has none."""
    await asyncio.Event().wait()


async def load(cache: Cache) -> Any:
    """A read that may load."""
    return await cache.get_or_load("config", "x", Source(x=1).load, **WHERE)


async def load_around(cache: Cache) -> Any:
    """The same, after a search."""
    return await cache.get_or_load("config", "x", Source(x=1).load, **WHERE, agent_id="a", search_hierarchy=True)


async def get(cache: Cache) -> Any:
    """A read."""
    return await cache.get("config", "x", **WHERE)


@pytest.mark.parametrize(
    ("ask", "first", "then"),
    [
        (load, {"get": None}, "fill_lease"),
        (load_around, {"get": None}, "fill_lease"),
        (load, {"get": None, "fill_lease": ...}, "fill"),
        (get, {"get": mapped("WRONGTYPE of another's")}, "read"),
    ],
)
async def test_a_read(ask: Callable[[Cache], Awaitable[Any]], first: dict[str, Any], then: str) -> None:
    async with Fleet(1, l2_timeout_s=TIMEOUT_S) as fleet:
        (cache,) = fleet.caches
        store: Any = parts(cache).store
        for name, answer in first.items():
            if answer is ...:
                real = getattr(store, name)

                async def late(*args: Any, real: Any = real, **how: Any) -> Any:
                    await asyncio.sleep(2 * AT_ONCE * TIMEOUT_S)
                    return await real(*args, **how)

                setattr(store, name, late)
            else:
                setattr(store, name, slow(answer))
        setattr(store, then, never)
        async with asyncio.timeout(PATIENCE_S):
            try:
                assert await ask(cache) == 1
            except L2Unavailable:
                assert ask is get


async def test_a_write_that_has_waited_for_earlier_ones() -> None:
    async with Fleet(1, l2_timeout_s=TIMEOUT_S) as fleet:
        (cache,) = fleet.caches
        of = parts(cache)
        of.writing.pending.make_way = slow(None)  # type: ignore[method-assign]
        store: Any = of.store
        store.write = store.guard = never
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(L2Unavailable):
                await cache.set("config", "x", 1, **WHERE)
            with pytest.raises(InvalidationFailed):
                async with cache.write_guard([("config", "x")], "acme", db_timeout_s=1):
                    raise AssertionError("it does not stand")


Late = Callable[[bytes], float | None]
"""How long a question of a client waits before the server gets it; None: for ever."""


class LateWay(Way):
    """A way that holds questions up, by the last of `holds`."""

    def __init__(self, to_port: int) -> None:
        super().__init__(to_port)
        self.holds: list[Late] = [lambda _: 0.0]

    async def _before(self, data: bytes, direction: str, kind: list[str]) -> None:
        wait_s = self.holds[-1](data) if direction == "asked" else 0.0
        if wait_s is None:
            await asyncio.Event().wait()
        await asyncio.sleep(wait_s or 0.0)


@asynccontextmanager
async def way_to(server: EmbeddedServer) -> AsyncIterator[tuple[str, list[Late]]]:
    """A URL of the server over a way that holds questions up, by the last of these."""
    async with LateWay(server.port) as way:
        yield f"redis://{HOST}:{way.port}/0", way.holds


STEP_S = 0.5
SILENT = quick("memory://").l2_timeout_s
CALLS: dict[str, Callable[[Cache], Awaitable[Any]]] = {
    "set": lambda cache: cache.set("config", "x", 2, **WHERE),
    "increment": lambda cache: cache.increment("n", **WHERE),
}


@pytest.mark.parametrize("name", ["set", "increment", "invalidate"])
async def test_a_script_that_the_server_does_not_know_is_one_step(own_server: EmbeddedServer, name: str) -> None:
    """It says so late, and is silent when it is given the source."""
    async with way_to(own_server) as (url, holds):
        settings = quick(url, probe_interval_s=300.0, staleness_bound_s=600.0)

        def hold(data: bytes) -> float | None:
            return None if b"\r\nEVAL\r\n" in data else STEP_S * SILENT if b"EVALSHA" in data else 0.0

        async with Cache(settings) as cache, DirectProducer.open(settings) as producer:
            await cache.set("config", "x", 1, **WHERE)
            await cache.increment("n", **WHERE)
            await producer.invalidate("config", "z", **WHERE)
            assert own_server.command("SCRIPT", "FLUSH") == "+OK"
            holds.append(hold)
            with pytest.raises(CacheBusError, match="all steps together"):
                await (producer.invalidate("config", "z", **WHERE) if name == "invalidate" else CALLS[name](cache))
            holds.append(lambda _: 0.0)


async def test_the_steps_to_a_new_epoch_last_no_longer_than_one_call(own_server: EmbeddedServer) -> None:
    """The first answer, that there is another one, comes at once; the next two are late."""
    async with way_to(own_server) as (url, holds), DirectProducer.open(quick(url)) as producer:
        await producer.invalidate("config", "x", **WHERE)
        assert own_server.command("FLUSHALL") == "+OK"
        asked = 0

        def hold(data: bytes) -> float | None:
            nonlocal asked
            asked += b"EVAL" in data
            return [0.0, STEP_S * SILENT, None][min(asked, 3) - 1] if b"EVAL" in data else 0.0

        holds.append(hold)
        with pytest.raises(InvalidationFailed, match="all steps together"):
            await producer.invalidate("config", "x", **WHERE)
        assert asked == 3
        holds.append(lambda _: 0.0)
