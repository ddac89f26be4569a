"""A bit of an event flips, on the bus or in the log: a gap, which heals within D, and nothing replaced comes back.

1. A producer replaces `x` (and more): its event comes to the reader with one bit changed.
2. Whoever took the seq in a damaged header for the truth would then pass over the next event, as one that is known.
3. So that one replaces `y`. Both must be gone once the reader has probed; and, without a probe, once its lease is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from cachebus import Cache
from cachebus.core.ports import Caller
from cachebus.keys.key import Keyspace
from cachebus.resp import parse_address
from cachebus.testing import FakeClock, Faults, Fleet
from cachebus.tools.harness.proxy import Proxy, dialer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire import event as events
from cachebus.wire.event import WritePart
from tests.support.caches import deaf, heard, nodes, parts, until
from tests.support.flips import flipped

D_S = 600.0
WHERE = {"tenant_id": "acme"}
space = Keyspace(1)
X, TAGGED, OTHER = space.key("doc", "x", "acme"), space.key("view", "t", "acme"), space.key("list", "all", "acme", "a7")


@dataclass
class Producer:
    """What it replaces, and with which event."""

    made: list[WritePart]
    gone: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def replace(self, fleet: Fleet) -> bytes:
        """As a producer of its own; gives the event."""
        body, shard = events.encode_body(self.made, probe=len(self.made) > 1), fleet.world.shards[0]
        keys = [key for key in (X, TAGGED, OTHER) if key.l1 in self.made[0].keys]
        change = shard.invalidate(Caller("", 0, b""), keys, [name for p in self.made for name in p.scopes], body)
        return change.event_header + body


PRODUCERS = {
    "a key": Producer([WritePart([X.l1], [])], [("doc", "x", {})]),
    "scopes and tags": Producer(
        [WritePart([], ["D\x1facme\x1fdoc", "G\x1facme\x1ft", "I\x1facme\x1flist\x1fall"])],
        [("doc", "x", {}), ("view", "t", {}), ("list", "all", {"agent_id": "a7"})],
    ),
    "two parts": Producer(
        [WritePart([X.l1], [], "n"), WritePart([], ["Y\x1fview", "TA\x1facme\x1fa7"], "m", "why", "trace")],
        [("doc", "x", {}), ("view", "t", {}), ("list", "all", {"agent_id": "a7"})],
    ),
}
each = pytest.mark.parametrize("producer", PRODUCERS.values(), ids=PRODUCERS.keys())


class Flip(Faults):
    """Flips a bit of the next message, or loses it; all others pass."""

    bit: int | None = None
    lose = False

    def applied_to(self, message: bytes, channel: int = 0) -> list[bytes]:
        bit, lose, self.bit, self.lose = self.bit, self.lose, None, False
        if lose:
            return []
        return [message if bit is None else flipped(message, bit)]


@dataclass
class Play:
    """Two nodes over a store in memory; nothing but `probe` tells the reader what it has missed."""

    fleet: Fleet
    clock: FakeClock
    faults: Flip

    @property
    def reader(self) -> Cache:
        return self.fleet.caches[1]

    async def begin(self) -> None:
        """The reader has the old values in memory, under a lease."""
        writer = self.fleet.caches[0]
        await writer.set("doc", "x", "old", **WHERE)
        await writer.set("doc2", "y", "old", **WHERE)
        await writer.set("view", "t", "old", **WHERE, tags=["t"])
        await writer.set("list", "all", "old", **WHERE, agent_id="a7")
        await self.fleet.settle()
        await self.fleet.probe()
        for data_type, resource_id, ids in [*PRODUCERS["two parts"].gone, ("doc2", "y", {})]:
            assert await self.reader.get(data_type, resource_id, **WHERE, **ids) == "old"

    async def goes_on(self) -> None:
        """The event after the damaged one."""
        await self.fleet.caches[0].set("doc2", "y", "new", **WHERE)
        await self.fleet.settle()

    async def nothing_old(self, producer: Producer, why: str) -> None:
        for data_type, resource_id, ids in producer.gone:
            assert await self.reader.get(data_type, resource_id, **WHERE, **ids) is None, why
        assert await self.reader.get("doc2", "y", **WHERE) == "new", why


@pytest.fixture
async def play() -> AsyncIterator[Play]:
    clock, faults = FakeClock(), Flip()
    settings = {"staleness_bound_s": D_S, "probe_interval_s": D_S / 2, "gap_grace_s": 0.0}
    async with Fleet(2, clock=clock, faults=faults, **settings) as fleet:
        yield Play(fleet, clock, faults)


async def bits(play: Play, producer: Producer) -> range:
    """Those of the producer's event."""
    message = producer.replace(play.fleet)
    await play.fleet.settle()
    return range(8 * len(message))


@each
async def test_a_bit_flipped_on_the_bus_is_a_gap_that_the_next_probe_heals(play: Play, producer: Producer) -> None:
    for bit in await bits(play, producer):
        await play.begin()
        play.faults.bit = bit
        producer.replace(play.fleet)
        await play.goes_on()
        await play.fleet.probe()
        await play.nothing_old(producer, f"bit {bit}")
        assert play.reader.stats().shards[0].gap == 0
    assert not play.reader.stats().flushes.get("gap"), "the log had it"
    assert play.reader.stats().shards[0].applied == play.fleet.world.shards[0].seq


@each
async def test_a_bit_flipped_on_the_bus_costs_nothing_old_behind_d_without_any_probe(
    play: Play, producer: Producer
) -> None:
    for bit in await bits(play, producer):
        await play.begin()
        play.faults.bit = bit
        producer.replace(play.fleet)
        await play.goes_on()
        play.clock.advance(D_S)
        await play.nothing_old(producer, f"bit {bit}")


@each
async def test_a_bit_flipped_in_the_log_is_a_flush(play: Play, producer: Producer) -> None:
    shard = play.fleet.world.shards[0]
    for flushes, bit in enumerate(await bits(play, producer)):
        await play.begin()
        play.faults.lose = True
        message = producer.replace(play.fleet)
        shard.messages[shard.seq] = flipped(message, bit)
        await play.goes_on()
        await play.fleet.probe()
        await play.nothing_old(producer, f"bit {bit}")
        assert play.reader.stats().flushes.get("gap") == flushes + 1
    assert play.reader.stats().shards[0].applied == shard.seq


class Spoiler:
    """Flips a bit of the next event that passes through a proxy."""

    bit: int | None = None

    def __call__(self, frame: bytes) -> list[bytes]:
        at = frame.find(events.MAGIC)
        if self.bit is None or at < 0:
            return [frame]
        bit, self.bit = self.bit, None
        return [flipped(frame, 8 * at + bit)]


def one_of_each_byte(message: bytes) -> list[int]:
    return [8 * at + 5 * at % 8 for at in range(len(message))]


async def test_over_a_real_server_a_flipped_bit_heals_within_d(redis_server: EmbeddedServer) -> None:
    """One bit of each byte of the event, through a proxy between the reader and the server."""
    spoil = Spoiler()
    async with Proxy(dialer(parse_address(redis_server.url))) as proxy, nodes(redis_server.url, 1) as (writer,):
        proxy.spoil(spoil)
        async with nodes(f"redis://127.0.0.1:{proxy.port}/0", 1) as (reader,):
            body = events.encode_body([WritePart([X.l1], [], parts(writer).node.id)])
            for bit in one_of_each_byte(bytes(events.HEADER_BYTES) + body):
                await _holds_old(writer, reader)
                spoil.bit = bit
                await writer.invalidate("doc", "x", **WHERE)
                receipt = await writer.set("doc", "y", "new", **WHERE)
                await heard([reader], receipt)
                assert await reader.get("doc", "x", **WHERE) is None, f"bit {bit}"
                assert await reader.get("doc", "y", **WHERE) == "new", f"bit {bit}"
                assert spoil.bit is None
            assert not reader.stats().flushes.get("gap")
            assert reader.stats().events_corrupt > len(body)


async def _holds_old(writer: Cache, reader: Cache) -> None:
    receipts = [await writer.set("doc", resource_id, "old", **WHERE) for resource_id in "xy"]
    await heard([reader], *receipts)
    for resource_id in "xy":
        assert await reader.get("doc", resource_id, **WHERE) == "old"


async def test_over_a_real_server_a_bit_flipped_in_the_log_is_a_flush(redis_server: EmbeddedServer) -> None:
    log = "{cachebus:0}:log"
    async with nodes(redis_server.url) as (writer, reader):
        link: Any = parts(writer).store
        call = link._links.of(0).call
        await _holds_old(writer, reader)
        await writer.invalidate("doc", "x", **WHERE)
        ((_, fields),) = await call("XREVRANGE", log, "+", "-", "COUNT", "1")
        for count, bit in enumerate(one_of_each_byte(fields[1])):
            await _holds_old(writer, reader)
            with deaf(reader):
                receipt = await _flipped_in_the_log(writer, reader, call, log, bit)
                await heard([reader], receipt)
            assert await reader.get("doc", "x", **WHERE) is None, f"bit {bit}"
            await until(lambda expected=count + 1: reader.stats().flushes.get("gap") == expected)


async def _flipped_in_the_log(writer: Cache, reader: Cache, call: Any, log: str, bit: int) -> Any:
    """Invalidate `x`; the log has that event with a bit flipped, before anybody has read it there."""
    attention = parts(reader).listening.attention
    asked: Any = parts(reader).store
    gate, read_log = asyncio.Event(), asked.log

    async def waiting(*args: Any) -> Any:
        await gate.wait()
        return await read_log(*args)

    asked.log = waiting
    try:
        receipt = await writer.invalidate("doc", "x", **WHERE)
        ((entry_id, fields),) = await call("XREVRANGE", log, "+", "-", "COUNT", "1")
        await call("DEL", log)
        await call("XADD", log, entry_id, "e", flipped(fields[1], bit))
    finally:
        gate.set()
        del asked.log
    attention.nudge(0)
    return receipt


async def test_a_flipped_bit_in_the_head_that_answers_an_own_write_costs_the_shards_memory_and_no_promise() -> None:
    """The reply to a write has its event's header: damaged, it would stand for another event than the one there is."""
    for bit in range(8 * events.HEADER_BYTES):
        async with Fleet(2) as fleet:
            a, b = fleet.caches
            await a.set("config", "other", "kept", "acme")
            await a.set("config", "x", "old", "acme")
            shard = fleet.world.shards[0]
            announced = shard.announce

            def damaged(names: Sequence[str], body: bytes, bit: int = bit, announced: Any = announced) -> bytes:
                return flipped(announced(names, body), bit)

            shard.announce = damaged  # type: ignore[method-assign]
            await a.invalidate("config", "x", "acme")
            shard.announce = announced  # type: ignore[method-assign]
            assert await a.get("config", "x", "acme") is None
            assert a.stats().events_corrupt == 1
            await b.set("config", "other", "new", "acme")
            await fleet.settle()
            await fleet.probe()
            assert await a.get("config", "other", "acme") == "new"
