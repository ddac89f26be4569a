"""Goes through the dead letters of a topic once, from where the last replay has come to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus.bus.kafka.client import Endings
from cachebus.consumers.topics.dead_topic import LEAVE_S, DeadTopic
from cachebus.consumers.topics.membership import Membership

AT_ONCE: Final = 500

Tried = Callable[[Sequence[Any]], Awaitable[None]]


async def each_letter(member: Membership, dead_topic: DeadTopic, tried: Tried, limit: int | None = None) -> None:
    """Pass the messages of all letters that are in the topic now to `tried`, some at a time, and commit each time.

    The offsets of the group "NAME-replay" keep how far it has come. `limit`: the most letters. Raises aiokafka's
    errors. What was not committed is tried again by the next replay.
    """
    parts = [TopicPartition(dead_topic.topic, number) for number in await dead_topic.partitions()]
    consumer = AIOKafkaConsumer(
        **member.clients, group_id=f"{member.group}-replay", enable_auto_commit=False, auto_offset_reset="earliest"
    )
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
