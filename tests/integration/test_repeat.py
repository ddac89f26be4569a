"""What a publisher repeats in another epoch: what it has called since that was born, and nothing from before."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from cachebus import Cache, L2Unavailable
from cachebus.producers import DirectProducer
from cachebus.testing import FakeClock, Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.writing.resend_buffer import KEEP_S
from tests.support.caches import nodes, parts, quick, until
from tests.support.deposed import Failover, failover

TENANT = "acme"


def has_repeated(cache: Cache) -> bool:
    """Whether the node has entered its present epoch, and repeated there what it had to."""
    return all(map(parts(cache).writing.repeating.done, range(cache.settings.shards)))


async def test_a_restart_leaves_newer_sets_and_adds_alone() -> None:
    """1. a sets and adds. 2. The server dies and comes back empty. 3. b, there first, begins an epoch, sets and adds.
    4. a comes back: what it called before that epoch began would only remove what b wrote."""
    async with failover() as servers, nodes(servers.publisher_url, 1) as (a,):
        assert await a.add("job", "42", "a", tenant_id=TENANT)
        await a.set("doc", "1", "by a", tenant_id=TENANT)
        await a.invalidate("doc", "2", tenant_id=TENANT)
        await a.invalidate_scope(TENANT, "doc")
        servers.deposed.kill()
        async with nodes(servers.url, 2) as (b, c):
            assert await b.add("job", "42", "b", tenant_id=TENANT)
            await b.set("doc", "1", "by b", tenant_id=TENANT)
            epoch = b.stats().shards[0].epoch
            servers.move()
            await until(lambda: a.stats().shards[0].epoch == epoch and has_repeated(a))
            assert a.stats().invalidations_repeated == 0
            assert [await node.get("doc", "1", TENANT, use_memory=False) for node in (a, b, c)] == ["by b"] * 3
            assert not await c.add("job", "42", "c", tenant_id=TENANT)


async def test_a_restart_of_the_one_server_leaves_newer_sets_and_adds_alone(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 3) as (a, b, c):
        await a.add("job", "42", "a", tenant_id=TENANT)
        await a.set("doc", "1", "by a", tenant_id=TENANT)
        epoch, repeating, written = a.stats().shards[0].epoch, cast("Any", parts(a).writing.repeating), asyncio.Event()
        repeat = repeating._repeat

        async def repeat_late(shard: int) -> None:
            await written.wait()
            await repeat(shard)

        repeating._repeat = repeat_late
        own_server.kill()
        own_server.start()
        await until(lambda: all(node.ready() and node.stats().shards[0].epoch != epoch for node in (b, c)))
        assert await b.add("job", "42", "b", tenant_id=TENANT)
        await b.set("doc", "1", "by b", tenant_id=TENANT)
        written.set()
        await until(lambda: a.stats().shards[0].epoch != epoch and has_repeated(a))
        assert a.stats().invalidations_repeated == 0
        assert await b.get("doc", "1", TENANT, use_memory=False) == "by b"
        assert not await c.add("job", "42", "c", tenant_id=TENANT)


async def test_however_long_repeating_takes_probes_go_on_and_closing_ends_it(own_server: EmbeddedServer) -> None:
    """What there is to repeat is as much as a full buffer holds, and the lease must not wait for its end."""
    async with nodes(own_server.url, 1) as (a,):
        epoch, repeating, ended = a.stats().shards[0].epoch, cast("Any", parts(a).writing.repeating), asyncio.Event()

        async def repeat_for_ever(shard: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        repeating._repeat = repeat_for_ever
        own_server.kill()
        own_server.start()
        shard = parts(a).node.shards[0]
        await until(lambda: a.stats().shards[0].epoch != epoch and a.ready())
        for _ in range(3):
            renewed_s = shard.valid_until_s
            await until(lambda renewed_s=renewed_s: shard.valid_until_s > renewed_s)
        assert not ended.is_set()
        assert not has_repeated(a)
    assert ended.is_set()


async def begun(servers: Failover) -> str:
    """The new primary's epoch, in which a value was loaded before the source changed."""
    async with nodes(servers.url, 1) as (other,):
        assert await other.get_or_load("config", "x", lambda: "old", tenant_id=TENANT) == "old"
        return other.stats().shards[0].epoch


async def held(servers: Failover) -> str | None:
    """What the new primary holds of it."""
    async with nodes(servers.url, 1) as (other,):
        found: str | None = await other.get("config", "x", tenant_id=TENANT)
        return found


async def come_over(producer: DirectProducer, servers: Failover) -> None:
    """The producer's way leads to the new primary, and it has noticed that its connection is gone."""
    servers.move()
    await until(lambda: not producer._live().store.connected)


async def test_a_producer_repeats_what_it_called_since_the_epoch_began() -> None:
    async with failover() as servers, DirectProducer.open(quick(servers.publisher_url)) as producer:
        epoch = await begun(servers)
        await producer.invalidate("config", "x", TENANT)
        await producer.invalidate_tags(["t"], TENANT)
        await come_over(producer, servers)
        assert await held(servers) == "old", "which nobody here has heard"
        await producer.probe()
        assert await held(servers) is None
        assert servers.primary.command("XLEN", "{cachebus:0}:log") == ":1", "both of them in one event"
        again = await producer.invalidate("config", "y", TENANT)
        assert again.epoch == epoch
        await producer.probe()
        assert servers.primary.command("XLEN", "{cachebus:0}:log") == ":2"


async def test_the_next_call_repeats_as_well() -> None:
    async with failover() as servers, DirectProducer.open(quick(servers.publisher_url)) as producer:
        await begun(servers)
        await producer.invalidate("config", "x", TENANT)
        await come_over(producer, servers)
        await producer.invalidate("config", "y", TENANT)
        await until(lambda: servers.primary.command("XLEN", "{cachebus:0}:log") == ":2")
        assert await held(servers) is None


@pytest.mark.parametrize("by", ["probe", "call"])
async def test_a_producer_repeats_nothing_that_it_called_before(by: str) -> None:
    async with failover() as servers, DirectProducer.open(quick(servers.publisher_url)) as producer:
        await producer.invalidate("config", "x", TENANT)
        await begun(servers)
        await come_over(producer, servers)
        if by == "probe":
            await producer.probe()
        else:
            await producer.invalidate("config", "y", TENANT)
        assert await held(servers) == "old"
        assert servers.primary.command("XLEN", "{cachebus:0}:log") == (":0" if by == "probe" else ":1")


def failing(producer: DirectProducer, fails: Callable[[int], bool]) -> None:
    """Have those of the producer's steps fail: the first is the next call itself, then comes what it repeats."""
    store = producer._live().store
    invalidate, asked = store.invalidate, itertools.count(1)

    async def some(*args: Any) -> Any:
        if fails(next(asked)):
            raise L2Unavailable("away")
        return await invalidate(*args)

    store.invalidate = some  # type: ignore[method-assign]


async def test_what_a_producer_could_not_repeat_is_tried_again_and_no_call_fails_by_it() -> None:
    async with failover() as servers, DirectProducer.open(quick(servers.publisher_url)) as producer:
        await begun(servers)
        await producer.invalidate("config", "x", TENANT)
        await come_over(producer, servers)
        failing(producer, lambda step: step == 2)
        receipt = await producer.invalidate("config", "y", TENANT)
        assert receipt.status == "applied"
        await until(lambda: servers.primary.command("XLEN", "{cachebus:0}:log") == ":2")
        assert await held(servers) is None


async def test_a_probe_says_that_it_could_not_be_repeated() -> None:
    async with failover() as servers, DirectProducer.open(quick(servers.publisher_url)) as producer:
        await begun(servers)
        await producer.invalidate("config", "x", TENANT)
        await come_over(producer, servers)
        failing(producer, lambda step: step == 1)
        with pytest.raises(L2Unavailable, match="away"):
            await producer.probe()
        assert await held(servers) == "old"
        await producer.probe()
        assert await held(servers) is None


async def test_much_is_repeated_though_it_fails_over_and_over_and_closing_waits_for_it() -> None:
    """Two thirds of the steps fail, so that no try comes through: what was repeated stays so."""
    async with failover() as servers:
        async with DirectProducer.open(quick(servers.publisher_url, close_timeout_s=60.0)) as producer:
            await begun(servers)
            for at in range(0, 2000, 250):
                ids = [f"k{i}" for i in range(at, at + 250)]
                await asyncio.gather(*(producer.invalidate("config", each, TENANT) for each in ids))
            await producer.invalidate("config", "x", TENANT)
            await come_over(producer, servers)
            failing(producer, lambda step: step % 3 != 1)
            await producer.invalidate("config", "y", TENANT)
        assert servers.primary.command("XLEN", "{cachebus:0}:log") == ":6", "five parts, behind the call's own"
        assert await held(servers) is None


# -- in memory, where both clocks are the test's own -----------------------------------------------------------------


def moved(cache: Cache, fleet: Fleet) -> None:
    """The cache comes from its primary to another fleet's."""
    parts(cache).store._shards = fleet.world.shards  # type: ignore[attr-defined]


async def deposed_and_new(clock: FakeClock) -> tuple[Fleet, Fleet]:
    """Fleets of one node: of a primary that does not know that it was deposed, and of the one in its place."""
    old, new = (Fleet(1, clock=clock, probe_interval_s=0.02) for _ in range(2))
    for shard in new.world.shards:
        shard.is_new = False  # it was a replica
    return old, new


async def test_a_call_that_began_after_the_birth_is_repeated_whatever_newer_lies_there() -> None:
    """1. The new primary's epoch is born. 2. A node loads there, before the write. 3. The publisher's call reaches the
    deposed primary. 4. The publisher comes to the new one."""
    clock = FakeClock()
    old, new = await deposed_and_new(clock)
    async with old:
        clock.advance(10)
        async with new:
            (publisher,), (other,) = old.caches, new.caches
            await other.get_or_load("config", "x", lambda: "old", tenant_id=TENANT)
            clock.advance(1)
            await publisher.invalidate("config", "x", tenant_id=TENANT)
            await publisher.invalidate("config", "y", tenant_id=TENANT)
            clock.advance(1)
            await other.set("config", "y", "newer", tenant_id=TENANT)
            moved(publisher, new)
            await until(lambda: publisher.stats().invalidations_repeated)
            assert await other.get("config", "x", TENANT, use_memory=False) is None
            assert await other.get("config", "y", TENANT, use_memory=False) is None, "as it is said in the guarantees"


async def test_who_writes_where_another_epoch_has_begun_enters_it_soon_though_less_has_happened_there() -> None:
    seldom = {"staleness_bound_s": 600.0, "probe_interval_s": 300.0}
    async with Fleet(1, **seldom) as old, Fleet(1, **seldom) as new:
        (publisher,), (other,) = old.caches, new.caches
        for at in range(10):
            await publisher.invalidate("config", at, tenant_id=TENANT)
        moved(publisher, new)
        receipt = await publisher.set("config", "x", 1, tenant_id=TENANT)
        assert receipt.seq < 10
        await until(lambda: publisher.stats().shards[0].epoch == receipt.epoch)
        assert other.stats().shards[0].epoch == receipt.epoch


async def test_where_yet_another_epoch_begins_meanwhile_all_is_repeated_there_too() -> None:
    """1. Two epochs are born. 2. The publisher's call reaches the deposed primary. 3. It comes to the one, and from
    there to the other before it has done with repeating."""
    clock = FakeClock()
    old, new = await deposed_and_new(clock)
    _, newest = await deposed_and_new(clock)
    async with old, new, newest:
        (publisher,), (other,) = old.caches, newest.caches
        await other.set("config", "x", "old", tenant_id=TENANT)
        clock.advance(1)
        await publisher.invalidate("config", "x", tenant_id=TENANT)
        repeating, repeated, go_on = cast("Any", parts(publisher).writing.repeating), asyncio.Event(), asyncio.Event()
        repeat = repeating._repeat

        async def repeat_slowly(shard: int) -> None:
            await repeat(shard)
            repeated.set()
            await go_on.wait()

        repeating._repeat = repeat_slowly
        moved(publisher, new)
        await repeated.wait()
        moved(publisher, newest)
        await until(lambda: publisher.stats().shards[0].epoch == other.stats().shards[0].epoch)
        go_on.set()
        await until(lambda: has_repeated(publisher))
        assert await other.get("config", "x", TENANT, use_memory=False) is None


@pytest.mark.parametrize("verb", ["invalidate", "set", "guard"])
async def test_it_is_when_the_call_began_that_counts_and_not_when_it_was_acknowledged(verb: str) -> None:
    """1. The call begins. 2. The new primary's epoch is born. 3. The deposed one acknowledges the call."""
    clock = FakeClock()
    old, new = await deposed_and_new(clock)
    async with old:
        (publisher,) = old.caches
        store: Any = parts(publisher).store
        name = "write" if verb == "set" else verb
        script, asked, carried = getattr(store, name), asyncio.Event(), asyncio.Event()

        async def slow(*args: Any, **options: Any) -> Any:
            asked.set()
            await carried.wait()
            return await script(*args, **options)

        setattr(store, name, slow)
        call = asyncio.create_task(CALLS[verb](publisher))
        await asked.wait()
        clock.advance(10)
        async with new:
            (other,) = new.caches
            clock.advance(10)
            carried.set()
            await call
            setattr(store, name, script)
            await other.set("config", "x", "newer", tenant_id=TENANT)
            moved(publisher, new)
            await until(lambda: publisher.stats().shards[0].epoch == other.stats().shards[0].epoch)
            await until(lambda: has_repeated(publisher))
            assert publisher.stats().invalidations_repeated == 0
            assert await other.get("config", "x", TENANT, use_memory=False) == "newer"


async def guarded(cache: Cache) -> None:
    """A guard that is left standing to its time-out: only its beginning invalidates."""
    with pytest.raises(ZeroDivisionError):
        async with cache.write_guard([("config", "x")], TENANT, db_timeout_s=1):
            raise ZeroDivisionError


CALLS: dict[str, Callable[[Cache], Coroutine[Any, Any, Any]]] = {
    "invalidate": lambda cache: cache.invalidate("config", "x", tenant_id=TENANT),
    "set": lambda cache: cache.set("config", "x", "by the publisher", tenant_id=TENANT),
    "guard": guarded,
}


async def test_what_is_older_than_a_minute_goes_while_nothing_happens() -> None:
    clock = FakeClock()
    async with Fleet(1, clock=clock, probe_interval_s=0.02) as fleet:
        (cache,) = fleet.caches
        await until(lambda: has_repeated(cache))  # which forgets, too
        for at in range(10):
            await cache.invalidate("config", at, tenant_id=TENANT)
        buffer = parts(cache).writing.resend_buffer
        assert len(buffer) == 10
        clock.advance(KEEP_S + 1)
        await until(lambda: not len(buffer))


async def test_a_producers_too_and_its_timer_ends_with_it(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr("cachebus.producers.session.monotonic", clock)
    monkeypatch.setattr("cachebus.producers.session._TIDY_S", 0.01)
    async with DirectProducer.open(quick(redis_url)) as producer:
        for at in range(10):
            await producer.invalidate("config", at, TENANT)
        assert len(producer._memory.resend_buffer) == 10
        clock.advance(KEEP_S + 1)
        await until(lambda: producer._live().timer is None)
        assert not len(producer._memory.resend_buffer)
        await producer.invalidate("config", "x", TENANT)
        session = producer._live()
        timer = session.timer
        assert timer is not None
    assert timer.cancelled()
    assert session.timer is None
