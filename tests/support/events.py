"""Events made by hand."""

from __future__ import annotations

from cachebus.wire import event as events


def event_of(epoch: bytes, seq: int) -> bytes:
    """The bytes of an event at this place in a history, which replaces nothing."""
    return events.encode(epoch, seq, 1_700_000_000_123_456, events.encode_body([events.WritePart([], [], "somebody")]))
