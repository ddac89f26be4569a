"""Goes through the dead letters of a topic once, from where the last replay has come to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from cachebus.bus.kafka.driver import by_any
from cachebus.bus.kafka.endings import Endings
from cachebus.consumers.topics.brokers import EARLIEST, LATEST, BrokerAdmin
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic
from cachebus.consumers.topics.membership import Membership

AT_ONCE: Final = 500
WITHIN_S: Final = 10.0
"""How long brokers may take to tell whether letters lie there."""

Tried = Callable[[Sequence[Any]], Awaitable[None]]


def group_of(member: Membership) -> str:
    """The group whose offsets keep how far replays have come."""
    return f"{member.group}-replay"


async def has_letters(member: Membership, brokers: BrokerAdmin) -> bool | None:
    """Whether letters lie in the topic that no replay has come to; None where brokers do not tell, or may not."""
    name = member.dead_topic
    try:
        async with asyncio.timeout(WITHIN_S):
            topics = await brokers.topics([name])
            if name not in topics or topics[name].error:
                return None
            parts = [TopicPartition(name, number) for number in topics[name].leaders]
            come_to = await brokers.committed(group_of(member))
            first, ends = await brokers.offsets(topics, parts, EARLIEST), await brokers.offsets(topics, parts, LATEST)
    except (KafkaError, TimeoutError):
        return None
    if not parts or any(part not in first or part not in ends for part in parts):
        return None
    return any(max(first[part], come_to[part].offset if part in come_to else 0) < ends[part] for part in parts)


async def each_letter(member: Membership, dead_topic: DeadTopic, tried: Tried, limit: int | None = None) -> None:
    """Pass the messages of all letters that are in the topic now to `tried`, some at a time, and commit each time.

    The offsets of the group "NAME-replay" keep how far it has come. `limit`: the most letters. Raises aiokafka's
    errors. What was not committed is tried again by the next replay.
    """
    parts = [TopicPartition(dead_topic.topic, number) for number in await dead_topic.partitions()]
    consumer = AIOKafkaConsumer(
        **member.clients, group_id=group_of(member), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    by_any(consumer, dead_topic.brokers)
    left, endings = limit, Endings()
    try:
        async with endings.running(consumer):
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            for part in parts:
                while (at := await consumer.position(part)) < ends[part] and left != 0:
                    most = AT_ONCE if left is None else min(AT_ONCE, left)
                    records = (await consumer.getmany(part, timeout_ms=1000, max_records=most)).get(part, [])
                    records = [record for record in records if record.offset < ends[part]]
                    await tried(records)
                    left = None if left is None else left - len(records)
                    at = records[-1].offset + 1 if records else at
                    await consumer.commit({part: at})
                    consumer.seek(part, at)
    finally:
        await endings.over(LEAVE_S)
        await dead_topic.aclose()
