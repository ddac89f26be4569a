"""The address of a broker is another Kafka's by now, with topics of the same names, as staging has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import NamedTuple

import pytest

from cachebus import Settings
from cachebus.base import strangers
from cachebus.errors import InvalidationFailed
from cachebus.producers import KafkaProducer
from cachebus.resp import Address
from cachebus.tools.harness.proxy import Dial, Proxy, dialer
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.caches import until
from tests.support.changes import running
from tests.support.commands import held, made, put, setup, worker_of
from tests.support.servers import SharedServers
from tests.support.worker_health import why


class Reused(NamedTuple):
    """An address, and who may stand there."""

    settings: Settings
    """By that address."""
    ours: Settings
    theirs: Settings
    """Past it."""
    proxy: Proxy
    to_ours: Dial
    to_theirs: Dial


@pytest.fixture
async def address(redis_url: str, kafka: KafkaServer, shared_servers: SharedServers) -> AsyncIterator[Reused]:
    """An address at which our Kafka stands, until it is given to the other one."""
    with ExitStack() as stack:
        port = free_port(stack)
        to_ours, to_theirs = (dialer(Address(host="127.0.0.1", port=one)) for one in (port, kafka.port))
        async with Proxy(to_ours) as proxy:
            with await asyncio.to_thread(KafkaServer(listeners={"CLIENTS": (port, proxy.port)}).start) as server:
                settings = setup(redis_url, f"127.0.0.1:{proxy.port}")
                ours, theirs = (
                    settings.model_copy(update={"kafka_bootstrap_servers": one.address}) for one in (server, kafka)
                )
                for one in (ours, theirs):
                    await made(one)
                yield Reused(settings, ours, theirs, proxy, to_ours, to_theirs)


async def test_g9_no_command_is_handed_to_another_kafka(address: Reused) -> None:
    """It would be taken there, the call would return, and nobody would ever apply it."""
    async with KafkaProducer.open(address.settings, timeout_s=1.0) as producer:
        await producer.invalidate("config", "x", "acme")
        address.proxy.lead(address.to_theirs)
        for _ in range(3):
            with pytest.raises(InvalidationFailed):
                await producer.invalidate("config", "x", "acme")
        address.proxy.lead(address.to_ours)

        async def taken() -> bool:
            with suppress(InvalidationFailed):
                await producer.invalidate("config", "x", "acme")
                return True
            return False

        await until(taken)
    assert len(await held(address.ours)) == 2
    assert await held(address.theirs) == []


async def test_a_worker_takes_nothing_of_another_kafka_until_that_alone_has_answered_for_a_while(
    address: Reused, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(address.theirs, b"theirs")
    worker = worker_of(address.settings)
    async with running(worker):
        await put(address.ours, b'{"op": "nonsense"}')
        await until(lambda: worker.meters.count("dead") == 1)
        address.proxy.lead(address.to_theirs)
        await until(lambda: "another Kafka cluster" in why(worker, "kafka"))
        assert worker.meters.count("dead") == 1
        monkeypatch.setattr(strangers, "BELIEVED_S", 0.0)  # it was set up anew
        await until(lambda: worker.meters.count("dead") == 2)
