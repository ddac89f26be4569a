"""Hashes of values: what differs, in type or content, at any depth, differs in its hash; order counts where it does."""

from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, make_dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from enum import Enum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachebus import NotSerializable, generate_resource_id_hash
from tests.support.ids import Number, Other, Plan, Whole

hashed = generate_resource_id_hash


@dataclass
class Filter:
    """A dataclass."""

    a: int
    b: str = "x"


class Struct(msgspec.Struct):
    """A msgspec one of the same fields."""

    a: int
    b: str = "x"


class Words(list[str]):
    """A subclass of a container."""


class Data(bytes):
    """And of bytes."""

    __slots__ = ()


Pair = namedtuple("Pair", "a b")
WHEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ALIKE: list[Any] = [
    "1",
    1,
    1.0,
    True,
    b"1",
    bytearray(b"1"),
    memoryview(b"1"),
    Decimal(1),
    Decimal("1.0"),
    Other("1"),
    Data(b"1"),
    None,
    "None",
    "",
    (),
    [],
    {},
    set(),
    frozenset(),
    0,
    False,
    0.0,
    timedelta(0),
    b"",
    (1,),
    [1],
    {1},
    frozenset([1]),
    {1: 1},
    ["1"],
    [True],
    [1.0],
    [[1]],
    [(1,)],
    [b"1"],
    [Other("1")],
    {"1": 1},
    {1: "1"},
    {True: 1},
    ("1",),
    [[1], [1]],
    [[1, 1]],
    UUID(int=1),
    str(UUID(int=1)),
    WHEN,
    WHEN.isoformat(),
    WHEN.date(),
    WHEN.date().isoformat(),
    WHEN.time(),
    WHEN.time().isoformat(),
    WHEN.replace(tzinfo=None),
    WHEN.replace(fold=1),
    timedelta(1),
    86400,
    Plan.ACME,
    "acme",
    ["acme"],
    Number.SEVEN,
    Whole.SEVEN,
    7,
    Filter(1),
    {"a": 1, "b": "x"},
    Struct(1),
    Pair(1, "x"),
    (1, "x"),
    [1, "x"],
    Words(["1"]),
    OrderedDict(a=1, b="x"),
    MappingProxyType({"a": 1, "b": "x"}),
    Filter(2),
    Struct(2),
    2**64,
    -(2**64),
    2**70,
    str(2**70),
    -1,
    [["a", 1], ["b", "x"]],
    (("a", 1), ("b", "x")),
    {("a", 1), ("b", "x")},
    ["int", 1],
    ("int", 1),
    ["str", "1"],
    ["items", "list", []],
    ["none", "NoneType", None],
    float("inf"),
    "inf",
]
"""Values that some encoding or other takes for the same."""


def test_what_is_alike_is_told_apart_at_every_depth() -> None:
    inside: list[Callable[[Any], Any]] = [
        lambda v: v,
        lambda v: [v],
        lambda v: {"k": v},
        lambda v: ({"k": [v, v]}, 1),
        Filter,
    ]
    for wrap in inside:
        hashes = [hashed(wrap(value)) for value in ALIKE]
        assert len(set(hashes)) == len(ALIKE), [
            (a, b) for i, a in enumerate(ALIKE) for j, b in enumerate(ALIKE[:i]) if hashes[i] == hashes[j]
        ]
    assert hashed(1, 2) != hashed((1, 2)) != hashed([1, 2])
    assert hashed() != hashed(None) != hashed([])


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.dates()
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
    | st.sampled_from([Plan.ACME, Number.SEVEN, Whole.SEVEN])
)
hashable = st.recursive(scalars, lambda inner: st.tuples(inner) | st.frozensets(inner, max_size=3), max_leaves=4)
anything = st.recursive(
    scalars | st.sets(hashable, max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(hashable, inner, max_size=3)
        | st.builds(Filter, inner, inner)
    ),
    max_leaves=8,
)


def told(value: Any) -> Any:
    """A value by its types and contents, to compare: `1`, `1.0` and `True` differ."""
    name = type(value).__qualname__
    if isinstance(value, Filter):
        return name, told(value.a), told(value.b)
    if isinstance(value, list | tuple):
        return name, *map(told, value)
    if isinstance(value, set | frozenset):
        return name, frozenset(map(told, value))
    if isinstance(value, dict):
        return name, frozenset((told(k), told(v)) for k, v in value.items())
    return name, repr(value)


@given(anything, anything)
def test_two_values_share_a_hash_only_if_they_are_the_same(one: Any, other: Any) -> None:
    assert (hashed(one) == hashed(other)) is (told(one) == told(other))


def reordered(value: Any) -> Any:
    """An equal value whose mappings and sets were filled the other way round."""
    if isinstance(value, Filter):
        return Filter(reordered(value.a), reordered(value.b))
    if isinstance(value, list | tuple):
        return type(value)(map(reordered, value))
    if isinstance(value, set | frozenset):
        return type(value)(list(map(reordered, value))[::-1])
    if isinstance(value, dict):
        return dict([(reordered(k), reordered(v)) for k, v in value.items()][::-1])
    return value


@given(anything)
def test_the_order_of_mappings_and_sets_does_not_count(value: Any) -> None:
    assert hashed(value) == hashed(reordered(value))


@given(st.lists(scalars, min_size=2, max_size=4))
def test_the_order_of_items_counts(items: list[Any]) -> None:
    turned = items[::-1]
    assert (hashed(items) == hashed(turned)) is (told(items) == told(turned))
    assert (hashed(*items) == hashed(*turned)) is (told(items) == told(turned))


def test_keys_of_several_types_have_an_order() -> None:
    mixed = {1: "a", "1": "b", None: "c", (1, "x"): "d", Plan.ACME: "e", b"1": "f", UUID(int=1): "g", 1.5: "h"}
    assert hashed(mixed) == hashed(dict(reversed(mixed.items())))
    backwards: set[Any] = set()
    for key in reversed(mixed):
        backwards.add(key)
    assert hashed(set(mixed)) == hashed(backwards)
    assert hashed([mixed]) != hashed([{**mixed, 1: "b", "1": "a"}])


def test_fields_count_by_their_names() -> None:
    assert hashed(Filter(a=1, b="x")) == hashed(make_dataclass("Filter", [("b", str), ("a", int)])("x", 1))
    assert hashed(Filter(1)) != hashed(make_dataclass("Filter", [("a", int), ("c", str)])(1, "x"))
    assert hashed(Filter(1)) != hashed(make_dataclass("Other", [("a", int), ("b", str)])(1, "x"))


def test_a_hash_does_not_depend_on_what_surrounds_it() -> None:
    """A Decimal's text does, on the thread's context."""
    here = hashed(Decimal("1E+5"), [Decimal("NaN")])
    with localcontext() as context:
        context.capitals, context.prec = 0, 1
        assert hashed(Decimal("1E+5"), [Decimal("NaN")]) == here


def test_a_value_counts_by_what_it_holds() -> None:
    """And by its type's name, not by what it says of itself."""
    assert hashed(Other("a")) != hashed(Other("b"))
    assert hashed(Other("a")) != hashed("a") != hashed("other")


def cyclic() -> list[Any]:
    found: list[Any] = []
    found.append({"a": found})
    return found


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class Broken(Enum):
    """An enum whose value can't be hashed."""

    A = object()


Half = dataclass(init=False)(make_dataclass("Half", ["a"], init=False))
"""Has a field that nobody has set."""


@pytest.mark.parametrize(
    "part",
    [
        object(),
        lambda: 1,
        Filter,
        Struct,
        int,
        1j,
        iter([]),
        range(3),
        {"a": object()},
        [{1, 1j}],
        {object(): 1},
        "\ud800",
        ["\ud800"],
        {"\ud800": 1},
        Broken.A,
        cyclic(),
        deep(101),
        deep(5000),
        Half(),
        UserDict({"a": 1j}),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_cannot_be_hashed_is_refused(part: Any) -> None:
    with pytest.raises(NotSerializable, match="a part can't be hashed"):
        hashed(1, part)


def test_nesting_up_to_the_limit_is_hashed() -> None:
    assert hashed(deep(100)) != hashed(deep(99))
