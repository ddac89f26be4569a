"""Compressed batches: what they may inflate to, and that no more is ever made."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress
from typing import Any

import cramjam
import pytest
from aiokafka import codec as codecs
from aiokafka.record.default_records import DefaultRecordBatch
from hypothesis import given
from hypothesis import strategies as st

from cachebus.bus.kafka.inflating import (
    GZIP,
    LEAST_BLOCK_BYTES,
    LZ4,
    SNAPPY,
    ZSTD,
    UnreadableBatch,
    batches_in,
    codec_of,
    inflated,
    plain,
    spoiled,
)
from tests.support.kafka_batches import CODECS, batch_of, values_in, with_body

MOST_BYTES = 1_000_000
COMPRESS: dict[int, Any] = {
    GZIP: codecs.gzip_encode,
    SNAPPY: codecs.snappy_encode,
    LZ4: codecs.lz4_encode,
    ZSTD: codecs.zstd_encode,
}


@CODECS
def test_a_batch_reads_as_what_was_compressed(codec: int) -> None:
    values = [b"x" * size for size in (0, 1, 100_000)]
    raw = memoryview(batch_of(codec, *values))
    assert codec_of(raw) == codec
    assert codec_of(memoryview(plain(raw))) == 0
    assert values_in(plain(raw)) == values


@CODECS
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MOST_BYTES - 1, MOST_BYTES])
def test_up_to_the_bound_all_is_inflated(codec: int, size: int) -> None:
    assert inflated(with_body(codec, COMPRESS[codec](b"a" * size)), MOST_BYTES) == b"a" * size


@CODECS
def test_what_would_be_more_is_never_made(codec: int) -> None:
    bomb = with_body(codec, COMPRESS[codec](bytes(64 * MOST_BYTES)))
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableBatch, match=f"more than {MOST_BYTES} bytes"):
            inflated(bomb, MOST_BYTES)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * MOST_BYTES
    with pytest.raises(UnreadableBatch):
        inflated(with_body(codec, COMPRESS[codec](b"a" * (MOST_BYTES + 1))), MOST_BYTES)


def test_a_snappy_batch_without_blocks_says_its_size_and_is_believed_no_further() -> None:
    whole = cramjam.snappy.compress_raw(b"a" * 1000)
    assert inflated(with_body(SNAPPY, bytes(whole)), MOST_BYTES) == b"a" * 1000
    with pytest.raises(UnreadableBatch, match="more than"):
        inflated(with_body(SNAPPY, bytes(cramjam.snappy.compress_raw(bytes(MOST_BYTES + 1)))), MOST_BYTES)
    with pytest.raises(UnreadableBatch, match="damaged"):
        inflated(with_body(SNAPPY, b"\xff\xff\x03"), MOST_BYTES)


def test_the_smallest_blocks_of_snappy_have_a_bound_in_number() -> None:
    block = bytes(cramjam.snappy.compress_raw(b"a"))
    head = codecs.snappy_encode(b"")[:16]

    def blocks(count: int) -> memoryview:
        return with_body(SNAPPY, head + (struct.pack(">i", len(block)) + block) * count)

    most = MOST_BYTES // LEAST_BLOCK_BYTES
    assert inflated(blocks(most), MOST_BYTES) == b"a" * most
    with pytest.raises(UnreadableBatch):
        inflated(blocks(2 * most), MOST_BYTES)


@pytest.mark.parametrize("length", [0, -1, -4, 2**31 - 1])
def test_a_block_of_snappy_that_is_cut(length: int) -> None:
    head = codecs.snappy_encode(b"")[:16]
    with pytest.raises(UnreadableBatch, match="cut"):
        inflated(with_body(SNAPPY, head + struct.pack(">i", length) + b"abcd"), MOST_BYTES)


def test_several_files_of_gzip_in_one_batch() -> None:
    with pytest.raises(UnreadableBatch, match="not one file"):
        inflated(with_body(GZIP, codecs.gzip_encode(b"a") * 2), MOST_BYTES)


@CODECS
def test_a_batch_that_is_cut(codec: int) -> None:
    body = COMPRESS[codec](b"abc" * 100)
    with pytest.raises(UnreadableBatch):
        inflated(with_body(codec, body[:-9]), MOST_BYTES)


def test_what_is_compressed_otherwise() -> None:
    with pytest.raises(UnreadableBatch, match="codec 7"):
        inflated(with_body(7, b"x"), MOST_BYTES)
    old = bytearray(with_body(0, b"x"))
    old[16:18] = bytes([1, GZIP])
    assert codec_of(memoryview(old)) == GZIP
    with pytest.raises(UnreadableBatch, match="old format"):
        inflated(memoryview(old), MOST_BYTES)


def test_whole_batches_of_what_was_fetched() -> None:
    one, other = batch_of(0, b"a"), batch_of(GZIP, b"b")
    for cut in range(len(other)):
        assert [bytes(raw) for raw in batches_in(one + other[:cut])] == [one]
    assert [bytes(raw) for raw in batches_in(one + other)] == [one, other]
    assert list(batches_in(b"")) == []


@given(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=80))
def test_lengths_that_lie_end_it(length: int, behind: bytes) -> None:
    data = struct.pack(">qi", 0, length) + behind
    try:
        assert len(list(batches_in(data))) <= 2
    except UnreadableBatch as error:
        assert "damaged" in str(error)


@CODECS
@given(body=st.binary(max_size=200))
def test_whatever_is_said_to_be_compressed_is_read_or_refused(codec: int, body: bytes) -> None:
    with suppress(UnreadableBatch):
        assert len(inflated(with_body(codec, body), 10_000)) <= 10_000


def test_a_spoiled_batch_is_refused_by_its_check() -> None:
    raw = memoryview(batch_of(GZIP, b"a"))
    assert DefaultRecordBatch(bytes(raw)).validate_crc()
    other = DefaultRecordBatch(spoiled(raw))
    assert not other.validate_crc()
    assert other.next_offset == DefaultRecordBatch(bytes(raw)).next_offset
