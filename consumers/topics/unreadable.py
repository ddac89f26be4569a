"""Messages that the driver can't parse: a header's name is not UTF-8, or a batch is damaged, or inflates to too much.
Those behind it in the same batch can't be reached either: the rest of the batch is stepped over."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException, KafkaError

from cachebus.consumers.topics.screen import BatchScreen
from cachebus.consumers.worker.clean import describe

FETCH_S: Final = 3.0


class UnreadableSpan(NamedTuple):
    """Unreadable messages of a partition, from `offset` up to, and without, `behind`."""

    topic: str
    partition: int
    offset: int
    behind: int
    why: str

    @property
    def reason(self) -> str:
        """The reason of their dead letter. Their bytes stay in the topic as long as it keeps them."""
        return f"{self.why}: {self.behind - self.offset} messages from here on can't be read"


def is_unreadable(error: BaseException) -> bool:
    """Whether a message is to blame for the error, and not the connection."""
    if isinstance(error, KafkaError):
        return isinstance(error, CorruptRecordException)
    return isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError)


def where(consumer: AIOKafkaConsumer) -> TopicPartition | None:
    """The partition whose messages could not be parsed just now. The driver has consumed those before it, so it is the
    first one left."""
    for partition, found in consumer._fetcher._records.items():
        if hasattr(found, "_partition_records"):
            return partition
    return None


async def stepped_over(
    consumer: AIOKafkaConsumer, screen: BatchScreen, partition: TopicPartition, at: int, error: BaseException
) -> UnreadableSpan:
    """Step over the message at this offset, and what is behind it in its batch; returns what was stepped over."""
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
    return UnreadableSpan(partition.topic, partition.partition, at, behind, screen.why(partition, at, behind) or why)
