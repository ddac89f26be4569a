"""The producer that hands commands to Kafka: what lands there, how it fails, and that it never hangs."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import pytest

from cachebus import BusUnavailable, Cascade, ConfigError, InvalidationFailed, InvalidKey, ValueTooLarge
from cachebus.base.clock import monotonic
from cachebus.producers import KafkaProducer
from cachebus.producers.command import Invalidate, InvalidateCoordinated, InvalidateScope, InvalidateTags, parse
from cachebus.tools.servers.daemon import free_port
from cachebus.tools.servers.kafka import KafkaServer
from tests.support.commands import held, made, setup


async def test_every_verb_is_a_command_in_its_tenants_partition(kafka: KafkaServer) -> None:
    settings = setup("redis://nowhere", kafka.address)
    cascades = [Cascade("page", to=[("config", "{resource_id}")])]
    async with KafkaProducer.open(settings, cascades) as producer:
        receipt = await producer.invalidate("page", "p", "acme")
        assert (receipt.status, receipt.stored, dict(receipt.targets)) == ("pending", False, {"page": 1, "config": 1})
        await producer.invalidate_scope("acme", "config")
        await producer.invalidate_tags(["t"], "globex")
        await producer.invalidate_coordinated("acme", "page", 7, [{"data_type": "config"}])
        await producer.invalidate("system", "x")
    messages = await held(settings)
    assert all(dict(one.headers) == {"namespace": settings.namespace.encode()} for one in messages)
    by_key: dict[bytes, list[Any]] = {}
    for one in messages:
        by_key.setdefault(one.key, []).append(parse(one.value))
    assert [type(one) for one in by_key[b"acme"]] == [Invalidate, InvalidateScope, InvalidateCoordinated], "in order"
    assert [type(one) for one in by_key[b"globex"]] == [InvalidateTags]
    assert by_key[b""] == [Invalidate(data_type="system", resource_id="x")]
    (related,) = by_key[b"acme"][0].related
    assert (related.data_type, related.resource_id) == ("config", "p")
    assert len({one.partition for one in messages if one.key == b"acme"}) == 1


async def test_it_refuses_what_a_cache_refuses_and_sends_nothing(kafka: KafkaServer) -> None:
    settings = setup("redis://nowhere", kafka.address)
    producer = KafkaProducer.open(settings)
    with pytest.raises(ConfigError, match="is not open"):
        await producer.invalidate("config", "x", "acme")
    async with producer:
        for wrong in (("config", "", "acme"), ("config", "x", ""), ("", "x", "acme"), ("config", "x\n", "acme")):
            with pytest.raises(InvalidKey):
                await producer.invalidate(*wrong)
        with pytest.raises(ValueError, match="wait='nodes'"):
            await producer.invalidate("config", "x", "acme", wait="nodes")
        with pytest.raises(ValueTooLarge):
            await producer.invalidate_tags([f"{number:0200}" for number in range(2000)], "acme")
    await producer.aclose()
    assert await held(settings) == []
    with pytest.raises(ConfigError, match="CACHEBUS_KAFKA_BOOTSTRAP_SERVERS"):
        KafkaProducer.open("redis://nowhere")
    with pytest.raises(ConfigError, match="is empty"):
        KafkaProducer.open(setup("redis://nowhere", kafka.address, kafka_commands_key=","))


async def test_commands_are_signed_with_the_first_key(kafka: KafkaServer) -> None:
    settings = setup("redis://nowhere", kafka.address, kafka_commands_key="new-key,old-key")
    assert "new-key" not in repr(settings)
    async with KafkaProducer.open(settings) as producer:
        await producer.invalidate("config", "x", "acme")
    (one,) = await held(settings)
    text = settings.namespace.encode() + b"\0" + one.value
    assert dict(one.headers)["signature"].decode() == hmac.new(b"new-key", text, "sha256").hexdigest()


async def test_a_broker_that_hangs_is_waited_for_so_long_and_no_longer(kafka: KafkaServer) -> None:
    settings = setup("redis://nowhere", kafka.address)
    async with KafkaProducer.open(settings, timeout_s=0.4) as producer:
        await producer.invalidate("config", "before", "acme")
        await asyncio.to_thread(kafka.pause)
        try:
            began_s = monotonic()
            several = [producer.invalidate("config", f"x{number}", "acme") for number in range(20)]
            found = await asyncio.gather(*several, return_exceptions=True)
            assert all(isinstance(one, InvalidationFailed) for one in found), found
            assert settings.kafka_commands_topic in str(found[0])
            with pytest.raises(InvalidationFailed):
                await producer.invalidate("config", "again", "acme")
            assert monotonic() - began_s < 2.0
        finally:
            await asyncio.to_thread(kafka.resume)
        await _until_it_takes(producer)
    assert parse((await held(settings))[-1].value) == Invalidate(
        tenant_id="acme", data_type="config", resource_id="after"
    )


async def _until_it_takes(producer: KafkaProducer) -> None:
    for _ in range(50):
        try:
            await producer.invalidate("config", "after", "acme")
        except InvalidationFailed:
            continue
        return
    raise AssertionError("it never came back")


async def test_no_broker_at_the_start_is_told() -> None:
    with pytest.raises(BusUnavailable):
        async with KafkaProducer.open(setup("redis://nowhere", f"127.0.0.1:{free_port()}", connect_timeout_s=1.0)):
            pass


async def test_a_compacted_topic_is_refused(kafka: KafkaServer) -> None:
    settings = setup("redis://nowhere", kafka.address)
    await made(settings, **{"cleanup.policy": "compact"})
    with pytest.raises(ConfigError, match="is compacted"):
        async with KafkaProducer.open(settings):
            pass
