"""Clients and connections are started and closed whole, whenever whoever waits for them gives up."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.metadata import MetadataRequest

from cachebus import Settings
from cachebus.base.clock import monotonic
from cachebus.bus.kafka.brokers import Brokers
from cachebus.bus.kafka.client import KafkaAccess, kafka_access, quietly
from cachebus.bus.kafka.connection import KafkaConnection, addresses_of
from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.consumers.topics.commits import Committer
from cachebus.consumers.topics.identities import TopicIdentities
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until

CLIENTS = [AIOKafkaAdminClient, AIOKafkaConsumer, AIOKafkaProducer]


@pytest.mark.parametrize("client", CLIENTS)
async def test_one_that_is_given_up_at_any_moment_of_its_start_leaves_no_connection(
    client: Callable[..., Any], kafka: KafkaServer
) -> None:
    endings = Endings()
    with quietly(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(60):
            with suppress(TimeoutError):
                async with asyncio.timeout(number / 4000), endings.running(client(bootstrap_servers=kafka.address)):
                    break
        await endings.over(5.0)
        gc.collect()
    assert [str(one.message) for one in told if "AIOKafka" in str(one.message)] == []


async def test_whoever_closes_is_held_up_for_no_longer_than_he_says_though_nobody_answers(kafka: KafkaServer) -> None:
    endings = Endings()
    kafka.pause()
    with quietly(), suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await endings.started(AIOKafkaAdminClient(bootstrap_servers=kafka.address))
    began_s = monotonic()
    await endings.over(0.1)
    assert monotonic() - began_s < 5.0  # the driver's own bound is 40 s


def access_to(servers: str) -> KafkaAccess:
    """With more patience than a test has."""
    return kafka_access(
        Settings(bus="kafka", kafka_bootstrap_servers=servers, connect_timeout_s=60.0, l2_timeout_s=60.0)
    )


async def test_brokers_that_are_silent_or_away_are_not_waited_for(kafka: KafkaServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        brokers = Brokers(access_to(f"127.0.0.1:{port},127.0.0.1:1,{kafka.address}"))
        began_s = monotonic()
        with quietly():
            for _ in range(3):  # and from then on over the connection that is there
                answer = await brokers.ask(MetadataRequest([]))
                assert [broker[2] for broker in answer.brokers] == [kafka.port]
        assert monotonic() - began_s < 30.0
        await brokers.forget()


async def test_a_connection_that_is_given_up_at_any_moment_is_closed(kafka: KafkaServer) -> None:
    access = access_to(kafka.address)
    (address,) = addresses_of(kafka.address)
    with quietly(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(40):
            with suppress(TimeoutError):
                async with asyncio.timeout(number / 4000):
                    connection = await KafkaConnection.open(access, address)
                    await connection.close()
        gc.collect()
    assert [str(one.message) for one in told] == []


async def test_one_whose_farewell_nobody_answers_leaves_nothing_at_work(kafka: KafkaServer) -> None:
    """The fixtures look for tasks: without a mend the driver would fetch on, and reconnect, for ever."""
    topic, endings = f"clients-{token_hex(4)}", Endings()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.address, group_id=topic, auto_offset_reset="earliest")
    with quietly():
        async with endings.running(admin):
            await admin.create_topics([NewTopic(topic, 1, 1)])
        async with endings.running(consumer):
            await until(lambda: bool(consumer.assignment()))
            kafka.pause()
        await endings.over(0.1)


async def test_what_the_driver_begins_at_its_end_leaves_no_connection(kafka: KafkaServer) -> None:
    """It does not wait for all of its tasks when it is closed, and one of them may connect then, or be about to."""
    brokers = Brokers(access_to(kafka.address))
    with quietly(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ResourceWarning)
        for number in range(40):
            admin = by_any(AIOKafkaAdminClient(bootstrap_servers=kafka.address), brokers)
            await admin.start()
            (broker,) = admin._client.cluster.brokers()
            asked = [asyncio.create_task(admin._client.ready(broker.nodeId, group=group)) for group in ConnectionGroup]
            await asyncio.sleep(number / 4000)
            await admin.close()
            await asyncio.wait(asked)
            assert not await admin._client.ready(broker.nodeId)
        await brokers.forget()
        gc.collect()
    assert [str(one.message) for one in told if "AIOKafka" in str(one.message)] == []


async def test_a_commit_does_not_outlive_whoever_closes_and_is_cancelled_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a worker that is drained while its session ends by itself."""
    began = asyncio.Event()

    async def hangs(*_: Any) -> None:
        began.set()
        await asyncio.Event().wait()

    committer = Committer(cast("Any", None), TopicIdentities("cachebus", "dead"))
    monkeypatch.setattr(committer, "_tried", hangs)
    committer._committing = commit = asyncio.create_task(
        committer._committed(cast("Any", SimpleNamespace(assignment=None)), {})
    )
    await began.wait()
    closing = asyncio.create_task(committer.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    assert commit.cancelled()
