"""Events in memory; their bytes are pinned in tests/wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import event as events
from cachebus.event import CorruptEvent
from cachebus.keys import Keyspace

u64 = st.integers(0, 2**64 - 1)
names = st.lists(st.text(max_size=30), max_size=20)
space = Keyspace(1)


@given(st.binary(min_size=16, max_size=16), u64, u64, u64, names, names, st.text(max_size=30))
def test_it_comes_back_as_it_went(
    epoch: bytes, seq: int, floor: int, published_us: int, keys: list[str], marks: list[str], origin: str
) -> None:
    event = events.decode(events.encode(epoch, seq, floor, published_us, events.encode_body(keys, marks, origin)))
    assert (event.epoch, event.seq, event.floor, event.published_us) == (epoch, seq, floor, published_us)
    assert (event.keys, event.names, event.origin) == (keys, marks, origin)


def test_any_sequence_of_names_will_do() -> None:
    body = events.encode_body(("a",), ("b", "c"), "")
    assert body == events.encode_body(["a"], ["b", "c"], "")


def test_keys_and_scopes_of_a_real_invalidation() -> None:
    keys = [space.key("doc", "größe:1", "acme", agent_id=7).l1, space.key("system", 1, None).l1]
    scopes = [space.scope("acme")[1], space.tags("acme", ["plan:pro"])[1][0]]
    event = events.decode(events.encode(b"f" * 16, 2, 0, 0, events.encode_body(keys, scopes, "host-1")))
    assert (event.keys, event.names) == (keys, scopes)


GOOD = events.encode(b"f" * 16, 2, 0, 0, events.encode_body(["a"], [], ""))


@pytest.mark.parametrize("size", [0, 2, 3, events.HEAD.size - 1, events.HEAD.size, len(GOOD) - 1])
def test_one_cut_off_is_corrupt(size: int) -> None:
    with pytest.raises(CorruptEvent):
        events.decode(GOOD[:size])


@pytest.mark.parametrize("data", [GOOD + b"\x00", b"CB2" + GOOD[3:], events.WAKE + GOOD[3:], GOOD[:-1] + b"\x01"])
def test_these_are_none(data: bytes) -> None:
    with pytest.raises(CorruptEvent):
        events.decode(data)


def test_corrupt_is_a_value_error() -> None:
    assert issubclass(CorruptEvent, ValueError)
