"""Events in memory; their bytes are pinned in tests/wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.keys.key import Keyspace
from cachebus.wire import event as events
from cachebus.wire.event import CorruptEvent, Event, EventHeader, LowWatermark, WritePart

u64 = st.integers(0, 2**64 - 1)
names = st.lists(st.text(max_size=30), max_size=20)
text = st.text(max_size=30)
parts = st.lists(st.builds(WritePart, names, names, text, text, text), max_size=5)
epochs = st.binary(min_size=16, max_size=16)
buckets = st.sampled_from(["--", "**", "00", "a7"])
space = Keyspace(1)


def fields(event: Event) -> tuple[object, ...]:
    made = [(part.keys, part.scopes, part.origin, part.reason, part.trace) for part in event.parts]
    return (
        event.epoch,
        event.seq,
        event.published_us,
        made,
        event.left_out,
        event.low,
        event.asks_for_probe,
        list(event.keys),
        list(event.scopes),
        event.origin,
    )


@given(epochs, u64, u64, parts, st.booleans(), st.booleans(), buckets, u64)
def test_it_comes_back_as_it_went(
    epoch: bytes, seq: int, us: int, made: list[WritePart], probe: bool, left_out: bool, bucket: str, low: int
) -> None:
    body = events.encode_body(made, probe=probe)
    stands = EventHeader(epoch, seq, us, left_out, LowWatermark(bucket, low))
    header = stands.encode(body)
    assert len(header) == events.HEADER_BYTES
    event = events.decode(header + body)
    assert fields(event)[:3] == (epoch, seq, us)
    want = Event(stands, made, {"probe": True} if probe else None)
    assert fields(event) == fields(want)
    assert events.position_of(header + body) == (epoch, seq)


@given(epochs, u64, u64, parts, st.booleans(), buckets, u64)
def test_a_head_with_its_parts_is_what_others_read(
    epoch: bytes, seq: int, us: int, made: list[WritePart], left_out: bool, bucket: str, low: int
) -> None:
    """The node that has written builds the event of the script's reply, and nobody has to decode the body."""
    body = events.encode_body(made)
    header = EventHeader(epoch, seq, us, left_out, LowWatermark(bucket, low)).encode(body)
    assert fields(events.with_header(header, body, made)) == fields(events.decode(header + body))


@given(epochs, u64, u64, parts)
def test_a_plain_one_raises_no_watermark(epoch: bytes, seq: int, us: int, made: list[WritePart]) -> None:
    body = events.encode_body(made)
    assert events.encode(epoch, seq, us, body) == EventHeader(epoch, seq, us).encode(body) + body
    event = events.decode(events.encode(epoch, seq, us, body))
    assert (event.low, event.left_out) == (events.NONE_RAISED, False)


def test_any_sequence_of_names_will_do() -> None:
    assert events.encode_body([WritePart(("a",), ("b", "c"))]) == events.encode_body((WritePart(["a"], ["b", "c"]),))  # type: ignore[arg-type]


def test_keys_and_scopes_of_a_real_invalidation() -> None:
    keys = [space.key("doc", "größe:1", "acme", agent_id=7).l1, space.key("system", 1, None).l1]
    scopes = [space.scope("acme")[1], space.tags("acme", ["plan:pro"])[1][0]]
    body = events.encode_body([WritePart(keys, scopes, "host-1")])
    event = events.decode(events.encode(b"f" * 16, 2, 0, body))
    assert (event.keys, event.scopes, event.origin) == (keys, scopes, "host-1")


def test_of_several_parts_nobody_alone_is_the_origin() -> None:
    one, other = WritePart(["a"], ["b"], "n"), WritePart(["c"], [], "n")
    event = Event(EventHeader(b"f" * 16, 2, 0), [one, other])
    assert (event.keys, event.scopes, event.origin) == (["a", "c"], ["b"], "")


GOOD = events.encode(b"f" * 16, 2, 0, events.encode_body([WritePart(["a"], [])]))
HEADER_SIZE = events.HEADER_BYTES + 4


@pytest.mark.parametrize("size", [0, 2, 3, events.HEADER_BYTES, HEADER_SIZE - 1, HEADER_SIZE, len(GOOD) - 1])
def test_one_cut_off_is_corrupt(size: int) -> None:
    with pytest.raises(CorruptEvent):
        events.decode(GOOD[:size])
    epoch, seq = events.position_of(GOOD[:size])
    assert len(epoch) <= 16
    assert seq <= 2


@pytest.mark.parametrize("data", [GOOD + b"\x00", b"CB1" + GOOD[3:], events.WAKE + GOOD[3:], GOOD[:-1] + b"\x01"])
def test_these_are_none(data: bytes) -> None:
    with pytest.raises(CorruptEvent):
        events.decode(data)


def test_a_head_whose_check_is_anothers_is_damaged() -> None:
    """The seq alone is another: whoever believed it would take the next event for known."""
    other = events.encode(b"f" * 16, 3, 0, events.encode_body([WritePart(["a"], [])]))
    with pytest.raises(CorruptEvent, match="header"):
        events.decode(GOOD[:20] + other[20:28] + GOOD[28:])


def test_corrupt_is_a_value_error() -> None:
    assert issubclass(CorruptEvent, ValueError)
