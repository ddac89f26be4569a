"""Records in memory; their bytes are pinned in tests/wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus.errors import NotSerializable
from cachebus.policy import Policy, Rules
from cachebus.wire import record as records
from cachebus.wire.packing import Given, pack
from cachebus.wire.record import FLAG_NOT_FOUND, HEADER, MAGIC, VERSION_BYTES, CorruptRecord, Record
from tests.support.flips import flipped

NAME = "acme:doc:7"

u64 = st.integers(0, 2**64 - 1)
fields = st.fixed_dictionaries(
    {
        "created_ms": u64,
        "soft_ms": u64,
        "expires_ms": u64,
        "seq": u64,
        "tags": st.lists(st.text(max_size=30), max_size=255),
        "more": st.binary(max_size=100),
        "epoch": st.binary(min_size=16, max_size=16),
        "version": st.binary(min_size=4, max_size=4),
    }
)


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=100), fields)
def test_it_comes_back_as_it_went(flags: int, codec: int, payload: bytes, rest: dict[str, object]) -> None:
    back = records.decode(Record(flags, codec, payload, **rest).encode(NAME), NAME)  # type: ignore[arg-type]
    assert (back.flags, back.codec, back.payload) == (flags, codec, payload)
    assert back.not_found is bool(flags & FLAG_NOT_FOUND)
    for name, value in rest.items():
        is_ = getattr(back, name)
        assert (list(is_) if name == "tags" else is_) == value


def test_versions_differ() -> None:
    versions = {Record(0, 0, b"", created_ms=0).version for _ in range(1000)}
    assert len(versions) > 990, "random, of four bytes"
    assert {len(version) for version in versions} == {VERSION_BYTES}


def test_a_record_without_tags_makes_no_list() -> None:
    """Most have none, and they are made at every hit in L2."""
    assert records.decode(Record(0, 0, b"x", created_ms=0).encode(NAME), NAME).tags == ()


@pytest.mark.parametrize("data", [b"", MAGIC, MAGIC + bytes(HEADER.size - 3), b"\xcb\x01" + bytes(HEADER.size)])
def test_these_are_none(data: bytes) -> None:
    with pytest.raises(CorruptRecord):
        records.decode(data, NAME)


@pytest.mark.parametrize("tail", [b"", b"\x00", b"\x00\x02a", b"\x00\x01\xff", b"\xff\xff" + b"a" * 65534])
def test_tags_that_are_none_are_corrupt(tail: bytes) -> None:
    header = Record(0, 0, b"", created_ms=0).encode(NAME)[:-3] + b"\x01\x00\x00"
    with pytest.raises(CorruptRecord, match="tag"):
        records.parse(header + tail)


@pytest.mark.parametrize("tags", [(), ("t",)])
def test_one_cut_off_in_more_is_corrupt(tags: tuple[str, ...]) -> None:
    data = Record(0, 0, b"", created_ms=0, tags=tags, more=b"\x81\xa1a\x01").encode(NAME)
    assert records.decode(data, NAME).more == b"\x81\xa1a\x01"
    for missing in (1, 4):
        with pytest.raises(CorruptRecord, match="cut off"):
            records.parse(data[:-missing])


def test_what_more_says_is_no_part_of_the_payload() -> None:
    """A reader that knows nothing of it passes over it."""
    back = records.decode(Record(0, 0, b"payload", created_ms=0, tags=["t"], more=b"\x80").encode(NAME), NAME)
    assert (back.tags, back.more, back.payload) == (["t"], b"\x80", b"payload")


@pytest.mark.parametrize("tags", [(), ("t",)])
@pytest.mark.parametrize("size", [7, 5000])
def test_with_any_bit_flipped_it_is_none(tags: tuple[str, ...], size: int) -> None:
    """But for its epoch, which is then another one."""
    data = Record(1, 1, b"p" * size, created_ms=7, expires_ms=2**40, tags=tags, epoch=b"e" * 16, seq=2**33).encode(NAME)
    for bit in [*range(8 * 4), *range(8 * 20, 8 * len(data))]:
        with pytest.raises(CorruptRecord):
            records.decode(flipped(data, bit), NAME)


@pytest.mark.parametrize("other", ["acme:doc:8", "evil:doc:7", "", "acme:doc:7 "])
def test_under_another_key_it_is_none(other: str) -> None:
    """What answers another question: the key is no part of the bytes, but of the check."""
    data = Record(0, 1, b"p", created_ms=1).encode(NAME)
    assert len(data) == len(Record(0, 1, b"p", created_ms=1).encode(other)) == HEADER.size + 1
    with pytest.raises(CorruptRecord, match="of another key"):
        records.decode(data, other)


def test_corrupt_is_a_value_error() -> None:
    assert issubclass(CorruptRecord, ValueError)


@pytest.mark.parametrize("tags", [[str(number) for number in range(256)], ["t" * 65_536], ["\ud800"]])
def test_what_fits_in_no_record_is_refused_before_l2_is_asked(tags: list[str]) -> None:
    with pytest.raises(NotSerializable, match="fit in no record"):
        pack("value", Rules("doc", Policy()), 1.0, Given(tags=tags))


def test_no_two_bits_of_what_the_scripts_set_cancel() -> None:
    """Flags, codec, seq and hard expiry are laid over the CRC: every pair of flipped bits of theirs is seen."""
    record = Record(0, 1, b"payload", created_ms=1, expires_ms=1_700_003_600_123, epoch=b"0" * 16, seq=258)
    data = record.encode("k")
    places = [*range(16, 32), *range(160, 288)]
    for first in places:
        for second in places:
            if first < second:
                changed = bytearray(data)
                changed[first // 8] ^= 1 << first % 8
                changed[second // 8] ^= 1 << second % 8
                with pytest.raises(CorruptRecord):
                    records.decode(bytes(changed), "k")
