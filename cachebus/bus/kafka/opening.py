"""Batches as the driver reads them, which is given none that is compressed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cachebus.bus.kafka.inflating import UnreadableBatch, codec_of, plain


def opened(raw: memoryview) -> tuple[int, Iterator[Any]]:
    """The offset behind a batch, and its messages: they raise anything where they can't be read. `UnreadableBatch` for
    a batch that is damaged as a whole."""
    batch = _batch(raw)
    if not batch.validate_crc():
        raise UnreadableBatch("a batch is damaged")
    return batch.next_offset, _messages(batch, raw)


def _messages(batch: Any, raw: memoryview) -> Iterator[Any]:
    if not batch.is_control_batch:
        yield from _batch(plain(raw)) if codec_of(raw) else batch


def _batch(raw: bytes | memoryview) -> Any:
    from aiokafka.record.memory_records import MemoryRecords

    return MemoryRecords(bytes(raw)).next_batch()
