"""Workers of two brokers, of which one hangs or is away: what befalls it reaches nobody's partitions but its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from secrets import token_hex
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from cachebus import Settings
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.connection import addresses_of
from cachebus.consumers.kafka import CommandsWorker, replay
from cachebus.consumers.worker import watcher
from cachebus.resp import Address, ended
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import running
from tests.support.commands import dead, invalidation, made, producing, put, setup, worker_of
from tests.support.kafka_fleet import spread
from tests.support.servers import SharedServers
from tests.support.swallowed import swallowing
from tests.support.topics import admin_of
from tests.support.worker_health import why

SOON_S = 7.0
"""Less than the driver waits for one broker: ten seconds."""
HERE, THERE = 0, 1
"""The partitions of the broker that stays, and of the one that breaks."""


@pytest.fixture
def pair(shared_servers: SharedServers) -> Iterator[list[KafkaServer]]:
    """Two brokers of one cluster, of which the second may break."""
    brokers = shared_servers.kafka_pair()
    yield brokers
    brokers[1].start()
    brokers[1].resume()


async def group_at(broker: KafkaServer, number: int) -> str:
    """A group whose coordinator is the broker with that number."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.address)
    await admin.start()
    found = list[str]()

    async def there() -> bool:
        name = f"group-{token_hex(4)}"
        with suppress(KafkaError):
            if await admin.find_coordinator(name) == number:
                found.append(name)
        return bool(found)

    try:
        await until(there, within_s=60.0)
    finally:
        await admin.close()
    return found[0]


async def spread_commands(brokers: list[KafkaServer], url: str) -> Settings:
    """Settings of a topic of commands with a partition on each, and one of the dead on the first."""
    name = (await spread(brokers, url, {HERE: [1], THERE: [2]}))["kafka_topic"]
    return setup(url, brokers[0].address, namespace=await group_at(brokers[0], 1), kafka_commands_topic=name)


async def sent(settings: Settings, partition: int, *values: bytes) -> None:
    """Commands in this partition."""
    async with producing(settings) as producer:
        for value in values:
            await producer.send_and_wait(settings.kafka_commands_topic, value, partition=partition)


def away_first(settings: Settings, broken: str) -> Settings:
    """The same, with an address that does not answer named before, and behind, the one that does."""
    servers = f"{broken},{settings.kafka_bootstrap_servers},{broken}"
    return settings.model_copy(update={"kafka_bootstrap_servers": servers})


async def test_an_address_that_swallows_whoever_calls_holds_up_no_worker_and_no_dead_letters(
    redis_url: str, kafka: KafkaServer
) -> None:
    settings = setup(redis_url, kafka.address)
    await made(settings)
    await put(settings, invalidation("a"), b"nonsense")
    with swallowing() as broken:
        asked = away_first(settings, broken)
        worker, began_s = worker_of(asked), monotonic()
        async with running(worker):
            await until(lambda: worker.meters.count("applied") == 1 and worker.meters.count("dead") == 1)
            assert monotonic() - began_s < SOON_S
        assert len(await dead(settings)) == 1
        began_s = monotonic()
        assert await replay(asked) == 1
        assert monotonic() - began_s < SOON_S


async def test_a_broker_that_hangs_and_is_named_first_holds_up_no_partition_of_the_other_one(
    redis_url: str, pair: list[KafkaServer]
) -> None:
    settings = await spread_commands(pair, redis_url)
    await sent(settings, HERE, invalidation("a"))
    await asyncio.to_thread(pair[1].pause)
    worker, began_s = worker_of(away_first(settings, pair[1].address)), monotonic()
    async with begun(worker):
        await until(lambda: worker.meters.count("applied") == 1)
        assert monotonic() - began_s < SOON_S
        await asyncio.to_thread(pair[1].resume)
        await sent(settings, THERE, invalidation("b"))
        await until(lambda: worker.meters.count("applied") == 2, within_s=60.0)


@asynccontextmanager
async def begun(worker: CommandsWorker) -> AsyncIterator[None]:
    """The worker at work, though not all is well with what it reads."""
    task = asyncio.create_task(worker.run())
    try:
        yield
        worker.drain()
        await asyncio.wait_for(task, 20)
    finally:
        await ended(task)


@pytest.fixture
async def far(shared_servers: SharedServers) -> AsyncIterator[tuple[list[KafkaServer], Proxy]]:
    """Two brokers, the second of which clients reach by a proxy: to the cluster it is well, whatever that does."""
    shared_servers.kafka()  # or the test is skipped
    with ExitStack() as stack:
        ports = [free_port(stack) for _ in range(2)]
        async with Proxy(dialer(Address(host="127.0.0.1", port=ports[1]))) as proxy:
            first = KafkaServer(listeners={"CLIENTS": (ports[0], ports[0])})
            second = KafkaServer(joins=first, number=2, listeners={"CLIENTS": (ports[1], proxy.port)})
            with await asyncio.to_thread(first.start), await asyncio.to_thread(second.start):
                yield [first, second], proxy


async def test_a_leader_that_a_worker_cant_reach_holds_up_its_own_partitions_alone(
    redis_url: str, far: tuple[list[KafkaServer], Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others reach it, so that it leads on. The worker's session lasts: no member of the group comes and goes."""
    monkeypatch.setattr(watcher, "LOOK_EVERY_S", 0.1)
    brokers, proxy = far
    settings = await spread_commands(brokers, redis_url)
    address = f"127.0.0.1:{brokers[0]._more['CLIENTS'][0]}"
    worker = worker_of(settings.model_copy(update={"kafka_bootstrap_servers": address}))
    sessions = list[object]()
    opened = worker.source.opened

    def counted() -> Any:
        sessions.append(None)
        return opened()

    monkeypatch.setattr(worker.source, "opened", counted)
    proxy.hold()
    await sent(settings, HERE, invalidation("a"))
    await sent(settings, THERE, invalidation("b"))
    began_s = monotonic()
    async with begun(worker):
        await until(lambda: worker.meters.count("applied") == 1)
        assert monotonic() - began_s < SOON_S
        await until(lambda: "do not answer" in why(worker, "topic"))
        for number in range(20):
            began_s = monotonic()
            await sent(settings, HERE, invalidation(number))
            await until(lambda: worker.meters.count("applied") == 2 + number)  # noqa: B023 (awaited here)
            assert monotonic() - began_s < SOON_S / 2
        assert worker.meters.count("applied") == 21
        proxy.restore()
        await until(lambda: worker.meters.count("applied") == 22)
        await until(lambda: worker.health.is_up("topic"))
        proxy.hold()
        await until(lambda: "do not answer" in why(worker, "topic"))
        await sent(settings, HERE, invalidation("c"))
        await until(lambda: worker.meters.count("applied") == 23)
        proxy.restore()
        await sent(settings, THERE, invalidation("d"))
        await until(lambda: worker.meters.count("applied") == 24)
    assert len(sessions) == 1


async def test_a_worker_reads_nothing_at_a_leaders_address_that_another_kafka_has_by_now(
    redis_url: str, far: tuple[list[KafkaServer], Proxy], kafka: KafkaServer
) -> None:
    """Its own cluster does not know yet, and names that address."""
    brokers, proxy = far
    settings = await spread_commands(brokers, redis_url)
    there = settings.model_copy(update={"kafka_bootstrap_servers": kafka.address})
    await made(there)
    await sent(there, THERE, *[b"theirs"] * 5)
    address = f"127.0.0.1:{brokers[0]._more['CLIENTS'][0]}"
    worker = worker_of(settings.model_copy(update={"kafka_bootstrap_servers": address}))
    async with begun(worker):
        await sent(settings, HERE, invalidation("a"))
        await sent(settings, THERE, invalidation("b"))
        await until(lambda: worker.meters.count("applied") == 2)
        proxy.lead(dialer(Address(host="127.0.0.1", port=kafka.port)))
        await until(lambda: "do not answer" in why(worker, "topic"))
        await sent(settings, HERE, invalidation("c"))
        await until(lambda: worker.meters.count("applied") == 3)
        proxy.lead(dialer(Address(host="127.0.0.1", port=brokers[1]._more["CLIENTS"][0])))
        await sent(settings, THERE, invalidation("d"))
        await until(lambda: worker.meters.count("applied") == 4)
        assert worker.meters.count("dead") == 0


async def test_a_worker_passes_over_a_broker_of_another_kafka_while_its_own_hangs(
    redis_url: str, kafka: KafkaServer
) -> None:
    """An address that was given to it by now. The worker reads no commands there, makes no topics, and joins no
    group."""
    other = KafkaServer()
    with await asyncio.to_thread(other.start):
        settings = setup(redis_url, kafka.address)
        await made(settings)
        there = settings.model_copy(update={"kafka_bootstrap_servers": other.address})
        await made(there)
        await put(there, invalidation("theirs"))
        worker = worker_of(settings)
        async with running(worker):
            await put(settings, invalidation("a"))
            await until(lambda: worker.meters.count("applied") == 1)
            worker.source.any_broker._given += addresses_of(other.address)
            worker.source.any_broker.know([])
            await asyncio.to_thread(kafka.pause)
            try:
                await until(lambda: "another Kafka cluster" in why(worker, "kafka"), within_s=30.0)
            finally:
                await asyncio.to_thread(kafka.resume)
            await put(settings, invalidation("b"))
            await until(lambda: worker.meters.count("applied") == 2)
        async with admin_of(there) as admin:
            assert await admin.list_topics() == [there.kafka_commands_topic]
