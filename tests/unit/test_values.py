"""The value codec: nothing is lost, and what can't be carried is named."""

# ruff: noqa: DTZ001 (naive datetimes are meant)

from __future__ import annotations

import enum
import math
import uuid
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from gc import get_referents
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given

from cachebus import values
from cachebus.decided import DontCache, Fresh, NotModified
from cachebus.errors import ConfigError, NotSerializable
from cachebus.values import CODECS, MSGPACK, encode
from cachebus.values import plain as plain_values
from cachebus.values.plain import DEPTH_MAX, is_plain
from tests.support.roundtrip import anything, back, plain, quick, same

# -- what comes back --------------------------------------------------------------------------------------------------


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


class Living:
    """Since Python 3.13 its `vars()` are a dict that refers to nothing, as long as it lives."""

    def __init__(self) -> None:
        self.id, self.price, self.tags = uuid.UUID(int=7), Decimal("1.10"), {"a", "b"}


LIVING = Living()
HOLDERS: dict[str, Any] = {
    "alone": lambda hidden: hidden,
    "in a list": lambda hidden: [hidden],
    "in a dict": lambda hidden: {"rows": [hidden]},
    "many": lambda hidden: [hidden] * 40,
    "among others": lambda hidden: [{"a": 1}] * 40 + [hidden],
    "beside one that gives more": lambda hidden: [{n: n for n in range(50)}, hidden] * 20,
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_a_living_object_holds_loses_nothing(holder: str) -> None:
    found = back(HOLDERS[holder](vars(LIVING)))
    assert same(found, HOLDERS[holder](dict(vars(LIVING))))


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_dict_that_refers_to_less_than_it_holds_is_not_plain(holder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Python 3.13, whatever this one is."""
    hidden = {"id": uuid.UUID(int=7), "price": Decimal("1.10"), "tags": {"a", "b"}}

    def referents(*holders: Any) -> list[Any]:
        return get_referents(*[one for one in holders if one is not hidden])

    monkeypatch.setattr(plain_values, "_contents", referents)
    monkeypatch.setattr(plain_values, "_complete", False, raising=False)
    value = HOLDERS[holder](hidden)
    assert not is_plain(value, msgspec.msgpack.encode(value))
    assert same(back(value), value)
    value = HOLDERS[holder]({"a": 1, 2: [None]})
    assert is_plain(value, msgspec.msgpack.encode(value))


class Colour(enum.Enum):
    RED = "red"


class Number(enum.Enum):
    """Members that are numbers."""

    ONE = 1


FOLDED = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=0)
"""It equals no other zone's time, as long as its zone is not replaced by its offset."""


@dataclass
class DictToo(dict[str, int]):
    a: int = 0


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
        (
            datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2026, 7, 1, 12, tzinfo=timezone(timedelta(hours=2))),
        ),
        (
            datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=timezone(timedelta(hours=1))),
        ),
    ],
)
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
        ({Colour.RED: 1, "red": 2}, "two keys that would come back alike"),
        ({frozenset({Colour.RED}): 1, frozenset({"red"}): 2}, "two keys that would come back alike"),
        ({"s": {Colour.RED, "red"}}, r'value\["s"\] is a set with two elements that would come back alike'),
        ({(Colour.RED,), ("red",)}, "two elements that would come back alike"),
        ({frozenset({Colour.RED}), frozenset({"red"})}, "two elements that would come back alike"),
        ({Decimal(1): 1, Number.ONE: 2}, "two keys that would come back alike"),
        ({Decimal(1), Number.ONE}, "two elements that would come back alike"),
        ({FOLDED: 1, FOLDED.astimezone(UTC): 2}, "two keys that would come back alike"),
        ({"d": DictToo(a=1)}, r'value\["d"\] is of type .*DictToo, which is a dataclass and holds data beside its'),
        (
            {"t": time(1, tzinfo=ZoneInfo("Europe/Berlin"))},
            r'value\["t"\] is a time in a zone that has no offset of whole seconds',
        ),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(microseconds=1))), "no offset of whole seconds"),
        (Exception("x"), "value is of type Exception"),
        (int, "value is of type type"),
        ([1, Fresh(3)], r"value\[1\] is of type cachebus.decided.Fresh: a loader returns it around its value"),
        ({"a": DontCache(3)}, r'value\["a"\] is of type cachebus.decided.DontCache'),
        ({"a": (NotModified(),)}, r'value\["a"\]\[0\] is of type cachebus.decided.NotModified'),
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


def test_public_names() -> None:
    others = [
        "UNCHANGING",
        "UNSET",
        "ZLIB",
        "CorruptValue",
        "Decode",
        "Encode",
        "Form",
        "OwnType",
        "carry",
        "check_model",
    ]
    others += ["decode", "encode"]
    assert sorted(values.__all__) == sorted(["CODECS", "F32", "F32_ARRAY", "MSGPACK", "RAW", *others])
