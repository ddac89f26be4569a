"""A server that answers, and says no: full, read-only, without replicas, busy; or that kills whom it finds too slow.

None of that is an answer: it counts as L2 lost. And servers that come back with something older than they had.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cachebus import Cache, CacheBusError, InvalidationFailed, L2Unavailable
from cachebus.base.clock import monotonic
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire.event import MAGIC
from tests.support.caches import D_S, Source, asked, data_calls, deaf, heard, nodes, parts, past, until
from tests.support.refusing import REFUSALS, Refusing
from tests.support.servers import any_binary

WHERE = {"tenant_id": "acme"}


async def back(caches: list[Cache]) -> None:
    """Until all have their connections and leases."""
    await until(lambda: all(c.ready() and c.stats().l2_connected and c.stats().bus_connected for c in caches))


@pytest.mark.parametrize("how", REFUSALS)
async def test_a_server_that_refuses_is_an_outage_in_which_nothing_old_is_served_and_nothing_is_silent(
    own_server: EmbeddedServer, how: str
) -> None:
    async with nodes(own_server.url, 2) as pair:
        a = pair[0]
        source = Source(x="old")
        for cache in pair:
            assert await cache.get_or_load("config", "x", source.load, **WHERE) == "old"
        refusing = Refusing(own_server, how)
        await refusing.begin()
        source.values["x"] = "new"
        # A full server takes an invalidation of keys, which makes room, and none that would add marks alone.
        refused = a.invalidate_scope("acme", "config") if how == "OOM" else a.invalidate("config", "x", **WHERE)
        with pytest.raises(InvalidationFailed):
            await refused
        with pytest.raises(L2Unavailable):
            await a.set("config", "y", 1, **WHERE)
        with pytest.raises(L2Unavailable):
            await a.increment("hits", **WHERE)
        refused_s = monotonic()
        await past(refused_s + D_S)
        assert await a.get_or_load("config", "x", source.load, **WHERE) == "new"  # without L2, and no lease lives
        assert not a.ready()
        await refusing.end()
        await until(lambda: _done(a.invalidate("config", "x", **WHERE)))
        returned_s = monotonic()
        await past(returned_s + D_S)
        await back(pair)
        for cache in pair:
            assert await cache.get_or_load("config", "x", source.load, **WHERE) == "new"
        assert a.stats().invalidations_failed >= 1


async def _done(call: Any) -> bool:
    try:
        await call
    except CacheBusError:
        return False
    return True


@pytest.mark.parametrize("how", ["OOM", "BUSY"])
async def test_a_fill_that_is_refused_does_not_hold_others_up_until_its_lease_ends(
    own_server: EmbeddedServer, how: str
) -> None:
    async with nodes(own_server.url, 2, lease_ms=60_000) as (a, b):
        source = Source(x=1)
        source.hold()
        loading = asyncio.create_task(a.get_or_load("config", "x", source.load, **WHERE))
        await source.asked.wait()
        refusing = Refusing(own_server, how)
        await refusing.begin()
        source.release()
        assert await loading == 1
        await refusing.end()
        await back([a, b])
        if how == "OOM":  # one that was busy refuses the release as well, or is given up: the lease ends by its px
            assert await asyncio.wait_for(b.get_or_load("config", "x", source.load, **WHERE), 5) == 1
        assert await a.get("config", "y", **WHERE) is None


async def test_a_subscriber_that_is_killed_for_its_full_buffer_misses_nothing(own_server: EmbeddedServer) -> None:
    """It does not read while more is published than the server keeps for it."""
    own_server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100kb 0 0")
    async with nodes(own_server.url, 2) as (a, b):
        receipt = await a.set("config", "x", "old", **WHERE)
        assert await b.get("config", "x", after=receipt, **WHERE) == "old"
        bus: Any = b._parts.bus  # type: ignore[union-attr]
        (subscriber,) = bus._links.by_shard
        transport = subscriber._transport
        transport.pause_reading()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        events = 0
        while await asyncio.to_thread(_subscribers, own_server) == 2:
            await a.invalidate_tags([f"{'t' * 200}{i}" for i in range(300)], **WHERE)
            events += 1
            assert events < 2000
        await a.invalidate("config", "x", **WHERE)
        await past(monotonic() + D_S)
        assert await b.get("config", "x", **WHERE) is None
        transport.resume_reading()
        await back([a, b])
        await heard([b], await a.set("config", "x", "new", **WHERE))
        assert await b.get("config", "x", **WHERE) == "new"
        await until(lambda: b.stats().reconnects >= 1)  # it reads what lies before the end first


def _subscribers(server: EmbeddedServer) -> int:
    import redis

    with redis.Redis(port=server.port, protocol=2) as client:
        return int(client.pubsub_numsub("{cachebus:0}:events:0")[0][1])


# -- what comes back is older ---------------------------------------------------------------------------


@pytest.fixture
def debugged() -> Iterator[EmbeddedServer]:
    """A server that takes DEBUG."""
    binary = any_binary()
    extra = ("--enable-debug-command", "local") if binary.version >= (7,) else ()
    with EmbeddedServer(binary, extra=extra) as server:
        yield server


@pytest.fixture
async def trio(debugged: EmbeddedServer) -> AsyncIterator[list[Cache]]:
    """Three nodes over it, each holding what will be old."""
    async with nodes(debugged.url, 3) as caches:
        for resource_id in ("x", "y"):
            receipt = await caches[0].set("config", resource_id, "old", **WHERE, tags=["t"])
            for cache in caches:
                assert await cache.get("config", resource_id, after=receipt, **WHERE) == "old"
        yield caches


async def test_debug_reload_loses_nothing(debugged: EmbeddedServer, trio: list[Cache]) -> None:
    a, b, _ = trio
    epoch = a.stats().shards[0].epoch
    await a.invalidate("config", "x", **WHERE)
    assert debugged.command("DEBUG", "RELOAD") == "+OK"
    await until(lambda: all(cache.ready() for cache in trio))
    assert {cache.stats().shards[0].epoch for cache in trio} == {epoch}
    for cache in trio:
        assert await cache.get("config", "x", use_memory=False, **WHERE) is None
        assert await cache.get("config", "y", use_memory=False, **WHERE) == "old"
    assert await b.get("config", "y", **WHERE) == "old"


@pytest.mark.parametrize("hears", [True, False], ids=["hearing", "deaf"])
async def test_after_a_restart_with_an_older_copy_the_first_invalidations_receipt_is_honoured_by_every_node(
    debugged: EmbeddedServer, trio: list[Cache], hears: bool
) -> None:
    a, b, c = trio
    debugged.command("SAVE")
    for _ in range(20):  # what the copy does not know: the nodes have applied more than it
        await a.invalidate("config", "z", **WHERE)
    await heard(trio, await a.invalidate_tags(["t"], **WHERE))
    debugged.kill()
    await asyncio.to_thread(debugged.start)

    async def written() -> Any:
        try:
            return await a.invalidate("config", "x", **WHERE)
        except InvalidationFailed:
            return None

    if hears:
        receipt = await until(written)
    else:
        with deaf(b, c):
            receipt = await until(written)
    for cache in trio:
        await until(lambda cache=cache: cache.stats().l2_connected)
        for resource_id in ("x", "y"):
            found = await cache.get("config", resource_id, after=receipt, **WHERE)
            assert found is None, f"{resource_id} was replaced before the restart, or after it"
    await past(monotonic() + D_S)
    await back(trio)
    for cache in trio:
        assert await cache.get("config", "x", **WHERE) is None
        assert await cache.get("config", "y", **WHERE) is None


async def test_events_of_epochs_that_were_left_are_ignored_however_often_they_are_replayed(
    debugged: EmbeddedServer, trio: list[Cache]
) -> None:
    """As a topic that several stores share brings them, where it is read again from further back."""
    a, b, _ = trio
    receiver: Any = parts(a).listening.receiver
    view = parts(a).node.shards[0]
    debugged.command("SAVE")
    replayed: list[tuple[bytes, bytes]] = []
    for _ in range(2):
        with overheard(a) as messages:
            await heard([a], await b.invalidate("config", "z", **WHERE), await b.invalidate_tags(["t"], **WHERE))
        before = view.epoch
        replayed += [(before, message) for message in messages]
        debugged.kill()
        await asyncio.to_thread(debugged.start)
        await until(lambda before=before: view.epoch != before)
        await back(trio)
        assert view.has_left(before)
    assert len({epoch for epoch, _ in replayed}) == 2
    receipt = await b.set("config", "x", "new", **WHERE)
    assert await a.get("config", "x", after=receipt, **WHERE) == "new"
    epoch, flushes, foreign = view.epoch, a.stats().flushes, a.stats().events_foreign
    nudges: list[int] = []
    attention = receiver.attention
    nudge, attention.nudge = attention.nudge, nudges.append
    try:
        for _, message in replayed * 3:
            receiver.on_message(0, message)
        assert not nudges, "L2 has said that these epochs are over: nobody need ask it again"
    finally:
        attention.nudge = nudge
    assert a.stats().events_foreign == foreign + 3 * len(replayed)
    assert (view.epoch, a.stats().flushes) == (epoch, flushes)
    assert a.ready()
    with asked(a) as counts:
        assert await a.get("config", "x", **WHERE) == "new"
    assert not data_calls(counts), "it is still in memory"


@contextmanager
def overheard(cache: Cache) -> Iterator[list[bytes]]:
    """What the bus brings to the cache meanwhile, of events."""
    bus: Any = parts(cache).bus
    listener, messages = bus._listener, list[bytes]()

    def listen(shard: int, message: bytes) -> None:
        if message[:3] == MAGIC:
            messages.append(message)
        listener(shard, message)

    bus._listener = listen
    try:
        yield messages
    finally:
        bus._listener = listener


@pytest.mark.parametrize("phase", ["fill_lease", "load", "fill"])
async def test_a_reconnection_in_the_middle_of_a_fill_leaves_no_value_that_l2_did_not_take(
    own_server: EmbeddedServer, phase: str
) -> None:
    """It reconnects, and another node has written meanwhile."""
    async with nodes(own_server.url, 2, lease_ms=300) as (a, b):
        source = Source(x="old")
        source.hold()
        store: Any = a._parts.store  # type: ignore[union-attr]
        method = getattr(store, phase, None)

        async def cut(*args: Any, **kwargs: Any) -> Any:
            store._links.of(0).close()
            return await method(*args, **kwargs)

        if method is not None:
            setattr(store, phase, cut)
        loading = asyncio.create_task(a.get_or_load("config", "x", source.load, **WHERE))
        await source.asked.wait()
        if phase == "load":
            await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", "normal")
        source.values["x"] = "new"
        await until(lambda: _done(b.invalidate("config", "x", **WHERE)))
        returned_s = monotonic()
        source.release()
        assert await loading == "old"
        await past(returned_s + D_S)
        await back([a, b])
        assert await b.get("config", "x", use_memory=False, **WHERE) is None
        for cache in (a, b):
            assert await cache.get("config", "x", **WHERE) is None
        if method is not None:
            setattr(store, phase, method)
        for cache in (a, b):
            assert await asyncio.wait_for(cache.get_or_load("config", "x", source.load, **WHERE), 5) == "new"
