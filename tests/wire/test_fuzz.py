"""Whatever bytes arrive: a record, an event or a node's row of this format, or what says that it is none."""

from __future__ import annotations

import struct
from contextlib import suppress
from zlib import crc32

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cachebus.core.ports import About, NodeRow
from cachebus.l2.replies import BOUND_MAX_MS, node_row, row_rest
from cachebus.wire import event as events
from cachebus.wire import record as records
from cachebus.wire.event import CorruptEvent, WritePart
from cachebus.wire.record import CorruptRecord, Record

NAME = "acme:doc:7"
u64 = st.integers(0, 2**64 - 1)
epochs = st.binary(min_size=16, max_size=16)
texts = st.lists(st.text(max_size=20), max_size=5)
record_bytes = st.builds(
    lambda flags, codec, payload, **rest: Record(flags, codec, payload, **rest).encode(NAME),
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=50),
    created_ms=u64,
    soft_ms=u64,
    expires_ms=u64,
    tags=texts,
    more=st.binary(max_size=20),
    epoch=epochs,
    seq=u64,
    version=st.binary(min_size=4, max_size=4),
)
parts = st.lists(st.builds(WritePart, texts, texts, st.text(max_size=20), st.text(max_size=20), st.text(max_size=20)))
buckets = st.sampled_from(["--", "**", "00", "ff", "a1"])


def event_of(
    epoch: bytes, seq: int, us: int, made: list[WritePart], probe: bool, left_out: bool, bucket: str, low: int
) -> bytes:
    body = events.encode_body(made, probe=probe)
    return events.EventHeader(epoch, seq, us, left_out, events.LowWatermark(bucket, low)).encode(body) + body


event_bytes = st.builds(event_of, epochs, u64, u64, parts, st.booleans(), st.booleans(), buckets, u64)
packed: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.binary() | st.floats(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """A whole one cut off, lengthened, or with some bytes changed."""
    data = bytearray(draw(whole))
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=4)):
        data[at] = byte
    return bytes(data[: draw(st.integers(0, len(data)))]) + draw(st.binary(max_size=3))


@given(st.binary() | st.binary(max_size=100).map(lambda tail: records.MAGIC + tail) | damaged(record_bytes))
def test_a_record_or_corrupt(data: bytes) -> None:
    with suppress(CorruptRecord):
        record = records.parse(data)
        whole = record.encode(NAME)
        assert whole[:36] + whole[40:] == data[:36] + data[40:], "nothing is read from it that it does not say"
        assert record.not_found in (True, False)


@given(record_bytes)
def test_a_record_comes_back_whole(data: bytes) -> None:
    assert records.decode(data, NAME).encode(NAME) == data


@given(record_bytes, st.data())
def test_a_record_cut_off_in_head_or_tags_is_corrupt(data: bytes, draw: st.DataObject) -> None:
    payload = len(records.decode(data, NAME).payload)
    cut = draw.draw(st.integers(0, len(data) - payload - 1))
    try:
        records.parse(data[:cut])
    except CorruptRecord:
        return
    raise AssertionError("it was read")


def test_a_record_cut_off_in_more_is_corrupt() -> None:
    data = Record(0, 0, b"", created_ms=0, more=b"\x81\xa1a\x01").encode(NAME)
    with suppress(CorruptRecord):
        records.parse(data[:-1])
        raise AssertionError("it was read")


@given(record_bytes, st.integers(0, 10**6), st.integers(1, 255))
def test_a_record_with_a_changed_byte_is_corrupt(data: bytes, where: int, by: int) -> None:
    """But for one of the epoch, which makes it one of another epoch."""
    at = where % len(data)
    changed = data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]
    try:
        found = records.decode(changed, NAME)
    except CorruptRecord:
        return
    assert 4 <= at < 20
    assert found.epoch != data[4:20]


@given(record_bytes, st.text(max_size=30))
def test_a_record_is_its_keys_own(data: bytes, name: str) -> None:
    if name != NAME:
        with suppress(CorruptRecord):
            records.decode(data, name)
            raise AssertionError("it was read")


def said(event: events.Event) -> list[str]:
    """All text in it, which must be text."""
    found = [event.low.bucket, *event.keys, *event.scopes, event.origin]
    for part in event.parts:
        found += [*part.keys, *part.scopes, part.origin, part.reason, part.trace]
    return found


@given(st.binary() | st.binary(max_size=100).map(lambda tail: events.MAGIC + tail) | damaged(event_bytes))
def test_an_event_or_corrupt(data: bytes) -> None:
    with suppress(CorruptEvent):
        event = events.decode(data)
        assert all(isinstance(text, str) for text in said(event))
        assert event.asks_for_probe in (True, False)


def with_crc(body: bytes) -> bytes:
    """An event whose header's check and CRC are right, whatever its body is."""
    return events.encode(b"0" * 16, 1, 0, struct.pack(">I", crc32(body)) + body)


@given(st.binary() | packed.map(msgspec.msgpack.encode))
def test_a_body_with_the_right_crc_is_an_event_or_corrupt(body: bytes) -> None:
    with suppress(CorruptEvent):
        event = events.decode(with_crc(body))
        assert all(isinstance(text, str) for text in said(event))
        assert event.asks_for_probe in (True, False)


def test_a_body_nested_deeply_is_corrupt() -> None:
    for nested in (b"\x91" * 100_000, b"\x81\xa0" * 100_000, b"\x92\x90\x81\xa0" + b"\x91" * 100_000):
        with suppress(CorruptEvent):
            events.decode(with_crc(nested))
            raise AssertionError("it was read")


@given(event_bytes)
def test_an_event_comes_back_whole(data: bytes) -> None:
    event = events.decode(data)
    made, probe = list(event.parts), event.asks_for_probe
    again = event_of(event.epoch, event.seq, event.published_us, made, probe, event.left_out, *event.low)
    assert again == data


@given(event_bytes, st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_byte_is_corrupt(data: bytes, where: int, by: int) -> None:
    """CRC-32 finds any change of up to 32 bits in a row; what is before it lies under the header's check."""
    at = where % len(data)
    changed = data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]
    try:
        events.decode(changed)
    except CorruptEvent:
        return
    raise AssertionError("it was read")


abouts = st.builds(
    About,
    st.integers(0, BOUND_MAX_MS),
    st.integers(0, 2**63),
    st.dictionaries(st.text(max_size=9), st.integers(0, 9), max_size=3).map(lambda more: tuple(more.items())),
)
line_bytes = st.builds(
    lambda applied, at_us, about: (
        b"\x86\xa7applied\xcf"
        + struct.pack(">Q", applied)
        + b"\xa5epoch\xb00123456789abcdef\xa5at_us\xcf"
        + struct.pack(">Q", at_us)
        + row_rest(about)
    ),
    u64,
    u64,
    abouts,
)


@given(st.binary() | packed.map(msgspec.msgpack.encode) | damaged(line_bytes))
def test_a_row_or_one_that_has_applied_nothing(data: bytes) -> None:
    row = node_row(data)
    assert isinstance(row.applied, int)
    assert isinstance(row.epoch, bytes)
    assert isinstance(row.about.bound_ms, int)


@given(u64, u64, abouts)
def test_a_row_comes_back_whole(applied: int, at_us: int, about: About) -> None:
    data = b"\x86\xa7applied\xcf" + struct.pack(">Q", applied) + b"\xa5epoch\xb00123456789abcdef\xa5at_us\xcf"
    row = node_row(data + struct.pack(">Q", at_us) + row_rest(about))
    assert row == NodeRow(applied, b"0123456789abcdef", at_us, about)
