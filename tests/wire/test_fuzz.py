"""Whatever bytes arrive: a record or an event of this format, or the one error that says it is none."""

from __future__ import annotations

from contextlib import suppress
from zlib import crc32

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from cachebus import event as events
from cachebus import record as records
from cachebus.event import CorruptEvent
from cachebus.record import CorruptRecord, Record

u64 = st.integers(0, 2**64 - 1)
epochs = st.binary(min_size=16, max_size=16)
texts = st.lists(st.text(max_size=20), max_size=5)
record_bytes = st.builds(
    lambda flags, codec, payload, **rest: Record(flags, codec, payload, **rest).encode(),
    st.integers(0, 255), st.integers(0, 255), st.binary(max_size=50), created_ms=u64, soft_ms=u64, expires_ms=u64,
    tags=texts, epoch=epochs, seq=u64, version=st.binary(min_size=8, max_size=8),
)  # fmt: skip
event_bytes = st.builds(
    lambda epoch, seq, floor, us, keys, names, origin: events.encode(
        epoch, seq, floor, us, events.encode_body(keys, names, origin)
    ),
    epochs, u64, u64, u64, texts, texts, st.text(max_size=20),
)  # fmt: skip
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
        record = records.decode(data)
        assert record.encode() == data, "nothing is read from it that it does not say"
        assert record.not_found in (True, False)


@given(record_bytes)
def test_a_record_comes_back_whole(data: bytes) -> None:
    assert records.decode(data).encode() == data


@given(record_bytes, st.data())
def test_a_record_cut_off_in_head_or_tags_is_corrupt(data: bytes, draw: st.DataObject) -> None:
    payload = len(records.decode(data).payload)
    cut = draw.draw(st.integers(0, len(data) - payload - 1))
    try:
        records.decode(data[:cut])
    except CorruptRecord:
        return
    raise AssertionError("it was read")


@given(st.binary() | st.binary(max_size=100).map(lambda tail: events.MAGIC + tail) | damaged(event_bytes))
def test_an_event_or_corrupt(data: bytes) -> None:
    with suppress(CorruptEvent):
        event = events.decode(data)
        assert all(isinstance(name, str) for name in (*event.keys, *event.names, event.origin))


def with_crc(body: bytes) -> bytes:
    """An event whose CRC is right, whatever its body is."""
    return events.encode(b"0" * 16, 1, 0, 0, events.CRC.pack(crc32(body)) + body)


@given(st.binary() | packed.map(msgspec.msgpack.encode))
def test_a_body_with_the_right_crc_is_an_event_or_corrupt(body: bytes) -> None:
    with suppress(CorruptEvent):
        event = events.decode(with_crc(body))
        assert all(isinstance(name, str) for name in (*event.keys, *event.names, event.origin))


def test_a_body_nested_deeply_is_corrupt() -> None:
    for nested in (b"\x91" * 100_000, b"\x81\xa0" * 100_000):
        with suppress(CorruptEvent):
            events.decode(with_crc(nested))
            raise AssertionError("it was read")


@given(event_bytes)
def test_an_event_comes_back_whole(data: bytes) -> None:
    event = events.decode(data)
    body = events.encode_body(event.keys, event.names, event.origin)
    assert events.encode(event.epoch, event.seq, event.floor, event.published_us, body) == data


@given(event_bytes, st.integers(0, 10**6), st.integers(1, 255))
def test_a_changed_body_is_corrupt(data: bytes, where: int, by: int) -> None:
    """CRC-32 finds any change of up to 32 bits in a row."""
    at = events.HEAD.size - 4 + where % (len(data) - events.HEAD.size + 4)
    changed = data[:at] + bytes([data[at] ^ by]) + data[at + 1 :]
    try:
        events.decode(changed)
    except CorruptEvent:
        return
    raise AssertionError("it was read")
