"""Events as messages on Kafka: keys of two stores that share a topic, and signatures while keys are changed."""

from __future__ import annotations

import hmac
from secrets import token_hex
from typing import Any

import pytest

from cachebus.assembly.backends import kafka_bus
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.envelope import message_key
from cachebus.cli.operate.look import list_nodes
from cachebus.listening import peers
from cachebus.observe import Counters
from cachebus.producers import DirectProducer
from cachebus.tools.doctor.finding import Severity
from cachebus.tools.servers.kafka import KafkaServer
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.wire.event import position_of
from tests.support.caches import D_S, nodes, quick, until
from tests.support.doctor import findings, of
from tests.support.kafka_fleet import fresh_by, on_topic, shared, travels, written
from tests.support.logs import told
from tests.support.servers import SharedServers

TENANTS = ("acme", "globex", "initech", "umbrella")


@pytest.fixture
def setup(kafka: KafkaServer) -> dict[str, Any]:
    """The settings of a fleet with a topic and a namespace of its own, but for its store."""
    name = f"events-{token_hex(4)}"
    return {
        "bus": "kafka",
        "kafka_bootstrap_servers": kafka.address,
        "kafka_topic": name,
        "namespace": name,
        "kafka_partitions": 2,
    }


async def test_two_stores_share_a_topic_and_a_namespace_and_no_key(
    redis_url: str, own_server: EmbeddedServer, setup: dict[str, Any]
) -> None:
    """Each message says in its key, and in the event, of which store's history it is; nothing gets lost in between."""
    setup["shards"] = 3
    heard: list[tuple[int, bytes, int]] = []
    ears = kafka_bus(
        quick(redis_url, **setup),
        monotonic,
        lambda shard, message: heard.append((shard, *position_of(message))),
        Counters(),
    )
    async with (
        nodes(redis_url, **setup) as (a, b),
        nodes(own_server.url, **setup) as (c, d),
        DirectProducer.open(quick(redis_url, **setup)) as first,
        DirectProducer.open(quick(own_server.url, **setup)) as second,
    ):
        ones, others = await shared(a, b, "k"), await shared(c, d, "k")
        await ears.connect()
        receipts = [
            await writer.invalidate("config", number, tenant_id=tenant)
            for number in range(5)
            for tenant in TENANTS
            for writer in (a, c, first, second)
        ]
        await until(lambda: len(heard) >= len(receipts))
        await ears.close()
        at_s = await written(a, ones, "k", "new")
        await fresh_by(b, ones, "k", "new", at_s + D_S)
        await fresh_by(d, others, "k", "old", at_s)
        at_s = await written(c, others, "k", "newer")
        await fresh_by(d, others, "k", "newer", at_s + D_S)
        await fresh_by(b, ones, "k", "new", at_s)
        epochs = [{shard.epoch for shard in cache.stats().shards} for cache in (a, c)]
        for cache in (a, b, c, d):
            assert cache.stats().flushes == {"start": 3}, "the other store's events drop nothing"
            assert cache.stats().events_foreign
    assert sorted(heard) == sorted((receipt.shard, receipt.epoch.encode(), receipt.seq) for receipt in receipts)
    found = await on_topic(setup)
    assert len(epochs[0] | epochs[1]) == 6
    for one in found:
        _, shard, epoch = one.key.decode().split(":")
        assert one.key == message_key(setup["namespace"], int(shard), position_of(one.value)[0])
        assert epoch in epochs[0] | epochs[1]
        assert one.partition == int(shard) % 2
    assert {key.rpartition(b":")[2].decode() for key in {one.key for one in found}} >= {r.epoch for r in receipts}


async def test_what_is_published_is_signed_with_the_first_key(redis_url: str, setup: dict[str, Any]) -> None:
    setup["kafka_events_key"] = "new-key,old-key"
    async with nodes(redis_url, **setup) as (a, b), DirectProducer.open(quick(redis_url, **setup)) as producer:
        source = await shared(a, b, "k")
        await travels(a, b, source)
        observed = a.stats().bus_lag.count

        async def heard() -> bool:
            await producer.invalidate("config", "k", tenant_id="acme")
            return a.stats().bus_lag.count > observed

        await until(heard)
        assert (a.stats().events_unsigned, b.stats().events_unsigned) == (0, 0)
    found = await on_topic(setup)
    assert len(found) >= 2
    for one in found:
        signed = hmac.new(b"new-key", one.key + b"\0" + one.value, "sha256").hexdigest()
        assert one.headers == (("signature", signed.encode()),)


async def test_who_has_no_key_takes_what_is_signed(redis_url: str, setup: dict[str, Any]) -> None:
    async with nodes(redis_url, 1, kafka_events_key="key", **setup) as (a,), nodes(redis_url, 1, **setup) as (b,):
        await travels(a, b, await shared(a, b, "k"))
        assert b.stats().events_unsigned == 0


@pytest.mark.parametrize(("before", "after"), [("old", "old,new"), ("old,new", "new,old"), ("new,old", "new")])
async def test_a_key_is_changed_in_three_steps_and_no_event_is_passed_over(
    redis_url: str, setup: dict[str, Any], before: str, after: str
) -> None:
    """While one step is on its way, nodes of both sides of it are there."""
    async with (
        nodes(redis_url, 1, kafka_events_key=before, **setup) as (a,),
        nodes(redis_url, 1, kafka_events_key=after, **setup) as (b,),
    ):
        source = await shared(a, b, "k")
        await travels(a, b, source)
        await travels(b, a, source)
        assert (a.stats().events_unsigned, b.stats().events_unsigned) == (0, 0)


async def test_nodes_of_one_namespace_that_hear_by_two_topics_are_told_by_the_doctor(
    redis_url: str, setup: dict[str, Any]
) -> None:
    other = {**setup, "kafka_topic": f"{setup['kafka_topic']}-other"}
    with told("WARNING") as lines:
        async with nodes(redis_url, 1, **setup), nodes(redis_url, 1, **setup):
            assert of(await findings(redis_url, **setup), "topics") is None
            found = of(await findings(redis_url, **other), "topics")
            assert found is not None and "these settings" in found.says
            async with nodes(redis_url, 1, **other):
                found = of(await findings(redis_url, **setup), "topics")
                assert found is not None
                assert setup["kafka_topic"] in found.says and other["kafka_topic"] in found.says
    assert not [line for line in lines if "staleness_bound_s" in line]


async def test_a_node_that_sees_others_hear_by_another_topic_says_so(
    redis_url: str, setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CHECK_EVERY_S", 0.05)
    other = {**setup, "kafka_topic": f"{setup['kafka_topic']}-other"}
    with told("WARNING") as lines:
        async with nodes(redis_url, 2, **setup) as (a, _):
            async with nodes(redis_url, 1, **other) as (c,):
                await until(lambda: a.stats().nodes_elsewhere == 1 and c.stats().nodes_elsewhere == 2)
                assert a.health().coherent
                assert any(setup["kafka_topic"] in one for one in a.health().degraded)
            await until(lambda: a.stats().nodes_elsewhere == 0)
            assert not a.health().degraded
    assert sum("hear events by another Kafka topic" in line for line in lines) == 3


async def test_nodes_with_different_keys_are_told_and_never_by_their_keys(
    redis_url: str, setup: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "CHECK_EVERY_S", 0.05)
    settings = quick(redis_url, **setup)
    with told("WARNING") as lines:
        async with (
            nodes(redis_url, 1, kafka_events_key="first-secret", **setup) as (a,),
            nodes(redis_url, 1, kafka_events_key="next-secret,first-secret", **setup) as (b,),
        ):
            await until(lambda: a.stats().nodes_elsewhere == b.stats().nodes_elsewhere == 1)
            found = of(await findings(redis_url, **setup), "keys of events")
            assert found is not None and found.level is Severity.ADVICE
            assert a.stats().node in found.says and b.stats().node in found.says
            await list_nodes(settings, False)
            shown = capsys.readouterr()
            assert "keys of events" in shown.err
            told_by_all = found.says + found.means + found.otherwise + shown.out + shown.err + "".join(lines)
            assert "secret" not in told_by_all
        async with nodes(redis_url, 2, kafka_events_key="first-secret,next-secret", **setup):
            assert of(await findings(redis_url, **setup), "keys of events") is None
            await list_nodes(settings, False)
            assert not capsys.readouterr().err
    assert sum("have other keys of events" in line for line in lines) == 2


async def test_nodes_at_two_kafkas_are_told(
    redis_url: str, setup: dict[str, Any], shared_servers: SharedServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "CHECK_EVERY_S", 0.05)
    other = {**setup, "kafka_bootstrap_servers": shared_servers.kafka_pair()[0].address}
    async with nodes(redis_url, 1, **setup) as (a,), nodes(redis_url, 1, **other) as (b,):
        await until(lambda: a.stats().nodes_elsewhere == b.stats().nodes_elsewhere == 1)
        assert any("another Kafka cluster" in one for one in a.health().degraded)
        found = of(await findings(redis_url, **setup), "kafka clusters")
        assert found is not None and found.level is Severity.ADVICE
        assert a.stats().node in found.says and b.stats().node in found.says
    async with nodes(redis_url, 2, **other) as (c, _):
        await until(lambda: c.stats().nodes_elsewhere == 0)
        assert of(await findings(redis_url, **setup), "kafka clusters") is None
