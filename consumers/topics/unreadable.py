"""Messages that the driver can't take apart: a header's name is not UTF-8. Those behind it in its batch are hidden too.

The driver raises for all that it was asked for together, whichever partition it is in. So they are then asked for one
at a time, up to the one, which is stepped over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus.clock import wall_s
from consumers.dead import DeadLetter

UNREADABLE: Final = (UnicodeDecodeError,)
ASK_MS: Final = 100


class Unreadable(NamedTuple):
    """Messages of a partition, from the offset `first` on and before `behind`."""

    partition: TopicPartition
    first: int
    behind: int

    def letter(self) -> DeadLetter:
        """What stands for them; their bytes are in the topic as long as it keeps them."""
        where = f"{self.partition.topic}/{self.partition.partition}@{self.first}"
        reason = f"a header's name is not UTF-8: {self.behind - self.first} messages from here on can't be read"
        return DeadLetter(b"", reason, where, 1, wall_s())


async def go_back(consumer: AIOKafkaConsumer) -> None:
    """To what is committed: what the driver had taken of other partitions is lost with what it raised."""
    for partition in consumer.assignment():
        committed = await consumer.committed(partition)
        if committed is None:
            await consumer.seek_to_beginning(partition)
        else:
            consumer.seek(partition, committed)


async def next_one(consumer: AIOKafkaConsumer) -> Mapping[TopicPartition, Sequence[Any]] | Unreadable:
    """The next message of any partition, or those that had to be stepped over; nothing where there is no more now."""
    for partition in sorted(consumer.assignment()):
        try:
            found: Mapping[TopicPartition, Sequence[Any]] = await consumer.getmany(
                partition, timeout_ms=ASK_MS, max_records=1
            )
        except UNREADABLE:
            return await _stepped_over(consumer, partition)
        if found:
            return found
    return {}


async def _stepped_over(consumer: AIOKafkaConsumer, partition: TopicPartition) -> Unreadable:
    first = at = await consumer.position(partition)
    end = (await consumer.end_offsets([partition]))[partition]
    while (at := at + 1) < end:
        consumer.seek(partition, at)
        try:
            await consumer.getmany(partition, timeout_ms=ASK_MS, max_records=1)
        except UNREADABLE:
            continue
        break
    consumer.seek(partition, at)
    return Unreadable(partition, first, at)
