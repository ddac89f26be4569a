"""What every bus does: bring messages of each shard, in order, from when it is connected until it is closed."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from secrets import token_hex

import pytest

from cachebus.assembly.backends import channels_of, redis_store, route_of
from cachebus.base.clock import monotonic
from cachebus.base.patience import Patience
from cachebus.bus.kafka.bus import KafkaBus
from cachebus.bus.kafka.client import kafka_access
from cachebus.bus.kafka.envelope import Envelope
from cachebus.bus.memory import MemoryBus, MemoryChannel
from cachebus.bus.redis import RedisBus
from cachebus.core.ports import Bus, Caller, Change, Listener, LogEntry
from cachebus.errors import BusUnavailable
from cachebus.l2.names import ShardNames
from cachebus.observe import Counters
from cachebus.resp import Connection, Fixed, parse_address
from cachebus.settings import Settings
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer, free_port
from cachebus.wire import event as events
from tests.contract.conftest import MEMORY, program
from tests.contract.rig import NAMESPACE, PATIENCE_S, until
from tests.support.servers import KINDS, Kind, SharedServers

SHARDS = 3
KAFKA = Kind("kafka", "PATH", "", can_exist=True)
ODD = [b"", b"\x00", b"\r\n$1\r\n", bytes(range(256)), b"x" * 300_000]


class Ears:
    """A listener."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, bytes]] = []

    def __call__(self, shard: int, message: bytes) -> None:
        self.heard.append((shard, message))

    async def wait(self, count: int) -> list[tuple[int, bytes]]:
        """What was heard, once there is so much of it."""

        async def enough() -> bool:
            return len(self.heard) >= count

        await until(enough)
        return self.heard


class BusRig(ABC):
    """Makes buses, and sends messages as a store does."""

    def __init__(self) -> None:
        self.buses: list[Bus] = []

    async def bus(self, listener: Listener) -> Bus:
        """One that is connected."""
        bus = self.unconnected(listener)
        self.buses.append(bus)
        await bus.connect()
        return bus

    async def end(self) -> None:
        for bus in self.buses:
            await bus.close()

    @abstractmethod
    async def begin(self) -> None: ...

    @abstractmethod
    def unconnected(self, listener: Listener) -> Bus: ...

    @abstractmethod
    async def send(self, shard: int, message: bytes) -> None: ...


class MemoryBusRig(BusRig):
    async def begin(self) -> None:
        self.channels = [MemoryChannel() for _ in range(SHARDS)]

    def unconnected(self, listener: Listener) -> Bus:
        return MemoryBus(self.channels, listener)

    async def send(self, shard: int, message: bytes) -> None:
        self.channels[shard].send(message)


class RedisBusRig(BusRig):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.channels = [ShardNames(NAMESPACE, shard).channel for shard in range(SHARDS)]

    async def begin(self) -> None:
        self.redis = await Connection.open(parse_address(self.url), Patience(PATIENCE_S, PATIENCE_S, monotonic))

    def unconnected(self, listener: Listener) -> RedisBus:
        return RedisBus(
            Fixed(parse_address(self.url), len(self.channels)),
            self.channels,
            listener,
            Patience(PATIENCE_S, PATIENCE_S, monotonic),
        )

    async def send(self, shard: int, message: bytes) -> None:
        await self.redis.call("PUBLISH", self.channels[shard], message)

    async def end(self) -> None:
        await super().end()
        self.redis.close()


class KafkaBusRig(BusRig):
    """A topic of its own, and one more bus that sends: on Kafka it is who changed L2 that publishes."""

    def __init__(self, server: KafkaServer) -> None:
        super().__init__()
        self.settings = Settings(
            bus="kafka",
            kafka_bootstrap_servers=server.address,
            kafka_topic=f"contract-{token_hex(4)}",
            kafka_partitions=2,
            namespace=NAMESPACE,
            connect_timeout_s=PATIENCE_S,
        )

    async def begin(self) -> None:
        self.sender = await self.bus(Ears())

    def unconnected(self, listener: Listener) -> KafkaBus:
        return KafkaBus(kafka_access(self.settings), Envelope(NAMESPACE, SHARDS), listener, Counters(), monotonic)

    async def send(self, shard: int, message: bytes) -> None:
        await self.sender.publish(shard, message)


@pytest.fixture(params=[MEMORY, *KINDS, KAFKA], ids=lambda kind: kind.name)
async def rig(request: pytest.FixtureRequest, shared_servers: SharedServers) -> AsyncIterator[BusRig]:
    """A bus of each kind."""
    kind: Kind = request.param
    rig: BusRig
    if kind is KAFKA:
        rig = KafkaBusRig(shared_servers.kafka())
    elif kind is MEMORY:
        rig = MemoryBusRig()
    else:
        rig = RedisBusRig(shared_servers.get(program(kind)).url)
    await rig.begin()
    yield rig
    await rig.end()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """A server of the test's own, of each kind."""
    with EmbeddedServer(program(request.param)) as server:
        yield server


async def test_messages_come_in_order_with_their_shard(rig: BusRig) -> None:
    ears = Ears()
    await rig.bus(ears)
    sent = [(number % SHARDS, b"%d" % number) for number in range(500)]
    for shard, message in sent:
        await rig.send(shard, message)
    heard = await ears.wait(len(sent))
    for shard in range(SHARDS):  # of two shards nobody says which comes first
        assert [message for of, message in heard if of == shard] == [message for of, message in sent if of == shard]


async def test_any_bytes_come_as_they_are(rig: BusRig) -> None:
    ears = Ears()
    await rig.bus(ears)
    for message in ODD:
        await rig.send(1, message)
    assert await ears.wait(len(ODD)) == [(1, message) for message in ODD]


async def test_every_bus_hears_each_message_once(rig: BusRig) -> None:
    ears = [Ears(), Ears(), Ears()]
    for one in ears:
        await rig.bus(one)
    await rig.send(0, b"a")
    await rig.send(2, b"b")
    for one in ears:
        assert await one.wait(2) == [(0, b"a"), (2, b"b")]


async def test_what_was_sent_before_it_connected_does_not_come(rig: BusRig) -> None:
    ears = Ears()
    await rig.send(0, b"before")
    bus = await rig.bus(ears)
    assert bus.connected
    await rig.send(0, b"after")
    assert await ears.wait(1) == [(0, b"after")]


async def test_connecting_twice_is_connecting_once(rig: BusRig) -> None:
    ears = Ears()
    bus = await rig.bus(ears)
    await asyncio.gather(bus.connect(), bus.connect())
    await rig.send(0, b"once")
    await rig.send(0, b"end")
    assert await ears.wait(2) == [(0, b"once"), (0, b"end")]


async def test_a_closed_bus_hears_nothing_and_may_be_connected_again(rig: BusRig) -> None:
    ears, others = Ears(), Ears()
    bus = await rig.bus(ears)
    await rig.bus(others)
    await bus.close()
    await bus.close()
    assert not bus.connected
    await rig.send(0, b"unheard")
    await others.wait(1)
    await bus.connect()
    assert bus.connected
    await rig.send(0, b"heard")
    assert await ears.wait(1) == [(0, b"heard")]


async def test_it_says_what_is_wrong_with_each_shard(rig: BusRig) -> None:
    bus = rig.unconnected(Ears())
    assert all(bus.trouble(shard) for shard in range(SHARDS))
    await bus.connect()
    assert not any(bus.trouble(shard) for shard in range(SHARDS))
    await bus.close()
    assert all(bus.trouble(shard) for shard in range(SHARDS))


async def test_a_bus_never_connected_can_be_closed(rig: BusRig) -> None:
    bus = rig.unconnected(Ears())
    assert not bus.connected
    await bus.close()


async def test_publishing_is_the_stores_own_doing_where_the_bus_says_so(rig: BusRig) -> None:
    """There the store publishes in the step that gives the seq; a second message would double every event."""
    ears = Ears()
    bus = await rig.bus(ears)
    if not bus.store_publishes:
        await bus.publish(0, b"once")
        assert await ears.wait(1) == [(0, b"once")]
        return
    await bus.publish(0, b"twice?")
    await rig.send(0, b"once")
    assert await ears.wait(1) == [(0, b"once")]


# -- what only a server can do ------------------------------------------------------------------------------------


async def test_no_server_is_bus_unavailable_by_its_address() -> None:
    port = free_port()
    bus = RedisBus(Fixed(parse_address(f"redis://127.0.0.1:{port}/0"), 1), ["c"], Ears(), Patience(1.0, 1.0, monotonic))
    with pytest.raises(BusUnavailable, match=rf"127\.0\.0\.1:{port}"):
        await bus.connect()
    assert not bus.connected
    await bus.close()


async def test_a_lost_connection_is_noticed_and_made_again(server: EmbeddedServer) -> None:
    rig, ears = RedisBusRig(server.url), Ears()
    await rig.begin()
    bus = await rig.bus(ears)
    await rig.redis.call("CLIENT", "KILL", "TYPE", "pubsub")

    async def lost() -> bool:
        return not bus.connected

    await until(lost)
    await rig.send(0, b"missed")
    await bus.connect()
    await rig.send(0, b"heard")
    assert await ears.wait(1) == [(0, b"heard")]
    await rig.end()


async def test_a_server_that_hangs_is_noticed(server: EmbeddedServer) -> None:
    """Its socket stays open and nothing arrives, as when nothing is sent: only a ping tells the two apart."""
    bus = RedisBus(Fixed(parse_address(server.url), 1), ["c"], Ears(), Patience(0.3, PATIENCE_S, monotonic))
    await bus.connect()
    server.pause()

    async def lost() -> bool:
        return not bus.connected

    await until(lost)
    with pytest.raises(BusUnavailable):
        await RedisBus(Fixed(parse_address(server.url), 1), ["c"], Ears(), Patience(0.3, 0.3, monotonic)).connect()
    server.resume()
    await bus.connect()
    assert bus.connected
    await bus.close()


async def test_a_user_who_may_not_subscribe_is_told_so(server: EmbeddedServer) -> None:
    assert server.command("ACL", "SETUSER", "default", "-subscribe") == "+OK"
    bus = RedisBusRig(server.url).unconnected(Ears())
    with pytest.raises(BusUnavailable, match="NOPERM"):
        await bus.connect()
    assert not bus.connected
    await bus.close()


class Tenancy:
    """A namespace in one database of a server that others share: its store and its bus, as a cache has them."""

    def __init__(self, server: EmbeddedServer, database: int) -> None:
        settings = Settings(url=f"redis://127.0.0.1:{server.port}/{database}", namespace=NAMESPACE, shards=2)
        route = route_of(settings, monotonic)
        self.ears = Ears()
        self.store = redis_store(settings, route, monotonic)
        self.channels = channels_of(settings)
        self.bus = RedisBus(route, self.channels, self.ears, Patience(PATIENCE_S, PATIENCE_S, monotonic))

    async def open(self) -> None:
        await self.store.connect()
        await self.bus.connect()

    async def close(self) -> None:
        await self.bus.close()
        await self.store.close()

    async def invalidate(self, name: str) -> Change:
        body = events.encode_body([events.WritePart([], [name])])
        return await self.store.invalidate(1, Caller("", 0, b""), [], [name], body)


async def test_nothing_crosses_between_two_databases_of_one_server(server: EmbeddedServer) -> None:
    """Channels know no databases: what is published in one is heard in all, unless its channel has another name."""
    both = [Tenancy(server, 0), Tenancy(server, 9)]
    assert set(both[0].channels).isdisjoint(both[1].channels)
    for one in both:
        await one.open()
    changes = [await one.invalidate(f"T\x1facme-{number}") for number in range(10) for one in both]
    await asyncio.gather(*(one.ears.wait(10) for one in both))
    for index, one in enumerate(both):
        heard = [events.decode(message) for _, message in one.ears.heard]
        assert [(event.epoch, event.seq) for event in heard] == [change[:2] for change in changes[index::2]]
        assert {shard for shard, _ in one.ears.heard} == {1}
        probe = await one.store.probe(1, Caller("", 0, b""), with_invalidated=True)
        assert probe.epoch == changes[index].epoch
        assert await one.store.log(1, 0, 100) == [
            LogEntry(event.seq, message) for event, (_, message) in zip(heard, one.ears.heard, strict=True)
        ]
    assert changes[0].epoch != changes[1].epoch
    for one in both:
        await one.close()


# -- what only memory could do ---------------------------------------------------------------------------------------


async def test_in_memory_a_listener_is_not_called_by_the_sender() -> None:
    """A store's operation must be over before its event is applied, as it is where a server lies in between."""
    ears, channel = Ears(), MemoryChannel()
    bus = MemoryBus([channel], ears)
    await bus.connect()
    channel.send(b"a")
    assert not ears.heard
    assert await ears.wait(1) == [(0, b"a")]
    await bus.close()


async def test_in_memory_a_loop_that_has_ended_hears_nothing() -> None:
    """Loops may share a `memory://NAME` one after another; one that ended without closing harms nobody."""
    gone, ears, channel = Ears(), Ears(), MemoryChannel()
    await asyncio.to_thread(asyncio.run, MemoryBus([channel], gone).connect())
    bus = MemoryBus([channel], ears)
    await bus.connect()
    channel.send(b"a")
    assert await ears.wait(1) == [(0, b"a")]
    assert gone.heard == []
    await bus.close()


async def test_a_memory_channel_reaches_the_loop_of_another_thread() -> None:
    """A loop that sleeps in another thread is woken, not left to find the message when it wakes by itself."""
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    channel = MemoryChannel()
    channel.listen(asyncio.get_running_loop(), 0, lambda _, message: heard.set_result(message))
    await asyncio.to_thread(channel.send, b"event")
    assert await asyncio.wait_for(heard, 5) == b"event"
