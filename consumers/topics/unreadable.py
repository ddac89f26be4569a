"""Messages that the driver can't take apart: a header's name is not UTF-8, its batch is damaged. Those behind it in its
batch are hidden too: the batch is stepped over from there on."""

from __future__ import annotations

import asyncio
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError

from cachebus.consumers.worker.clean import describe

FETCH_S: Final = 3.0


class Unreadable(NamedTuple):
    """Messages of a partition, from the offset `offset` on and before `behind`."""

    topic: str
    partition: int
    offset: int
    behind: int
    why: str

    @property
    def reason(self) -> str:
        """What is wrong with them; their bytes are in the topic as long as it keeps them."""
        return f"{self.why}: {self.behind - self.offset} messages from here on can't be read"


def is_unreadable(error: BaseException) -> bool:
    """Whether it is the message's fault, not that of the way to it."""
    if isinstance(error, KafkaError):
        return isinstance(error, CorruptRecordException)
    return isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError)


def where(consumer: AIOKafkaConsumer) -> TopicPartition | None:
    """The partition whose messages could not be taken apart just now: what the driver has of those before it is gone,
    and it is the first that is left."""
    for partition, found in consumer._fetcher._records.items():
        if hasattr(found, "_partition_records"):
            return partition
    return None


async def stepped_over(consumer: AIOKafkaConsumer, partition: TopicPartition, at: int, error: BaseException) -> Any:
    """What is at that offset can't be read: it is passed over, with what is behind it in its batch."""
    consumer.seek(partition, at)
    behind = at + 1
    async with asyncio.timeout(FETCH_S):
        while not hasattr(found := consumer._fetcher._records.get(partition), "_partition_records"):
            await consumer._fetcher._create_fetch_waiter()
    batches = found._partition_records._records
    while batches.has_next():
        batch = batches.next_batch()
        if batch.next_offset > at:
            behind = batch.next_offset
            break
    consumer.seek(partition, behind)
    why = "a header's name is not UTF-8" if isinstance(error, UnicodeDecodeError) else describe(error)
    return Unreadable(partition.topic, partition.partition, at, behind, why)
