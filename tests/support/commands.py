"""Commands on Kafka to test with: a topic of one's own, messages written by hand, what a topic holds."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from cachebus import Settings
from cachebus.consumers.kafka import CommandsWorker, WorkerOptions
from cachebus.consumers.topics.session import TopicSession
from tests.support.caches import PATIENCE_S, quick
from tests.support.changes import running

QUICKLY = WorkerOptions(session_timeout_s=1.0)


def setup(redis_url: str, kafka: str, **more: Any) -> Settings:
    """Settings with a topic and a namespace of their own."""
    name = f"commands-{secrets.token_hex(4)}"
    given = {"namespace": name, "kafka_commands_topic": name, "kafka_bootstrap_servers": kafka, "kafka_partitions": 2}
    return quick(redis_url, **{**given, **more})


def worker_of(settings: Settings, options: WorkerOptions = QUICKLY, **more: Any) -> CommandsWorker:
    """A worker of theirs."""
    return CommandsWorker(settings, options=options, **more)


def invalidation(resource_id: Any, tenant_id: str = "acme", **more: Any) -> bytes:
    """The command for a resource of the type "config"."""
    return json.dumps(
        {"op": "invalidate", "tenant_id": tenant_id, "data_type": "config", "resource_id": resource_id} | more
    ).encode()


async def made(settings: Settings, **configs: str) -> None:
    """The topic is there."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        topic = settings.kafka_commands_topic
        await admin.create_topics([NewTopic(topic, settings.kafka_partitions, 1, topic_configs=configs)])
    finally:
        await admin.close()


async def configured(settings: Settings, topic: str, configs: dict[str, str]) -> None:
    """The topic is configured so."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.kafka_bootstrap_servers)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])
    finally:
        await admin.close()


@asynccontextmanager
async def producing(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """A bare producer."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap_servers, acks="all", linger_ms=0)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@asynccontextmanager
async def another_joined(worker: CommandsWorker) -> AsyncIterator[None]:
    """Another worker works, when those who were there have given their partitions up, or could not."""
    given_up, hand_over = asyncio.Event(), TopicSession.hand_over

    async def noted(session: TopicSession) -> None:
        await hand_over(session)
        given_up.set()

    TopicSession.hand_over = noted  # type: ignore[method-assign]
    try:
        async with running(worker):
            await asyncio.wait_for(given_up.wait(), PATIENCE_S)
            yield
    finally:
        TopicSession.hand_over = hand_over  # type: ignore[method-assign]


async def put(
    settings: Settings, *values: bytes | None, key: bytes = b"acme", headers: Iterable[tuple[str, bytes]] = ()
) -> None:
    """Write messages, as anybody can."""
    async with producing(settings) as producer:
        sent = [
            await producer.send(settings.kafka_commands_topic, value, key=key, headers=list(headers))
            for value in values
        ]
        for one in sent:
            await one


async def held(settings: Settings, topic: str | None = None) -> list[Any]:
    """All messages of a topic, by default that of the commands; those of one partition in order."""
    name = topic or settings.kafka_commands_topic
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap_servers, auto_offset_reset="earliest")
    await consumer.start()
    found: list[Any] = []
    try:
        parts = [TopicPartition(name, part) for part in range(settings.kafka_partitions)]
        consumer.assign(parts)
        ends = await consumer.end_offsets(parts)
        for part in parts:
            while await consumer.position(part) < ends[part]:
                found += (await consumer.getmany(part, timeout_ms=1000)).get(part, [])
    finally:
        await consumer.stop()
    return found


async def dead(settings: Settings) -> list[Any]:
    """The messages of the topic of the dead, which has one partition."""
    return await held(settings.model_copy(update={"kafka_partitions": 1}), dead_topic(settings))


def dead_topic(settings: Settings) -> str:
    """Where their dead letters are, unless somebody says otherwise."""
    return f"{settings.kafka_commands_topic}.{settings.namespace}.dead"


async def committed(settings: Settings, group: str | None = None) -> int:
    """How far the group has come, over all partitions."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka_bootstrap_servers,
        group_id=group or settings.namespace,
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        topic = settings.kafka_commands_topic
        consumer.assign([TopicPartition(topic, part) for part in range(settings.kafka_partitions)])
        return sum([await consumer.committed(part) or 0 for part in consumer.assignment()])
    finally:
        await consumer.stop()
