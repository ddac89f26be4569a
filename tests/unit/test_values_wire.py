"""The codec's bytes: codecs beside msgpack, compression, what damage does, and the format that must not change."""

# ruff: noqa: DTZ001 (naive datetimes are meant)

from __future__ import annotations

import uuid
import zlib
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cachebus.errors import NotSerializable
from cachebus.values import F32, F32_ARRAY, MSGPACK, RAW, ZLIB, CorruptValue, decode, encode
from cachebus.values.codec import INFLATED_MAX_BYTES
from tests.support.roundtrip import anything, back, quick, same

# -- other codecs, compression ----------------------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(width=32)))
def test_f32_of_a_list(floats: list[float]) -> None:
    byte, payload = encode(floats, "f32")
    assert (byte, len(payload)) == (F32, 4 * len(floats))
    assert same(decode(byte, payload), floats)


def test_f32_rounds_to_float32_and_takes_ints() -> None:
    assert back((0.1, 2), "f32") == [0.10000000149011612, 2.0]


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        ("f32", {"a": 1}, "value is of type dict, and codec f32 takes a list of numbers or a numpy array"),
        ("f32", None, "value is of type NoneType"),
        ("f32", [1.0, "x"], r"value\[1\] is of type str, and codec f32 takes numbers only"),
        ("f32", [[1.0]], r"value\[0\] is of type list"),
        ("f32", [1e39], "too large for codec f32"),
        ("raw", "text", "value is of type str, and codec raw takes bytes only"),
    ],
)
def test_what_other_codecs_refuse(codec: str, value: object, message: str) -> None:
    with pytest.raises(NotSerializable, match=message):
        encode(value, codec)


@pytest.mark.parametrize("value", [b"", b"\xff" * 9, bytearray(b"x"), memoryview(b"xy")])
def test_raw(value: bytes) -> None:
    assert encode(value, "raw") == (RAW, bytes(value))
    assert back(value, "raw") == bytes(value)


def test_compression_only_where_it_helps() -> None:
    long = "x" * 1000
    byte, payload = encode(long, compress_over_bytes=100)
    assert byte == MSGPACK | ZLIB
    assert len(payload) < 50
    assert decode(byte, payload) == long
    assert encode(long, compress_over_bytes=1003)[0] == MSGPACK
    assert encode(long, compress_over_bytes=1002)[0] == MSGPACK | ZLIB
    assert encode(bytes(range(200)), "raw", 0) == (RAW, bytes(range(200)))
    assert back([0.5] * 100, "f32", 10) == [0.5] * 100


def test_what_is_too_large_to_be_inflated_is_not_deflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachebus.values.codec.INFLATED_MAX_BYTES", 1003)
    assert encode("x" * 1000, compress_over_bytes=0)[0] == MSGPACK | ZLIB
    assert back("x" * 1000, over=0) == "x" * 1000
    assert encode("x" * 1001, compress_over_bytes=0)[0] == MSGPACK


# -- damage -----------------------------------------------------------------------------------------------------------


def survive(byte: int, payload: bytes) -> None:
    try:
        decode(byte, payload)
    except CorruptValue:
        return


codec_bytes = st.sampled_from([MSGPACK, RAW, F32, F32_ARRAY, MSGPACK | ZLIB, F32 | ZLIB, 0, 77, 255])
# Bytes that mean something: headers of maps, arrays, extensions of every number and length, and what is inside them.
HEADERS = bytes.fromhex("80 81 82 90 91 92 93 a1 c0 c4 c7 c9 cb d9 dc dd de df d4 d5 d7 d8 ff") + bytes(range(14))
pieces = st.sampled_from(
    [bytes([b]) for b in HEADERS]
    + [b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x08", b"\xcf" + b"\xff" * 8]
    + [b"\xa3<f8", b"\xa2|O", b"\xa3|V0", b"\xa72026-01", b"\xc7\x04\x07sNaN", b"\xc7\x02\x08\x81\x90"]
)


@settings(max_examples=500, deadline=None)
@given(codec_bytes, st.binary(max_size=64) | st.lists(pieces, max_size=24).map(b"".join))
@example(MSGPACK, b"\x91" * 100_000)
@example(MSGPACK, b"\xc7\x09\x09" * 30_000)
@example(MSGPACK, b"\xc7\x0e\x0a\x93\xa3<f8\x91\xcf" + b"\xff" * 8)
@example(MSGPACK, b"\xc7\x0a\x0a\x93\xa2|O\x91\x01\xc4\x01x")
@example(MSGPACK, b"\xc7\x03\x07\xff\xff\xff")
@example(MSGPACK, b"\xc7\x0f\x071e99999999999999")
@example(MSGPACK | ZLIB, zlib.compress(b"\xc0") + b"x")
@example(MSGPACK | ZLIB, zlib.compress(b"\xc0")[:-1])
def test_random_bytes_raise_corrupt_value_and_nothing_else(byte: int, payload: bytes) -> None:
    survive(byte, payload)
    if not byte & ZLIB:
        survive(byte | ZLIB, zlib.compress(payload))


@quick
@given(anything, st.integers(0, 10**6), st.integers(0, 255))
def test_one_wrong_byte(value: object, at: int, wrong: int) -> None:
    byte, payload = encode(value)
    damaged = bytearray(payload)
    damaged[at % len(damaged)] = wrong
    survive(byte, bytes(damaged))
    survive(byte, payload[: at % len(payload)])


def test_a_bomb_is_not_unpacked() -> None:
    bomb = zlib.compress(bytes(INFLATED_MAX_BYTES + 1), 9)
    with pytest.raises(CorruptValue, match="too large"):
        decode(RAW | ZLIB, bomb)


def test_every_kind_of_damage_says_so() -> None:
    with pytest.raises(CorruptValue, match="a payload of codec 1 can't be read: DecodeError"):
        decode(MSGPACK, b"\xc1")
    with pytest.raises(CorruptValue, match="extension 99 is not known"):
        decode(MSGPACK, b"\xd4\x63x")
    with pytest.raises(CorruptValue, match="codec 9 is not known"):
        decode(9, b"")
    assert issubclass(CorruptValue, ValueError)


# -- wire format ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "payload"),
    [
        ({"a": [1, -1, 0.5, None, True, b"x", "y"]}, "81a1619701ffcb3fe0000000000000c0c3c40178a179"),
        (2**64, "c70901010000000000000000"),
        (-(2**63) - 1, "c70901ff7fffffffffffffff"),
        (datetime(2026, 1, 2, 3, 4, 5, 6), "c71a02323032362d30312d30325430333a30343a30352e303030303036"),
        (datetime(2026, 1, 2, tzinfo=UTC), "c71902323032362d30312d30325430303a30303a30302b30303a3030"),
        (datetime(2026, 1, 2, fold=1), "c71402323032362d30312d30325430303a30303a303066"),
        (date(2026, 1, 2), "c70a03323032362d30312d3032"),
        (time(1, 2, 3), "d70430313a30323a3033"),
        (timedelta(-1, 2, 3), "c70c05ffffffff0000000200000003"),
        (uuid.UUID(int=1), "d80600000000000000000000000000000001"),
        (Decimal("-1.50"), "c705072d312e3530"),
        ({5}, "c703088105c0"),
        (frozenset([(1, 2)]), "c7050981920102c0"),
        ({uuid.UUID(int=1): 1}, "81d8060000000000000000000000000000000101"),
    ],
)
def test_golden_bytes(value: object, payload: str) -> None:
    assert encode(value) == (MSGPACK, bytes.fromhex(payload))


def test_golden_bytes_of_the_other_codecs() -> None:
    assert (MSGPACK, RAW, F32, F32_ARRAY, ZLIB) == (1, 2, 3, 4, 128)
    assert encode([0.5, -2.0], "f32") == (3, bytes.fromhex("0000003f000000c0"))
    assert decode(129, bytes.fromhex("7801bb995241070000be07301e")) == "x" * 100
