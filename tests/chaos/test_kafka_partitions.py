"""A topic whose partitions lie on two brokers, of which one breaks: what befalls its partitions befalls no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiokafka.partitioner import DefaultPartitioner

from cachebus import Cache
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.connection import KafkaConnection
from cachebus.bus.kafka.sender import LANES_APART
from cachebus.bus.kafka.topic import TopicLayout
from cachebus.bus.kafka.watch import TopicWatch
from cachebus.core.ports import Listener
from cachebus.errors import CacheBusError, InvalidationFailed
from cachebus.producers import DirectProducer, KafkaProducer
from cachebus.resp import ended
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.wire import event as events
from tests.support.caches import Source, nodes, quick, until
from tests.support.kafka_fleet import bus_of, spread, tenant_of
from tests.support.servers import SharedServers

SHARDS = 4
HERE, THERE = (0, 2), (1, 3)
"""The shards whose partitions the first broker leads, and the second."""


@pytest.fixture
def pair(shared_servers: SharedServers) -> list[KafkaServer]:
    """Two brokers of one cluster. The first controls it, the second may break."""
    return shared_servers.kafka_pair()


@pytest.fixture
def second(pair: list[KafkaServer]) -> Iterator[KafkaServer]:
    """The broker that may break; it is whole again after the test."""
    yield pair[1]
    pair[1].start()
    pair[1].resume()


@pytest.fixture
async def setup(pair: list[KafkaServer], second: KafkaServer, redis_url: str) -> dict[str, Any]:
    """The settings of a fleet with a topic of its own; the broker that breaks is the first that they name."""
    return await spread(pair, redis_url, {0: [1], 1: [2], 2: [1], 3: [2]})


def hears(cache: Cache, *shards: int) -> bool:
    """Whether it can hear each of these by the bus."""
    return all(bus_of(cache)._of(shard).there for shard in shards)


class Brought:
    """A listener that notes what the bus brings, and not a probe: shards with seqs."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.seen: set[tuple[int, int]] = set()

    def __call__(self, shard: int, message: bytes) -> None:
        self.seen.add((shard, events.position_of(message)[1]))
        self.listener(shard, message)

    @classmethod
    def to(cls, cache: Cache) -> Brought:
        """What it notes of this cache, from the first time on."""
        ears = bus_of(cache)._ears
        assert ears is not None
        listener = ears._taking._listener
        if not isinstance(listener, cls):
            listener = ears._taking._listener = cls(listener)
        return listener


async def carried(a: Cache, b: Cache, *shards: int) -> None:
    """The bus brings invalidations of a, one in each of these shards, to b."""
    brought = Brought.to(b)
    for shard in shards:
        receipt = await a.invalidate("config", "k", tenant_id=tenant_of(a, shard))
        await until(lambda: (receipt.shard, receipt.seq) in brought.seen)  # noqa: B023 (awaited here)


async def broken(second: KafkaServer, how: str) -> None:
    """Kill it, or stop it in its tracks."""
    await asyncio.to_thread(second.kill if how == "killed" else second.pause)


async def whole(second: KafkaServer) -> None:
    """Have it back."""
    await asyncio.to_thread(second.start)
    second.resume()


@asynccontextmanager
async def undisturbed(cache: Cache, *shards: int) -> AsyncIterator[None]:
    """The cache is deaf for none of these at any moment, and nothing that it publishes is lost."""
    deaf = [asyncio.create_task(bus_of(cache).deaf(shard)) for shard in shards]
    try:
        yield
        assert not any(task.done() for task in deaf)
    finally:
        await ended(*deaf)


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_g1_g9_one_of_two_kafka_brokers_is_lost(setup: dict[str, Any], second: KafkaServer, how: str) -> None:
    setup["l2_timeout_s"] = 2.0  # a broker that is only short of processor time is none that hangs
    async with nodes(**setup) as (a, b):
        await carried(a, b, *range(SHARDS))
        async with undisturbed(a, *HERE), undisturbed(b, *HERE):
            await broken(second, how)
            await until(lambda: not hears(a, 1) and not hears(b, 1) and not hears(b, 3))
            for _ in range(20):
                await carried(a, b, *HERE)
                await carried(b, a, *HERE)
            assert a.stats().bus_publish_failures == b.stats().bus_publish_failures == 0
            for shard in THERE:  # which waits for no broker, and does not fail
                await a.invalidate("config", "k", tenant_id=tenant_of(a, shard))
            await until(lambda: a.stats().bus_publish_failures == len(THERE))
            await carried(a, b, *HERE)
            await whole(second)
            await until(lambda: a.stats().bus_connected and b.stats().bus_connected, within_s=60.0)
            await carried(a, b, *range(SHARDS))
            await carried(b, a, *range(SHARDS))
        assert a.stats().flushes == b.stats().flushes == {"start": SHARDS}
        assert a.stats().bus_publish_failures == len(THERE)


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_g1_nodes_start_while_one_of_two_kafka_brokers_is_away(
    setup: dict[str, Any], second: KafkaServer, how: str
) -> None:
    """The tenants of its partitions are served too: L2 and its probes are enough."""
    await broken(second, how)
    async with nodes(**setup) as (a, b):
        assert hears(a, *HERE) and hears(b, *HERE)
        await carried(a, b, *HERE)
        await carried(b, a, *HERE)
        await until(lambda: a.ready() and b.ready())
        for shard in range(SHARDS):
            source = Source(k="value")
            assert await b.get_or_load("config", "k", source.load, tenant_id=tenant_of(b, shard)) == "value"
        assert not a.stats().bus_connected
        assert a.stats().bus_publish_failures == b.stats().bus_publish_failures == 0
        await whole(second)
        await until(lambda: a.stats().bus_connected and b.stats().bus_connected, within_s=60.0)
        await carried(a, b, *range(SHARDS))


async def test_attempts_at_a_kafka_broker_that_hangs_do_not_pile_up(
    setup: dict[str, Any], second: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an attempt is given up before a request would be, too: one at a time, and each is whole over."""
    under_way, most, made = 0, 0, 0
    opens = KafkaConnection.open.__func__  # type: ignore[attr-defined]

    async def counted(*where: Any) -> KafkaConnection:
        nonlocal under_way, most, made
        under_way, made = under_way + 1, made + 1
        most = max(most, under_way)
        try:
            return await opens(KafkaConnection, *where)  # type: ignore[no-any-return]
        finally:
            under_way -= 1

    monkeypatch.setattr(KafkaConnection, "open", counted)
    await broken(second, "hanging")
    alone = {"kafka_bootstrap_servers": second.address, "start_degraded": True}
    async with Cache(quick(**{**setup, **alone, "connect_timeout_s": 0.3, "l2_timeout_s": 2.0})) as cache:
        await until(lambda: made >= 5)
        assert most == 1
        await whole(second)
        await until(lambda: cache.stats().bus_connected, within_s=60.0)
        await carried(cache, cache, *range(SHARDS))
        began_s = monotonic()
        await broken(second, "hanging")
    assert monotonic() - began_s < 10.0  # and the fixtures look for what is left


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_each_look_asks_another_kafka_broker_where_the_one_that_answered_breaks(
    pair: list[KafkaServer], setup: dict[str, Any], second: KafkaServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: no look fails for it, and waits for the next."""
    looks, failed = list[TopicLayout](), list[CacheBusError]()
    watch = TopicWatch(kafka_access(quick(**setup)), monotonic, looks.append)
    look = watch._read_layout

    async def noted() -> TopicLayout:
        try:
            return await look()
        except CacheBusError as error:
            failed.append(error)
            raise

    monkeypatch.setattr(watch, "_read_layout", noted)

    async def looked() -> int | None:
        """Which port answered the next look."""
        before = len(looks)
        watch.miss()
        await until(lambda: len(looks) > before)
        kept = watch._brokers._kept
        return None if kept is None else kept.address.port

    async def by_second() -> bool:
        """With the other one forgotten."""
        await watch._brokers.forget()
        return await looked() == second.port

    await watch.open()
    try:
        for _ in range(2):
            await until(by_second)
            await broken(second, how)
            for _ in range(3):
                assert await looked() == pair[0].port
            assert not failed
            await whole(second)
            await until(lambda: None not in looks[-1].leaders, within_s=60.0)
    finally:
        await watch.close()


async def test_a_partition_whose_replicas_hang_keeps_no_other_of_its_leader_waiting(
    pair: list[KafkaServer], second: KafkaServer, redis_url: str
) -> None:
    """The leader answers when all replicas have a message, or after a while. In one lane the others would wait too. The
    late ones share a few lanes, however many they are: each lane is a connection and a task."""
    late = range(1, 3 * LANES_APART)
    third = KafkaServer(joins=pair[0], number=3)
    with await asyncio.to_thread(third.start):
        setup = await spread([*pair, third], redis_url, {0: [1, 3], **{number: [1, 2] for number in late}})
        async with nodes(**setup) as (a, b), undisturbed(b, 0, *late):
            await carried(a, b, 0, *late)
            queues, lanes = bus_of(a)._sender._queues[1:], bus_of(a)._sender._lanes

            async def apart() -> list[bool]:
                """Which are, after one more message each."""
                for shard in late:
                    await a.invalidate("config", "k", tenant_id=tenant_of(a, shard))
                return [queue.apart for queue in queues]

            async def all_apart() -> bool:
                return all(await apart())

            async def together() -> bool:
                return not any(await apart())

            await broken(second, "hanging")
            await until(all_apart)
            assert len([which for _, which in lanes if which is not None]) == LANES_APART
            await carried(a, b, *[0] * 20)
            await whole(second)
            await until(together, within_s=60.0)
            await carried(a, b, 0, *late)
            await until(lambda: [which for _, which in lanes] == [None])


async def test_a_producer_publishes_while_one_of_two_kafka_brokers_hangs(
    setup: dict[str, Any], second: KafkaServer
) -> None:
    async with Cache(quick(**setup)) as cache:
        await broken(second, "hanging")
        began_s = monotonic()
        async with DirectProducer.open(quick(**{**setup, "connect_timeout_s": 8.0})) as producer:
            assert monotonic() - began_s < 7.5
            brought = Brought.to(cache)
            for shard in HERE:
                receipt = await producer.invalidate("config", "k", tenant_of(cache, shard))
                await until(lambda: (receipt.shard, receipt.seq) in brought.seen)  # noqa: B023 (awaited here)


async def test_a_producer_of_commands_that_one_of_two_kafka_brokers_leaves_hanging_hands_over_all_of_the_other_ones(
    setup: dict[str, Any], second: KafkaServer
) -> None:
    """The one that hangs is named first, and calls for its own partitions fail all the while."""
    settings = quick(**setup, kafka_commands_topic=setup["kafka_topic"])
    partition = DefaultPartitioner()
    led = dict[bool, str]()
    for tenant in (f"tenant-{number}" for number in range(100)):
        led.setdefault(partition(tenant.encode(), list(range(SHARDS)), list(range(SHARDS))) in HERE, tenant)
    await broken(second, "hanging")
    async with KafkaProducer.open(settings, timeout_s=1.0) as producer:
        failed = 0

        async def failing() -> None:
            nonlocal failed
            while True:
                with pytest.raises(InvalidationFailed):
                    await producer.invalidate("config", "x", led[False])
                failed += 1

        failures = [asyncio.create_task(failing()) for _ in range(4)]
        try:
            while failed < 3 * len(failures):
                await producer.invalidate("config", "x", led[True])
            assert not any(task.done() for task in failures)
        finally:
            await ended(*failures)
        await whole(second)

        async def taken() -> bool:
            with suppress(InvalidationFailed):
                await producer.invalidate("config", "x", led[False])
                return True
            return False

        await until(taken, within_s=60.0)
