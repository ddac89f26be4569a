"""Sockets that look alive while their bytes go nowhere: each direction, data and subscription apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from cachebus import Cache, CacheBusError, InvalidationFailed, L2Unavailable, Receipt
from cachebus.base.clock import monotonic
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, nodes, past, quick, until
from tests.support.way import Way

WHERE = {"tenant_id": "acme"}
L2_TIMEOUT_S = 0.5
WRITES: dict[str, Callable[[Cache], Awaitable[Receipt]]] = {
    "key": lambda cache: cache.invalidate("config", "x", **WHERE),
    "set": lambda cache: cache.set("config", "x", "new", **WHERE),
    "scope": lambda cache: cache.invalidate_scope("acme", "config"),
    "tag": lambda cache: cache.invalidate_tags(["t"], **WHERE),
}


class Ways(Way):
    """Connections can be made to hang: asked or answered, for data or for a subscription."""

    def __init__(self, to_port: int) -> None:
        super().__init__(to_port)
        self._hang: set[tuple[str, str]] = set()
        self._changed = asyncio.Event()

    def hang(self, *which: tuple[str, str]) -> None:
        """From now on bytes of these (kind, direction) are kept; what was kept goes on. New connections are spared."""
        self._hang = set(which)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _before(self, data: bytes, direction: str, kind: list[str]) -> None:
        if b"SUBSCRIBE" in data:
            kind.append("pubsub")
        while ("pubsub" if kind else "data", direction) in self._hang:
            await self._changed.wait()


@pytest.fixture
async def ways(redis_server: EmbeddedServer) -> AsyncIterator[Ways]:
    """The way of node b."""
    async with Ways(redis_server.port) as ways:
        yield ways


HANGS = {
    "data asked": [("data", "asked")],
    "data answered": [("data", "answered")],
    "subscription asked": [("pubsub", "asked")],
    "subscription answered": [("pubsub", "answered")],
    "everything answered": [("data", "answered"), ("pubsub", "answered")],
    "everything": [(kind, way) for kind in ("data", "pubsub") for way in ("asked", "answered")],
}


async def reads(cache: Cache) -> list[Any]:
    """By memory, past it, by many and by levels; what is out of reach says so."""
    found: list[Any] = []
    for call in (
        cache.get("config", "x", **WHERE),
        cache.get("config", "x", use_memory=False, **WHERE),
        cache.get("config", "x", agent_id="a", search_hierarchy=True, **WHERE),
    ):
        with suppress(L2Unavailable):
            found.append(await call)
    return found


@pytest.mark.parametrize("hang", HANGS)
async def test_a_half_open_socket_serves_nothing_older_than_d_and_is_given_up(
    redis_server: EmbeddedServer, ways: Ways, hang: str
) -> None:
    async def scenario(write: str) -> None:
        async with nodes(redis_server.url, 1, namespace=write) as (a,), Cache(settings(ways, write)) as b:
            receipt = await a.set("config", "x", "old", **WHERE, tags=["t"])
            assert await b.get("config", "x", **WHERE, after=receipt) == "old"
            ready[write].set()
            await hung.wait()
            await WRITES[write](a)
            await past(monotonic() + D_S)
            started_s = monotonic()
            assert "old" not in await reads(b), write
            assert monotonic() - started_s < 3 * 1.25 * L2_TIMEOUT_S + 1.5
            done.append(write)
            await until(lambda: len(done) == len(WRITES))
            ways.hang()
            await until(lambda: b.ready() and b.stats().l2_connected and b.stats().bus_connected)
            assert "old" not in await reads(b)
            await a.set("config", "x", "newest", **WHERE)
            await until(lambda: _is(b, "newest"))

    def settings(ways: Ways, write: str) -> Any:
        return quick(f"redis://127.0.0.1:{ways.port}/0", namespace=write, l2_timeout_s=L2_TIMEOUT_S)

    hung, done = asyncio.Event(), list[str]()
    ready = {write: asyncio.Event() for write in WRITES}

    async def hanging() -> None:
        for event in ready.values():
            await event.wait()
        ways.hang(*HANGS[hang])
        hung.set()

    await asyncio.gather(hanging(), *map(scenario, WRITES))


async def _is(cache: Cache, value: str) -> bool:
    return bool(await cache.get("config", "x", **WHERE) == value)


@pytest.mark.parametrize("hang", ["data answered", "data asked", "subscription answered", "everything"])
async def test_a_server_that_hangs_while_a_node_attaches_is_told_in_time_and_leaves_nothing(
    redis_server: EmbeddedServer, ways: Ways, hang: str
) -> None:
    ways.hang(*HANGS[hang])
    cache = Cache(quick(f"redis://127.0.0.1:{ways.port}/0", connect_timeout_s=0.4))
    started_s = monotonic()
    with pytest.raises(CacheBusError):
        await cache.__aenter__()
    assert monotonic() - started_s < 3
    ways.hang()
    async with cache:
        await cache.set("config", "x", 1, **WHERE)
        assert await cache.get("config", "x", **WHERE) == 1


@pytest.mark.parametrize("write", WRITES)
async def test_a_deaf_node_whose_commands_work_and_which_was_told_nothing_judges_no_record_by_old_marks(
    redis_server: EmbeddedServer, ways: Ways, write: str
) -> None:
    """Its lease lapses because its probes hang: until it knows better it has L2 judge what it reads."""
    async with nodes(redis_server.url, 1) as (a,), Cache(quick(f"redis://127.0.0.1:{ways.port}/0")) as b:
        receipt = await a.set("config", "x", "old", **WHERE, tags=["t"])
        assert await b.get("config", "x", **WHERE, after=receipt) == "old"
        ways.hang(("pubsub", "answered"))
        b._parts.listening.heartbeat.cancel()  # type: ignore[union-attr]
        await WRITES[write](a)
        await past(monotonic() + D_S)  # the lease, and what an entry may be served for after its own reading
        for _ in range(3):
            assert "old" not in await reads(b)
        ways.hang()


@pytest.mark.parametrize("write", WRITES)
async def test_a_command_that_times_out_after_it_ran_is_told_and_holds_everywhere(
    redis_server: EmbeddedServer, ways: Ways, write: str
) -> None:
    """Its question arrives, its answer does not; repeated with its request id, a counter adds nothing."""
    url = f"redis://127.0.0.1:{ways.port}/0"
    async with nodes(redis_server.url, 1) as (a,), Cache(quick(url, l2_timeout_s=0.3)) as b:
        await WRITES[write](a)  # the server knows the script: else it would ask for it, and nobody would hear
        receipt = await a.set("config", "x", "old", **WHERE, tags=["t"])
        assert await b.get("config", "x", **WHERE, after=receipt) == "old"
        seq = a.stats().shards[0].applied
        ways.hang(("data", "answered"))
        calls = [WRITES[write](b), b.increment("hits", **WHERE, value=3, request_id="once")]
        told = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(told[0], L2Unavailable if write == "set" else InvalidationFailed)
        assert isinstance(told[1], L2Unavailable)
        await until(lambda: a.stats().shards[0].applied == seq + 1)  # it ran
        expected = "new" if write == "set" else None
        assert await a.get("config", "x", **WHERE) == expected
        assert "old" not in await reads(b)
        ways.hang()
        await until(lambda: b.ready() and b.stats().l2_connected)
        for cache in (a, b):
            assert await cache.get("config", "x", **WHERE) == expected
        assert await b.increment("hits", **WHERE, value=3, request_id="once") == 3
