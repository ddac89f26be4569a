"""One bit of an event changes on its way: what is read is the event, or none; never another one."""

from __future__ import annotations

import pytest

from cachebus.wire import event as events
from cachebus.wire.event import WritePart
from tests.support.flips import flipped

EPOCH = b"0123456789abcdef"
KEY = "acme\x1fdoc\x1f7\x1e\x1e\x1e"


def event_of(parts: list[WritePart], *, probe: bool = False, left_out: bool = False, bucket: str = "--") -> bytes:
    body = events.encode_body(parts, probe=probe)
    low = events.LowWatermark(bucket, 0 if bucket == "--" else 7)
    return events.EventHeader(EPOCH, 258, 1_700_000_000_123_456, left_out, low).encode(body) + body


EVENTS = {
    "a key": event_of([WritePart([KEY], [], "node-1")]),
    "scopes and tags": event_of([WritePart([], ["D\x1facme\x1fdoc", "I\x1facme\x1fdoc\x1f7", "G\x1facme\x1fplan"])]),
    "ids left out": event_of([WritePart([KEY], ["I\x1facme\x1fdoc\x1f7"], "node-1")], left_out=True),
    "a low watermark": event_of([WritePart([], ["N"], "node-1")], bucket="**"),
    "two parts": event_of(
        [WritePart([KEY], [], "node-1"), WritePart([], ["T\x1facme"], "", "why", "trace")], probe=True
    ),
    "nothing": event_of([]),
}


@pytest.mark.parametrize("data", EVENTS.values(), ids=EVENTS.keys())
def test_an_event_with_any_one_bit_flipped_is_none(data: bytes) -> None:
    events.decode(data)
    for bit in range(8 * len(data)):
        damaged = flipped(data, bit)
        if bit < 8 * len(events.MAGIC):
            assert damaged[:3] not in (events.MAGIC, events.WAKE), "its kind is one that nobody knows"
        with pytest.raises(events.CorruptEvent):
            events.decode(damaged)


@pytest.mark.parametrize("data", EVENTS.values(), ids=EVENTS.keys())
def test_an_event_with_two_neighbouring_bits_flipped_is_none(data: bytes) -> None:
    for bit in range(8 * len(data) - 1):
        with pytest.raises(events.CorruptEvent):
            events.decode(flipped(flipped(data, bit), bit + 1))
