"""What somebody without the key may say on the events' topic, and what becomes of the promises."""

from __future__ import annotations

from secrets import token_hex
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord

from cachebus import Cache
from cachebus.bus.kafka.envelope import Envelope, message_key
from cachebus.bus.kafka.taking import WARN_EVERY_S, Taking
from cachebus.observe import Counters
from cachebus.producers import DirectProducer
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import D_S, nodes, quick, until
from tests.support.events import event_of
from tests.support.kafka_fleet import WHERE, fresh_by, on_topic, sent, shared, travels, written
from tests.support.logs import told as lines_told

SIGNED = {"kafka_events_key": "the right one"}


@pytest.fixture
def setup(kafka: KafkaServer) -> dict[str, Any]:
    """The settings of a fleet with a topic and a namespace of its own, but for its store and its keys."""
    name = f"signed-{token_hex(4)}"
    return {
        "bus": "kafka",
        "kafka_bootstrap_servers": kafka.address,
        "kafka_topic": name,
        "namespace": name,
        "kafka_partitions": 1,
        "shards": 2,
    }


def applied(cache: Cache) -> list[int]:
    """How far it has applied the events of each shard."""
    return [shard.applied for shard in cache.stats().shards]


async def test_g1_g9_kafka_events_that_are_unsigned_or_wrongly_signed(redis_url: str, setup: dict[str, Any]) -> None:
    """Nodes that were given no key, or another, write to the same store: each event is passed over, counted, and found
    by a probe. The log in L2 has it; nothing is flushed."""
    async with (
        nodes(redis_url, **SIGNED, **setup) as (a, b),
        nodes(redis_url, 1, **setup) as (unsigned,),
        nodes(redis_url, 1, kafka_events_key="wrong", **setup) as (wrong,),
        DirectProducer.open(quick(redis_url, **setup)) as producer,
    ):
        source = await shared(a, b, "k")
        with lines_told("WARNING") as told:
            await travels(a, b, source)
            for count, writer in enumerate((unsigned, wrong), 1):
                at_s = await written(writer, source, "k", f"new {count}")
                await until(lambda: b.stats().events_unsigned == count)  # noqa: B023 (awaited here)
                await fresh_by(b, source, "k", f"new {count}", at_s + D_S)
            source.values["k"] = "newest"
            receipt = await producer.invalidate("config", "k", **WHERE)
            await until(lambda: b.stats().shards[receipt.shard].applied >= receipt.seq)
            assert await b.get_or_load("config", "k", source.load, **WHERE) == "newest"
            await until(lambda: (a.stats().events_unsigned, b.stats().events_unsigned) == (3, 3))
        assert b.stats().catch_ups > 0
        assert b.stats().flushes == {"start": 2}
        assert b.stats().events_corrupt == 0
        await travels(a, b, source)
        assert wrong.stats().events_unsigned >= 3  # it takes none but its own, and all promises hold there, too
        assert unsigned.stats().events_unsigned == 0
    ours = [line for line in told if "kafka_events_key (CACHEBUS_KAFKA_EVENTS_KEY)" in line]
    assert len(ours) == 3  # once by each of a, b and the one with the wrong key
    assert not [line for line in told if "the right one" in line]


async def test_g1_a_forged_event_takes_no_events_place(redis_url: str, setup: dict[str, Any]) -> None:
    """Whoever may write to the topic says that the next event replaces nothing. A node that believed it would take the
    real one for a repetition, and serve for ever what that one replaces."""
    async with nodes(redis_url, **SIGNED, **setup) as (a, b):
        source = await shared(a, b, "k")
        shard = (await a.invalidate("config", "other", **WHERE)).shard
        await until(lambda: applied(b) == applied(a))
        view = b.stats().shards[shard]
        epoch = view.epoch.encode()
        key, forged = message_key(setup["namespace"], shard, epoch), event_of(epoch, view.applied + 1)
        await sent(setup, (key, forged, []), (key, forged, [("signature", b"0" * 64)]))
        await until(lambda: b.stats().events_unsigned == 2)
        assert b.stats().shards[shard].applied == view.applied
        at_s = await written(a, source, "k", "new")
        await fresh_by(b, source, "k", "new", at_s + D_S)
        assert b.stats().flushes == {"start": 2}


async def test_g1_a_signed_event_sent_again_elsewhere_is_passed_over(redis_url: str, setup: dict[str, Any]) -> None:
    """Under another shard's key or epoch it is wrongly signed; as it was it is a repetition."""
    namespace = setup["namespace"]
    async with nodes(redis_url, **SIGNED, **setup) as (a, b):
        await travels(a, b, await shared(a, b, "k"))
        await until(lambda: applied(b) == applied(a))
        signed = (await on_topic(setup))[-1]
        epochs = [shard.epoch.encode() for shard in b.stats().shards]
        mine = int(signed.key.split(b":")[1])
        before = b.stats()
        await sent(
            setup,
            (message_key(namespace, 1 - mine, epochs[1 - mine]), signed.value, signed.headers),
            (message_key(namespace, 1 - mine, epochs[mine]), signed.value, signed.headers),
            (message_key(namespace, mine, b"f" * 16), signed.value, signed.headers),
            (signed.key, signed.value + b"\0", signed.headers),
            (signed.key, b"", signed.headers),
            (signed.key, signed.value, signed.headers),
        )
        await until(lambda: b.stats().events_unsigned >= before.events_unsigned + 5)
        await until(lambda: b.stats().events_repeated > before.events_repeated)
        after = b.stats()
        assert after.events_unsigned == before.events_unsigned + 5
        assert (after.flushes, after.events_corrupt, applied(b)) == (before.flushes, 0, applied(a))


async def test_of_a_flood_of_unsigned_messages_one_line_a_minute_tells(setup: dict[str, Any]) -> None:
    now_s, counters, settings = 1000.0, Counters(), quick("redis://nowhere", **SIGNED, **setup)
    heard: list[tuple[int, bytes]] = []
    taking = Taking(Envelope.of(settings), lambda *one: heard.append(one), counters, lambda: now_s)
    key = message_key(setup["namespace"], 1, b"f" * 16)
    with lines_told("WARNING") as told:
        for at_s in (0.0, WARN_EVERY_S - 0.1, WARN_EVERY_S, 2 * WARN_EVERY_S - 0.1, 3 * WARN_EVERY_S):
            now_s = 1000.0 + at_s
            for offset in range(100):
                taking.take("topic/0", ConsumerRecord("topic", 0, offset, 0, 0, key, b"forged", None, len(key), 6, ()))
    assert not heard
    assert counters.events_unsigned == 500
    assert [line.partition(": ")[2].partition(" so far")[0] for line in told] == ["1", "201", "401"]
