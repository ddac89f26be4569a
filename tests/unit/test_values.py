"""The value codec: nothing is lost, nothing is believed that is damaged, and what can't be carried is named."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
import uuid
import zlib
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cachebus import values
from cachebus.errors import ConfigError, NotSerializable
from cachebus.values import CODECS, F32, F32_ARRAY, MSGPACK, RAW, ZLIB, CorruptValue, decode, encode
from cachebus.values.codec import INFLATED_MAX_BYTES
from cachebus.values.plain import DEPTH_MAX, is_plain

quick = settings(max_examples=150, deadline=None)


def back(value: object, codec: str = "msgpack", over: int | None = None, model: Any = None) -> Any:
    return decode(*encode(value, codec, over), model)


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types all through, NaN included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
    if isinstance(a, Decimal):
        return str(a) == str(b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(k, q) and same(a[k], b[q]) for k, q in zip(a, b, strict=True))
    if isinstance(a, (datetime, time)):
        return a.isoformat() == b.isoformat() and a.fold == b.fold
    return bool(a == b)


# -- what comes back --------------------------------------------------------------------------------------------------

offsets = st.integers(-86_399, 86_399).map(lambda s: timezone(timedelta(seconds=s)))
folds = st.integers(0, 1)
datetimes = st.builds(
    lambda d, z, f: d.replace(tzinfo=z, fold=f), st.datetimes(), st.none() | st.just(UTC) | offsets, folds
)
times = st.builds(lambda t, z, f: t.replace(tzinfo=z, fold=f), st.times(), st.none() | offsets, folds)
hashables = (
    st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False)
    | st.text(max_size=20) | st.binary(max_size=20) | datetimes | st.dates() | times | st.timedeltas() | st.uuids()
    | st.decimals(allow_nan=False)
)  # fmt: skip
scalars = hashables | st.floats() | st.decimals()
keys = st.recursive(hashables, lambda k: st.tuples(k, k) | st.frozensets(k, max_size=3), max_leaves=4)
anything = st.recursive(
    scalars | st.sets(keys, max_size=4) | st.frozensets(keys, max_size=4),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
)


@quick
@given(anything)
@example([datetime(2023, 10, 29, 2, 30, fold=1), Decimal("sNaN12"), Decimal("-0E+3"), -0.0, 2**64, -(2**63) - 1])
@example({(1, (2, uuid.UUID(int=7))): {frozenset({(1,)})}, None: 1, True: 2, 1.5: 3, b"x": 4, 2**70: 5})
def test_whatever_goes_in_comes_out(value: object) -> None:
    assert same(back(value), value)


@quick
@given(plain)
def test_plain_values_are_plain_msgpack(value: object) -> None:
    byte, payload = encode(value)
    assert byte == MSGPACK
    assert payload == msgspec.msgpack.encode(value)
    assert same(back(value), value)


@pytest.mark.parametrize("fill", [1.5, 7, "s", b"b", None, True, [1], {"a": 1}])
@pytest.mark.parametrize(
    "odd", [Decimal("1.5"), uuid.UUID(int=3), {1}, 2.5, 3, "t", datetime(2026, 1, 2), [{2}], 2**64]
)
@pytest.mark.parametrize("at", [0, 20, 69])
@pytest.mark.parametrize("inside", [lambda v: v, lambda v: {"vector": v}, lambda v: [[v], 1]])
def test_one_odd_item_in_a_long_list_is_found(fill: Any, odd: Any, at: int, inside: Any) -> None:
    items = [fill] * 70
    items[at] = odd
    assert same(back(inside(items)), inside(items))


@pytest.mark.parametrize("length", [31, 32, 65_535, 65_536, 70_000])
def test_long_lists_of_floats_stay_on_the_fast_way(length: int) -> None:
    floats = [0.1, math.nan, -0.0, math.inf] * (length // 4) + [1.0] * (length % 4)
    payload = msgspec.msgpack.encode(floats)
    assert is_plain(floats, payload)
    assert same(back(floats), floats)
    assert not is_plain([*floats[:-1], Decimal(1)], msgspec.msgpack.encode([*floats[:-1], Decimal(1)]))


def test_a_list_that_packs_like_floats_but_holds_something_else() -> None:
    looks_like = [1.5] * 32 + ["\x00" * 8]  # as long as a float, but begins with another byte
    assert same(back(looks_like), looks_like)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Name(str):
    __slots__ = ()


class Share(float):
    pass


Point = namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "comes_back"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        (Point(1, 2), [1, 2]),
        ({Point(1, 2): Point(3, 4)}, {(1, 2): [3, 4]}),
        (bytearray(b"x"), b"x"),
        ([memoryview(b"x")], [b"x"]),
        ([Colour.RED, Level.HIGH], ["red", 3]),
        ({Colour.RED: Level.HIGH}, {"red": 3}),
        ({"n": Name("x"), "f": Share(0.5)}, {"n": "x", "f": 0.5}),
        (OrderedDict(a={1}), {"a": {1}}),
        (defaultdict(list, a=[(1,)]), {"a": [[1]]}),
        (datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")),
         datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2)))),
        (datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
         datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=1)))),
    ],
)  # fmt: skip
def test_what_comes_back_as_its_base(value: object, comes_back: object) -> None:
    assert same(back(value), comes_back)
    assert same(back([value]), [comes_back])


def test_a_key_that_is_a_str_of_another_class_comes_back_as_str() -> None:
    assert type(next(iter(back({Name("k"): 1})))) is str


# -- what can't be carried --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "value is of type object"),
        (print, "value is of type builtin_function_or_method"),
        ({"a": [1, 2, 3, deque()]}, r'value\["a"\]\[3\] is of type collections.deque'),
        ({"a": (1, {5: {"b": 1j}})}, r'value\["a"\]\[1\]\[5\]\["b"\] is of type complex'),
        ({1: {2, Fraction(1, 2)}}, r"value\[1\]\{\} is of type fractions.Fraction"),
        ({("a", Fraction(1)): 1}, r"value\[\('a', Fraction\(1, 1\)\)\] is of type fractions.Fraction"),
        ({"k" * 100: object()}, r'value\["k{39}\.\.\.\]'),
        (["ok", "\ud800"], r"value\[1\] is a str with a lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({Colour.RED: 1, "red": 2}, "two keys that would be stored alike"),
        (
            {"t": time(1, tzinfo=ZoneInfo("Europe/Berlin"))},
            r'value\["t"\] is a time in a zone that has no offset of whole seconds',
        ),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(microseconds=1))), "no offset of whole seconds"),
        (np.array([object()]), "array of Python objects"),
        ({"m": np.ma.array([1, 2], mask=[0, 1])}, r'value\["m"\] is of type numpy.*MaskedArray'),
        (Exception("x"), "value is of type Exception"),
        (int, "value is of type type"),
    ],
)
def test_not_serializable_names_type_and_place(value: object, message: str) -> None:
    with pytest.raises(NotSerializable, match=message):
        encode(value)


def test_a_message_never_holds_the_value() -> None:
    class Secret:
        def __repr__(self) -> str:
            return "hunter2"

    with pytest.raises(NotSerializable) as caught:
        encode({"password": Secret()})
    assert "hunter2" not in str(caught.value)
    assert 'value["password"]' in str(caught.value)


def nested(levels: int, core: Any) -> Any:
    for _ in range(levels):
        core = [core]
    return core


@pytest.mark.parametrize("core", [1, Decimal(1), 2**70], ids=["fast", "walked", "walked twice"])
def test_nesting_is_bounded_alike_on_every_way(core: object) -> None:
    assert same(back(nested(DEPTH_MAX, core)), nested(DEPTH_MAX, core))
    with pytest.raises(NotSerializable, match="nested deeper than 100 levels, or holds itself"):
        encode(nested(DEPTH_MAX + 1, core))


def test_a_value_that_holds_itself() -> None:
    loop: list[Any] = [Decimal(1)]
    loop.append({"again": loop})
    with pytest.raises(NotSerializable, match="holds itself"):
        encode(loop)


def test_a_subclass_with_finer_units_is_refused() -> None:
    class Nanos(datetime):
        def isoformat(self, *_: Any, **__: Any) -> str:
            return super().isoformat(timespec="microseconds") + "123"

    class Not(datetime):
        def isoformat(self, *_: Any, **__: Any) -> str:
            return "NaT"

    class Other(datetime):
        pass

    for kind in (Nanos, Not):
        with pytest.raises(NotSerializable, match="without loss"):
            encode(kind(2026, 1, 2))
    assert same(back(Other(2026, 1, 2)), datetime(2026, 1, 2))


def test_an_unknown_codec() -> None:
    with pytest.raises(ConfigError, match="codec 'pickle' is not known; there are msgpack, f32, raw"):
        encode(1, "pickle")
    assert CODECS == ("msgpack", "f32", "raw")


# -- models -----------------------------------------------------------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(strict=True)
    id: uuid.UUID
    pair: tuple[int, str]
    colour: Colour
    long_name: int = Field(alias="longName")


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    at: datetime
    inner: list[Inner]
    price: Decimal = Field(validation_alias="in", serialization_alias="out")


@dataclass
class Row:
    id: uuid.UUID
    day: date
    span: timedelta
    prices: dict[str, Decimal]
    tags: set[str] = field(default_factory=set)
    pair: tuple[int, float] = (1, 2.0)
    colour: Colour = Colour.RED
    inner: Inner | None = None
    data: bytes = b"\x00"


class Shape(msgspec.Struct, tag="shape", rename="camel", frozen=True):
    side_cm: int
    made: datetime
    rest: str | msgspec.UnsetType = msgspec.UNSET


class Pair(msgspec.Struct, array_like=True):
    a: int
    b: Decimal


@pydantic_dataclass
class Checked:
    n: int
    at: date


class Ids(RootModel[list[uuid.UUID]]):
    pass


class WithArray(msgspec.Struct):
    name: str
    inner: Inner


INNER = Inner(id=uuid.UUID(int=5), pair=(1, "x"), colour=Colour.RED, longName=3)
ROW = Row(
    uuid.UUID(int=9), date(2026, 1, 2), timedelta(days=1), {"eur": Decimal("1.10")}, {"a"}, (3, 4.5), Colour.RED, INNER
)
OUTER = Outer(**{"at": datetime(2026, 1, 2, tzinfo=UTC), "inner": [INNER], "in": Decimal("1.10")})


@pytest.mark.parametrize(
    "value",
    [
        INNER, OUTER, ROW, Shape(3, datetime(2026, 1, 2)), Shape(3, datetime(2026, 1, 2), "r"), Pair(1, Decimal("2.50")),
        Checked(1, date(2026, 1, 2)), Ids([uuid.UUID(int=1)]), WithArray("x", INNER),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_a_model_comes_back(value: object) -> None:
    found = back(value, model=type(value))
    assert type(found) is type(value)
    assert found == value
    assert back([value, value], model=list[type(value)]) == [value, value]  # type: ignore[misc]


def test_a_model_comes_back_as_a_dict_without_being_named() -> None:
    assert same(back(INNER), {"id": uuid.UUID(int=5), "pair": [1, "x"], "colour": "red", "long_name": 3})
    assert same(back(Pair(1, Decimal("2.50"))), [1, Decimal("2.50")])
    shape = {"type": "shape", "sideCm": 3, "made": datetime(2026, 1, 2)}
    assert same(back(Shape(3, datetime(2026, 1, 2))), shape)
    row = back({"rows": [ROW]})["rows"][0]
    assert row["inner"]["id"] == uuid.UUID(int=5)
    assert row["tags"] == {"a"}
    assert same(back(Ids([uuid.UUID(int=1)])), [uuid.UUID(int=1)])


def test_none_stays_none_whatever_the_model() -> None:
    assert back(None, model=Outer) is None


@pytest.mark.parametrize("model", [Outer, Row, Shape, list[Inner], int])
def test_a_value_that_does_not_fit_its_model_is_corrupt_and_not_told(model: Any) -> None:
    with pytest.raises(CorruptValue, match="does not fit") as caught:
        decode(*encode({"price": "hunter2", "at": "hunter2", "id": "hunter2"}), model)
    assert "hunter2" not in str(caught.value)


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


def test_models_that_only_pydantic_can_tell_apart() -> None:
    pets = [Dog(), Cat()]
    assert back(pets, model=list[Annotated[Cat | Dog, Field(discriminator="kind")]]) == pets
    assert back(pets, model=list[Cat | Dog]) == pets


@pytest.mark.parametrize("model", [object(), subprocess.Popen | deque | Path])
def test_what_is_no_type_of_data(model: Any) -> None:
    with pytest.raises(ConfigError, match="can't be decoded into"):
        decode(*encode({"a": 1}), model)


def test_a_model_with_a_field_that_can_not_be_carried() -> None:
    class Account(BaseModel):
        token: SecretStr

    with pytest.raises(NotSerializable, match=r"value\[0\]\.token is of type pydantic.*SecretStr"):
        encode([Account(token=SecretStr("hunter2"))])


# -- numpy ------------------------------------------------------------------------------------------------------------

dtypes = (
    hnp.scalar_dtypes() | hnp.byte_string_dtypes() | hnp.unicode_string_dtypes() | hnp.datetime64_dtypes()
    | hnp.array_dtypes(hnp.scalar_dtypes(), max_size=3)
)  # fmt: skip
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))


@quick
@given(arrays)
def test_arrays_keep_dtype_shape_and_bits(array: np.ndarray[Any, Any]) -> None:
    found = back({"array": [array]})["array"][0]
    assert type(found) is np.ndarray
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert found.flags.writeable
    assert found.flags.owndata


@pytest.mark.parametrize(
    "scalar", [np.float32(0.1), np.float64(0.1), np.int8(-3), np.bool_(True), np.datetime64("2026-01-02"), np.str_("x")]
)
def test_numpy_scalars_keep_their_type(scalar: Any) -> None:
    for found in (back(scalar), back([1.0] * 40 + [scalar])[40], next(iter(back({scalar: 1})))):
        assert type(found) is type(scalar)
        assert found == scalar


def test_arrays_of_another_order() -> None:
    array = np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3))[::-1]
    found = back(array)
    assert found.dtype == array.dtype
    assert (found == array).all()


def test_numpy_is_imported_only_for_those_who_use_it() -> None:
    code = (
        "import sys; from cachebus.values import encode, decode; from decimal import Decimal; "
        "decode(*encode({'a': [Decimal(1), (1, 2)]})); decode(*encode([0.5], 'f32')); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


# -- other codecs, compression ----------------------------------------------------------------------------------------


@quick
@given(st.lists(st.floats(width=32)))
def test_f32_of_a_list(floats: list[float]) -> None:
    byte, payload = encode(floats, "f32")
    assert (byte, len(payload)) == (F32, 4 * len(floats))
    assert same(decode(byte, payload), floats)


def test_f32_rounds_to_float32_and_takes_ints() -> None:
    assert back((0.1, 2), "f32") == [np.float32(0.1).item(), 2.0]


def test_f32_of_an_array() -> None:
    array = np.array([[0.1, math.inf], [math.nan, -3]])
    byte, payload = encode(array, "f32")
    found: Any = decode(byte, payload)
    assert byte == F32_ARRAY
    assert (found.dtype, found.shape) == (np.float32, (2, 2))
    assert found.tobytes() == array.astype(np.float32).tobytes()
    assert back(np.arange(3, dtype=np.int16), "f32").tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("codec", "value", "message"),
    [
        ("f32", {"a": 1}, "value is of type dict, and codec f32 takes a list of numbers or a numpy array"),
        ("f32", None, "value is of type NoneType"),
        ("f32", [1.0, "x"], r"value\[1\] is of type str, and codec f32 takes numbers only"),
        ("f32", [[1.0]], r"value\[0\] is of type list"),
        ("f32", [1e39], "too large for codec f32"),
        ("f32", np.array([1e39]), "too large for codec f32"),
        ("f32", np.array([1j]), "takes real numbers only"),
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
pieces = st.sampled_from(
    [bytes([b]) for b in (0x80, 0x81, 0x82, 0x90, 0x91, 0x92, 0x93, 0xA1, 0xC0, 0xC4, 0xC7, 0xC9, 0xCB, 0xD9, 0xDC, 0xDD,
                          0xDE, 0xDF, 0xD4, 0xD5, 0xD7, 0xD8, 0xFF, *range(14))]
    + [b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x08", b"\xa3<f8", b"\xa2|O", b"\xa3|V0",
       b"\xa72026-01", b"\xc7\x04\x07sNaN", b"\xc7\x02\x08\x81\x90", b"\xcf" + b"\xff" * 8]
)  # fmt: skip


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
        (np.array([[1, 2]], "<u2"), "c70e0a93a33c7532920102c40401000200"),
        (np.float32(0.5), "c70b0b92a33c6634c4040000003f"),
        ({uuid.UUID(int=1): 1}, "81d8060000000000000000000000000000000101"),
    ],
)
def test_golden_bytes(value: object, payload: str) -> None:
    assert encode(value) == (MSGPACK, bytes.fromhex(payload))


def test_golden_bytes_of_the_other_codecs() -> None:
    assert (MSGPACK, RAW, F32, F32_ARRAY, ZLIB) == (1, 2, 3, 4, 128)
    assert encode([0.5, -2.0], "f32") == (3, bytes.fromhex("0000003f000000c0"))
    assert encode(np.array([0.5]), "f32") == (4, bytes.fromhex("929101c4040000003f"))
    assert decode(129, bytes.fromhex("7801bb995241070000be07301e")) == "x" * 100


def test_public_names() -> None:
    assert sorted(values.__all__) == sorted(
        ["CODECS", "F32", "F32_ARRAY", "MSGPACK", "RAW", "ZLIB", "CorruptValue", "decode", "encode"]
    )
