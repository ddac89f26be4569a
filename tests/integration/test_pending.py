"""Invalidations that wait for L2: what the node itself serves meanwhile, in which order they go, and what is lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from cachebus import Cache, InvalidationFailed, L2Unavailable, Receipt, invalidate_resource_cache, lifespan
from cachebus.base.clock import monotonic
from cachebus.keys.plan import Plan
from cachebus.resp import parse_address
from cachebus.testing import Fleet
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, QUICK, Source, nodes, parts, past, quick, until

LONG = {**QUICK, "staleness_bound_s": 30.0, "probe_interval_s": 0.05}
"""So long a bound that nothing is fresh by the passing of time."""


@contextmanager
def held_up(cache: Cache) -> Iterator[None]:
    """Nothing that waits is delivered meanwhile, though L2 is there: what else may happen before has time to."""
    pending: Any = parts(cache).writing.pending
    real, gate = pending._deliver, asyncio.Event()

    async def later(plan: Any) -> Any:
        await gate.wait()
        return await real(plan)

    pending._deliver = later
    try:
        yield
    finally:
        pending._deliver = real
        gate.set()


@asynccontextmanager
async def pair(**more: Any) -> AsyncIterator[tuple[Fleet, Cache, Cache]]:
    """Two nodes over a memory store, of which the first may queue."""
    async with Fleet(2, **{**LONG, "pending_max": 8, **more}) as fleet:
        yield fleet, *fleet.caches


async def back(fleet: Fleet, cache: Cache) -> None:
    """L2 is there again, and the node knows."""
    fleet.away = False
    await until(cache.ready)


async def pending(cache: Cache, resource_id: str = "x") -> Receipt:
    """An invalidation that has to wait."""
    receipt = await cache.invalidate("config", resource_id, "acme")
    assert (receipt.status, receipt.stored, receipt.targets) == ("pending", False, {"config": 1})
    return receipt


# -- real servers ------------------------------------------------------------------------------------------------


class Outage:
    """A server that goes away and comes back, for one node or for all."""

    def __init__(self, name: str, server: EmbeddedServer, proxy: Proxy) -> None:
        self.url = f"redis://127.0.0.1:{proxy.port}" if name in ("cut", "hold") else server.url
        self.begin: Callable[[], None] = {
            "killed": server.kill,
            "stopped": server.pause,
            "cut": proxy.cut,
            "hold": proxy.hold,
        }[name]
        self.end: Callable[[], object] = {
            "killed": server.start,
            "stopped": server.resume,
            "cut": proxy.restore,
            "hold": proxy.restore,
        }[name]


@pytest.mark.parametrize("name", ["killed", "stopped", "cut", "hold"])
async def test_what_waits_is_delivered_when_l2_is_back(own_server: EmbeddedServer, name: str) -> None:
    source = Source(x="old", y="y")
    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(Proxy(dialer(parse_address(own_server.url))))
        outage = Outage(name, own_server, proxy)
        (a,) = await stack.enter_async_context(nodes(outage.url, 1, pending_max=10))
        (b,) = await stack.enter_async_context(nodes(own_server.url, 1))
        for cache in (a, b):
            for key in "xy":
                await cache.get_or_load("config", key, source.load, tenant_id="acme")
        outage.begin()
        source.values["x"] = "new"
        began_s = monotonic()
        await pending(a)
        assert monotonic() - began_s < 1.5, "no longer than any operation on L2"
        assert a.stats().pending == 1
        for _ in range(3):  # nothing is kept: it would have to be believed
            calls = source.calls
            assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
            assert source.calls == calls + 1
        await a.invalidate_scope("acme", "config")
        assert a.stats().pending == 2
        await asyncio.to_thread(outage.end)
        assert await a.drain(10)
        returned_s = monotonic()
        stats = a.stats()
        assert (stats.pending, stats.pending_delivered, stats.invalidations_failed) == (0, 2, 0)
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        await past(returned_s + D_S)
        assert await b.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        await until(a.ready)
        calls = source.calls
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        assert source.calls <= calls + 1, "it is kept again"


@pytest.mark.parametrize("name", ["stopped", "killed"])
async def test_closing_waits_for_delivery(own_server: EmbeddedServer, name: str) -> None:
    async with Proxy(dialer(parse_address(own_server.url))) as proxy, nodes(own_server.url, 1) as (b,):
        outage = Outage(name, own_server, proxy)
        cache = Cache(quick(own_server.url, pending_max=10, close_timeout_s=10))
        await cache.__aenter__()
        await cache.set("config", "x", "old", "acme")
        outage.begin()
        await pending(cache)
        closing = asyncio.create_task(cache.aclose())
        await asyncio.sleep(0.05)
        assert not closing.done()
        outage.end()
        await closing
        await until(lambda: b.ready() and b.stats().l2_connected)
        assert await b.get("config", "x", tenant_id="acme") is None


async def test_what_closing_can_not_deliver_is_counted_and_logged(own_server: EmbeddedServer, caplog: Any) -> None:
    cache = Cache(quick(own_server.url, pending_max=10, close_timeout_s=0.1))
    await cache.__aenter__()
    own_server.kill()
    await pending(cache)
    await pending(cache, "y")
    stats, counters = cache.stats(), parts(cache).node.counters
    assert (stats.pending, stats.pending_lost) == (2, 0)
    began_s = monotonic()
    await cache.aclose()
    assert monotonic() - began_s < 2
    assert counters.pending_lost == 2


# -- in memory: what the node serves meanwhile -------------------------------------------------------------------


async def test_by_default_nothing_waits() -> None:
    async with Fleet(1, **LONG) as fleet:
        fleet.away = True
        with pytest.raises(InvalidationFailed):
            await fleet.caches[0].invalidate("config", "x", "acme")
        assert fleet.caches[0].stats().pending == 0


async def test_until_it_is_delivered_the_node_takes_nothing_from_l2_that_it_replaced() -> None:
    source = Source(x="new", y="y")
    async with pair() as (fleet, a, b):
        for key in "xy":
            await b.set("config", key, "old", "acme", tags=["t"] if key == "y" else [])
        await b.set("config", "x", "old", "acme", agent_id="a7")
        fleet.away = True
        await pending(a)
        with held_up(a):
            await back(fleet, a)
            assert await b.get("config", "x", "acme", use_memory=False) == "old", "L2 knows nothing yet"
            assert await a.get("config", "x", "acme") is None
            assert await a.get("config", "x", "acme", use_memory=False) is None
            assert await a.get_many("config", ["x", "y"], "acme") == {"y": "old"}
            assert await a.get("config", "x", "acme", agent_id="a8", search_hierarchy=True) is None
            assert await a.get("config", "x", "acme", agent_id="a8", search_hierarchy=True, use_memory=False) is None
            assert await a.get("config", "x", "acme", agent_id="a7", search_hierarchy=True) == "old", "another key"
            assert await a.get_or_load("config", "x", source.load, "acme") == "new"
            assert await a.get_or_load("config", "x", source.load, "acme") == "new"
            assert source.calls == 2
            assert await b.get("config", "x", "acme", use_memory=False) == "old", "nor was it filled"
        assert await a.drain(5)
        assert await b.get("config", "x", "acme", use_memory=False) is None
        assert await a.get_or_load("config", "x", source.load, "acme") == "new"
        assert await a.get("config", "x", "acme") == "new"


@pytest.mark.parametrize("what", ["scope", "tag", "type in a context"])
async def test_scopes_and_tags_are_withheld_too(what: str) -> None:
    source = Source(x="new", z="z")
    context = {"agent_id": "a7"} if "context" in what else {}
    async with pair() as (fleet, a, b):
        await b.set("config", "x", "old", "acme", tags=["t"], **context)
        await b.set("other", "z", "z", "acme")
        fleet.away = True
        if what == "tag":
            receipt = await a.invalidate_tags(["t"], "acme")
        else:
            receipt = await a.invalidate_scope("acme", "config", **context)
        assert receipt.status == "pending"
        with held_up(a):
            await back(fleet, a)
            assert await a.get("config", "x", "acme", **context) is None
            assert await a.get_many("config", ["x"], "acme", **context) == {}
            assert await a.get_or_load("config", "x", source.load, "acme", tags=["t"], **context) == "new"
            assert await a.get("other", "z", "acme") == "z", "what it does not address is served"
            assert await b.get("config", "x", "acme", use_memory=False, **context) == "old"
        assert await a.drain(5)
        assert await b.get("config", "x", "acme", use_memory=False, **context) is None


@pytest.mark.parametrize("end", ["while it waits", "after its delivery"])
async def test_a_load_that_began_before_it_enters_neither_level(end: str) -> None:
    source = Source(x="old")
    async with pair() as (fleet, a, b):
        source.hold()
        loading = asyncio.create_task(a.get_or_load("config", "x", source.load, "acme"))
        await source.asked.wait()
        fleet.away = True
        await pending(a)
        with held_up(a):
            await back(fleet, a)
            if end == "while it waits":
                source.release()
                assert await loading == "old", "its caller came before"
                assert await a.get("config", "x", "acme") is None
                assert await b.get("config", "x", "acme", use_memory=False) is None, "it was not filled"
        assert await a.drain(5)
        if end == "after its delivery":
            source.release()
            assert await loading == "old"
        for cache in (a, b):
            assert await cache.get("config", "x", "acme") is None
        assert await b.get("config", "x", "acme", use_memory=False) is None


async def test_nobody_waits_for_another_nodes_load_of_what_is_replaced() -> None:
    theirs, ours = Source(x="old"), Source(x="new")
    async with pair() as (fleet, a, b):
        theirs.hold()
        loading = asyncio.create_task(b.get_or_load("config", "x", theirs.load, "acme"))
        await theirs.asked.wait()
        fleet.away = True
        await pending(a)
        with held_up(a):
            await back(fleet, a)
            assert await asyncio.wait_for(a.get_or_load("config", "x", ours.load, "acme"), 5) == "new"
        assert await a.drain(5)
        theirs.release()
        await loading
        assert await b.get("config", "x", "acme", use_memory=False) is None, "its fill came too late"


async def test_a_load_that_begins_meanwhile_is_shared_and_not_kept() -> None:
    source = Source(x="new")
    async with pair() as (fleet, a, _):
        fleet.away = True
        await pending(a)
        source.hold()
        loads = [asyncio.create_task(a.get_or_load("config", "x", source.load, "acme")) for _ in range(3)]
        await source.asked.wait()
        await pending(a)  # whoever comes after this may not have what is being loaded
        loads.append(asyncio.create_task(a.get_or_load("config", "x", source.load, "acme")))
        await until(lambda: source.calls == 2)
        source.release()
        assert await asyncio.gather(*loads) == ["new"] * 4
        assert a.stats().l1_entries == 0
        fleet.away = False
        assert await a.drain(5)


# -- order -------------------------------------------------------------------------------------------------------


async def test_a_set_waits_for_older_invalidations_and_stays() -> None:
    async with pair() as (fleet, a, b):
        fleet.away = True
        await pending(a)
        with pytest.raises(L2Unavailable):
            await a.set("config", "x", "new", "acme")
        with held_up(a):
            await back(fleet, a)
            with pytest.raises(L2Unavailable, match="earlier invalidations"):
                await a.set("config", "x", "early", "acme")
            setting = asyncio.create_task(a.set("config", "x", "new", "acme"))
            adding = asyncio.create_task(a.add("config", "job", 1, 60, "acme"))
            await asyncio.sleep(0.02)
            assert not setting.done()
        assert (await setting).status == "applied"
        assert await adding is True
        assert await a.drain(5)
        assert await a.get("config", "x", "acme") == await b.get("config", "x", "acme") == "new"


async def test_a_later_invalidation_goes_behind_and_is_applied_when_its_turn_comes_soon() -> None:
    async with pair() as (fleet, a, b):
        await b.set("config", "y", "old", "acme")
        fleet.away = True
        await pending(a)
        with held_up(a):
            await back(fleet, a)
            waiting = asyncio.create_task(a.invalidate("config", "y", "acme", wait=None))
            await asyncio.sleep(0.01)
            assert a.stats().pending == 2
        receipt = await waiting
        assert receipt.status == "applied"
        assert await b.get("config", "y", "acme", after=receipt) is None


async def test_one_that_may_have_happened_is_delivered_again_and_brings_nothing_back() -> None:
    async with pair() as (fleet, a, b):
        store: Any = parts(a).store
        real = store.invalidate

        async def lost(*args: Any) -> Any:
            await real(*args)
            raise L2Unavailable("no answer")

        await b.set("config", "x", "old", "acme")
        store.invalidate = lost
        with held_up(a):
            await pending(a)
            store.invalidate = real
            assert await b.get("config", "x", "acme", use_memory=False) is None, "it had happened"
            await b.set("config", "x", "new", "acme")
        assert await a.drain(5)
        assert await b.get("config", "x", "acme", use_memory=False) is None, "a load more, and no old value"
        assert fleet.world.shards[0].seq == 5


async def test_many_are_delivered_in_order_of_their_shards() -> None:
    async with pair(pending_max=1000, shards=4) as (fleet, a, b):
        tenants = [f"tenant-{n}" for n in range(40)]
        for tenant in tenants:
            await b.set("config", "x", "old", tenant)
        fleet.away = True
        for turn in range(10):
            for tenant in tenants:
                assert (await a.invalidate("config", "x" if turn == 9 else f"{turn}", tenant)).status == "pending"
        assert a.stats().pending == 400
        fleet.away = False
        assert await a.drain(5)
        assert a.stats().pending_delivered == 400
        assert parts(a).node.blocked is None
        assert [await b.get("config", "x", tenant, use_memory=False) for tenant in tenants] == [None] * 40


# -- limits and receipts -----------------------------------------------------------------------------------------


async def test_a_full_queue_raises_and_the_key_is_not_believed_for_all_that() -> None:
    source = Source(x="new")
    async with pair(pending_max=2) as (fleet, a, _):
        await a.set("config", "x", "old", "acme")
        fleet.away = True
        await pending(a, "1")
        await pending(a, "2")
        with pytest.raises(InvalidationFailed, match="full"):
            await a.invalidate("config", "x", "acme")
        assert await a.get_or_load("config", "x", source.load, "acme") == "new"
        assert (a.stats().pending, a.stats().invalidations_failed) == (2, 1)
        fleet.away = False
        assert await a.drain(5)


async def test_a_queue_that_was_full_has_all_its_room_again_once_it_is_delivered() -> None:
    async with pair(pending_max=4) as (fleet, a, _):
        for _ in range(3):
            fleet.away = True
            for each in range(4):
                await pending(a, f"{each}")
            with pytest.raises(InvalidationFailed, match="full"):
                await a.invalidate("config", "x", "acme")
            fleet.away = False
            assert await a.drain(5)


async def test_only_invalidations_wait() -> None:
    async with pair() as (fleet, a, _):
        fleet.away = True
        for write in (
            a.set("config", "x", 1, "acme"),
            a.add("config", "x", 1, 60, "acme"),
            a.increment("hits", "acme"),
        ):
            with pytest.raises(L2Unavailable):
                await write
        assert (await a.delete("config", "x", "acme")).status == "pending"
        assert a.stats().pending == 1
        fleet.away = False
        assert await a.drain(5)


async def test_a_pending_receipt_stands_for_nothing() -> None:
    async with pair() as (fleet, a, _):
        fleet.away = True
        receipt = await pending(a)
        assert receipt.confirmed == receipt.lapsed == ()
        assert (await a.invalidate("config", "x", "acme", wait="nodes")).status == "pending", "nobody to wait for"
        with pytest.raises(ValueError, match="pending"):
            await a.get("config", "x", "acme", after=receipt)
        assert not await a.drain(0.01)
        fleet.away = False
        assert await a.drain(5)
        assert await a.drain()


async def test_who_is_cancelled_while_it_waits_leaves_it_in_the_queue() -> None:
    async with pair() as (fleet, a, b):
        await b.set("config", "y", "old", "acme")
        fleet.away = True
        await pending(a)
        with held_up(a):
            await back(fleet, a)
            waiting = asyncio.create_task(a.invalidate("config", "y", "acme"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await a.drain(5)
        assert await b.get("config", "y", "acme", use_memory=False) is None


async def test_the_helpers_say_so(own_server: EmbeddedServer) -> None:
    async with lifespan(quick(own_server.url, pending_max=1)) as cache:
        own_server.kill()
        assert await invalidate_resource_cache("config", "x", "acme") is False
        with pytest.raises(InvalidationFailed):
            await invalidate_resource_cache("config", "x", "acme")
        await asyncio.to_thread(own_server.start)
        assert await cache.drain(10)
        await until(cache.ready)
        assert await invalidate_resource_cache("config", "x", "acme") is True


async def test_a_cancelled_close_loses_at_once_what_waits() -> None:
    fleet = Fleet(1, **{**LONG, "pending_max": 8, "close_timeout_s": 60.0})
    (cache,) = fleet.caches
    await cache.__aenter__()
    counters = parts(cache).node.counters
    fleet.away = True
    await pending(cache)
    closing = asyncio.create_task(cache.aclose())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert counters.pending_lost == 1
    await asyncio.sleep(0)


# -- a life at random --------------------------------------------------------------------------------------------


class Life:
    """Two nodes, reads of both and writes of the first, and an L2 that comes and goes."""

    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.seed, self.fleet = seed, fleet
        self.dice = random.Random(seed)
        self.versions = dict.fromkeys("abc", 0)
        self.told = dict(self.versions)
        self.reads: set[asyncio.Task[None]] = set()

    async def load(self, resource_id: str) -> int:
        """The source's version, given some turns of the loop later."""
        version = self.versions[resource_id]
        for _ in range(self.dice.randrange(4)):
            await asyncio.sleep(0)
        return version

    async def read(self, cache: Cache, key: str) -> None:
        """By the node that writes no read gives less than was there when it began."""
        least = self.told[key] if cache is self.fleet.caches[0] else 0
        got = await cache.get_or_load("config", key, self.load, "acme", tags=[key])
        assert got >= least, f"seed {self.seed}: {key} is {got}, not {least}"

    async def write(self, key: str) -> None:
        """A change, told in one of three ways."""
        cache = self.fleet.caches[0]
        how = self.dice.randrange(3)
        told = (
            cache.invalidate("config", key, "acme")
            if how == 0
            else cache.invalidate_tags([key], "acme")
            if how == 1
            else cache.invalidate_scope("acme", "config")
        )
        self.versions[key] += 1
        version = self.versions[key]
        await told
        self.told[key] = version

    async def step(self) -> None:
        """Something happens."""
        what = self.dice.random()
        if what < 0.03:
            self.fleet.away = not self.fleet.away
        elif what < 0.15:
            await self.write(self.dice.choice("abc"))
        elif what < 0.6:
            self.reads.add(asyncio.create_task(self.read(self.dice.choice(self.fleet.caches), self.dice.choice("abc"))))
        else:
            await asyncio.sleep(self.dice.choice([0, 0, 0, 0.001]))


@pytest.mark.parametrize("seed", range(12))
async def test_own_reads_are_never_older_than_own_invalidations_whatever_l2_does(seed: int) -> None:
    """G2 while they wait too; and when all are delivered, nobody anywhere holds anything older."""
    settings = {**LONG, "pending_max": 1000, "probe_interval_s": 0.002, "lease_ms": 100}
    async with Fleet(2, **settings) as fleet:
        life = Life(seed, fleet)
        for _ in range(400):
            await life.step()
        fleet.away = False
        await asyncio.gather(*life.reads)
        assert await fleet.caches[0].drain(10)
        await fleet.probe()
        await fleet.settle()
        for cache in fleet.caches:
            for key, version in life.versions.items():
                for use_memory in (True, False):
                    got = await cache.get("config", key, "acme", use_memory=use_memory)
                    assert got in (None, version), f"seed {seed}"


async def test_one_that_fails_while_a_later_one_succeeds_stays_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Fleet(2, **{**QUICK, "staleness_bound_s": 30.0, "probe_interval_s": 0.05, "pending_max": 8}) as fleet:
        a, b = fleet.caches
        for name in ("x", "y"):
            await b.set("config", name, "old", "acme")
        pending, failed = parts(a).writing.pending, []
        deliver: Any = pending._deliver

        async def fails_once(plan: Plan) -> Any:
            if plan.keys[0].resource_id == "x" and not failed:
                failed.append(plan)
                raise L2Unavailable("refused once")
            return await deliver(plan)

        monkeypatch.setattr(pending, "_deliver", fails_once)
        fleet.away = True
        for name in ("x", "y"):
            assert (await a.invalidate("config", name, "acme")).status == "pending"
        fleet.away = False
        assert await a.drain(5)
        assert failed
        assert parts(a).node.blocked is None
        assert [await b.get("config", name, "acme") for name in ("x", "y")] == [None, None]
