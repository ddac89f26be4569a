"""Looks at what a consumer has fetched before the driver does, which inflates compressed messages without a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition

from cachebus.bus.kafka.inflating import UnreadableBatch, batches_in, codec_of, inflated, offset_of, spoiled

MOST_INFLATED_BYTES: Final = 64 << 20
"""The most that a batch may inflate to, and all that are taken of a broker at once. Producers send a megabyte, unless
they are told otherwise."""
FETCH: Final = 1


class BatchScreen:
    """Stands between a consumer and its brokers. A batch that may not be inflated, or can't be, is spoiled, so that the
    driver refuses it by its check; the worker steps over it then."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._send = consumer._client.send
        self._most_bytes = MOST_INFLATED_BYTES
        self._refused: dict[TopicPartition, tuple[int, str]] = {}
        consumer._client.send = self.send

    def why(self, partition: TopicPartition, begin: int, end: int) -> str | None:
        """Why the batch that was spoiled last between these offsets was; None where there is none."""
        at, why = self._refused.get(partition, (-1, None))
        return why if begin <= at < end else None

    async def send(self, *where: Any, **how: Any) -> Any:
        """As the driver's client sends a request."""
        answer = await self._send(*where, **how)
        if getattr(answer, "API_KEY", None) == FETCH:
            answer.topics = await self._screened(answer.topics)
        return answer

    async def _screened(self, topics: Any) -> list[Any]:
        found, left_bytes = list[Any](), self._most_bytes
        for topic, partitions in topics:
            parts = list[Any]()
            for partition, *more, data in partitions:
                passed, left_bytes = await self._passed(TopicPartition(topic, partition), data or b"", left_bytes)
                parts.append((partition, *more, passed))
            found.append((topic, parts))
        return found

    async def _passed(self, partition: TopicPartition, data: bytes, left_bytes: int) -> tuple[bytes, int]:
        """The batches that the driver may have, and how much may still be inflated. It fetches the others again."""
        if not any(map(codec_of, _batches_in(data))):
            return data, left_bytes
        passed, begin = bytearray(), 0
        for raw in _batches_in(data):
            await asyncio.sleep(0)
            try:
                size_bytes = len(inflated(raw, self._most_bytes)) if codec_of(raw) else 0
            except UnreadableBatch as error:
                self._refused[partition] = (offset_of(raw), str(error))
                passed += spoiled(raw)
            else:
                if size_bytes > left_bytes:
                    return bytes(passed), 0
                left_bytes -= size_bytes
                passed += raw
            begin += len(raw)
        return bytes(passed) + data[begin:], left_bytes


def _batches_in(data: bytes) -> Iterator[memoryview]:
    """Up to one whose length lies: the driver says what it is."""
    with suppress(UnreadableBatch):
        yield from batches_in(data)
