"""With a model, a value comes back equal or is refused, and then the refusal says where and why."""

from __future__ import annotations

import abc
import dataclasses
import enum
import functools
import math
from collections import defaultdict
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from pydantic import (
    Base64Bytes,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)

from cachebus import ConfigError, NotSerializable, Policy, ValueTooLarge
from cachebus.policy import Rules
from cachebus.values import UNSET, CorruptValue, decode, encode
from cachebus.wire.packing import carried, copier, pack

SECRET = "hunter2"


class User(BaseModel):
    id: int
    is_admin: bool = Field(default=False, exclude=True)
    _etag: str = PrivateAttr(default="")


class Shape(BaseModel):
    name: str


class Circle(Shape):
    radius: float


class Drawing(BaseModel):
    shapes: list[Shape] = []
    by_name: dict[str, Shape] = {}


class Price(BaseModel):
    cents: int

    @field_validator("cents", mode="before")
    @classmethod
    def to_cents(cls, euros: Any) -> int:
        return round(euros * 100)


class Rounded(BaseModel):
    size: float

    @field_serializer("size")
    def rounded(self, size: float) -> int:
        return round(size)


class Colour(enum.StrEnum):
    RED = "red"


@dataclasses.dataclass
class Base:
    a: Any


@dataclasses.dataclass
class Derived(Base):
    b: int = 0


@dataclasses.dataclass
class Holder:
    one: Base


@dataclasses.dataclass
class Late:
    id: int
    total: float = dataclasses.field(init=False)


class Counts(BaseModel):
    by_name: defaultdict[str, int]


@dataclasses.dataclass
class Packable:
    n: int

    def made(self) -> None: ...

    @classmethod
    def of(cls) -> None: ...

    @staticmethod
    def same() -> None: ...


@dataclasses.dataclass
class DictToo(dict[str, int]):
    a: int = 0


@dataclasses.dataclass
class HoldsOne:
    one: DictToo | None
    next: HoldsOne | None = None


def out(value: Any, model: Any = None, **more: Any) -> Any:
    """What comes back of a value under a policy."""
    return carried(value, Rules("doc", Policy(model=model, **more)))[2]


def tagged_user() -> User:
    """One of which the model's dump tells only half."""
    user = User(id=1)
    user._etag = "e1"
    return user


LOSES = [
    (User(id=1, is_admin=True), User, "value.is_admin comes back changed"),
    (tagged_user(), User, "value._etag comes back changed"),
    ([{"user": tagged_user()}], list[dict[str, User]], 'value[0]["user"]._etag comes back changed'),
    (Drawing(shapes=[Circle(name="c", radius=2)]), Drawing, "value.shapes[0] is of type"),
    (Drawing(by_name={"c": Circle(name="c", radius=2)}), Drawing, 'value.by_name["c"] is of type'),
    (Price(cents=1.5), Price, "value.cents comes back changed"),
    (Rounded(size=1.5), Rounded, "value.size comes back changed"),
    (Holder(Derived(1, 5)), Holder, "value.one is of type"),
    ({"one": Derived(1, 5)}, Holder, "value.one is of type"),
    (Base((1, 2)), Base, "value.a is of type tuple, and comes back as list"),
    (Base([Colour.RED]), Base, "value.a[0] is of type"),
    (Base({Colour.RED: 1}), Base, "is of type"),
    (Base(Shape(name="x")), Base, "value.a is of type"),
    (Counts(by_name=defaultdict(lambda: 7, a=1)), Counts, "value.by_name is of type collections.defaultdict"),
]


@pytest.mark.parametrize(("value", "model", "said"), LOSES, ids=lambda v: v if isinstance(v, str) else "")
def test_what_would_come_back_changed_is_refused_unless_that_is_allowed(value: Any, model: Any, said: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        out(value, model)
    assert said in str(caught.value)
    assert "Policy(lossy=True)" in str(caught.value)
    assert type(out(value, model, lossy=True)) is type(decode(*encode(value, dumped=True), model))


@pytest.mark.parametrize("value", [Base(1), Shape(name="x"), Packable(1)])
def test_what_was_set_beside_the_fields_is_refused(value: Any) -> None:
    assert out(value, type(value)) == value
    object.__setattr__(value, "beside", 2)
    with pytest.raises(NotSerializable, match=r"value\.beside gets lost"):
        out(value, type(value))


@pytest.mark.parametrize("name", ["made", "of", "same"])
def test_what_hides_a_method_is_refused(name: str) -> None:
    value = Packable(1)
    setattr(value, name, "mine")
    with pytest.raises(NotSerializable, match=rf"value\.{name} "):
        out(value, Packable)


def test_a_factory_that_the_model_says_comes_back() -> None:
    found = out(Counts(by_name=defaultdict(int, a=1)), Counts)
    assert found.by_name["b"] == 0


class WithArray(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True, extra="allow")
    array: np.ndarray[Any, Any]
    number: float
    at: datetime


class Aliased(BaseModel):
    a: int = Field(alias="A")
    raw: Base64Bytes

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.a


class Point(NamedTuple):
    x: int
    y: Decimal


@dataclasses.dataclass(eq=False)
class Lazy:
    n: float

    @functools.cached_property
    def doubled(self) -> float:
        return 2 * self.n


class Packed(msgspec.Struct):
    n: float
    rest: set[int]


def test_nan_arrays_and_zones_come_back_equal() -> None:
    twice_there = datetime(2023, 10, 29, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
    value = WithArray(array=np.array([1, math.nan]), number=math.nan, at=twice_there, more=[math.nan])  # type: ignore[call-arg]
    found = out(value, WithArray)
    assert found.array.tobytes() == value.array.tobytes()
    assert math.isnan(found.number)
    assert found.at.isoformat() == twice_there.isoformat()


@pytest.mark.parametrize(
    "value",
    [Aliased(A=1, raw=b"aGVsbG8="), Point(1, Decimal("1.10")), Packed(math.nan, {1, 2})],
    ids=lambda v: type(v).__name__,
)
def test_aliases_computed_fields_and_serializers_that_are_undone_do_no_harm(value: Any) -> None:
    assert repr(out(value, type(value))) == repr(value)


def test_what_was_computed_from_the_fields_need_not_come_back() -> None:
    value = Lazy(1.5)
    assert value.doubled == 3
    assert out(value, Lazy).doubled == 3


def test_an_int_is_as_good_as_a_float() -> None:
    assert out(Packed(3, set()), Packed).n == 3
    with pytest.raises(NotSerializable):
        out(Packed(2**53 + 1, set()), Packed)


def test_plain_data_becomes_the_model() -> None:
    assert out({"one": {"a": 1}}, Holder) == Holder(Base(1))
    assert out([{"name": "x", "other": 1}], list[Shape]) == [Shape(name="x")]
    assert out([1, "1.10"], Point) == Point(1, Decimal("1.10"))
    with pytest.raises(NotSerializable):  # but a model's own attribute stays what it is
        out(Holder({"a": 1}), Holder)  # type: ignore[arg-type]


def test_without_a_model_a_value_is_a_dict_of_all_its_fields() -> None:
    assert out(Drawing(shapes=[Circle(name="c", radius=2)]))["shapes"] == [{"name": "c", "radius": 2.0}]
    assert out(Rounded(size=1.5)) == {"size": 1.5}
    with pytest.raises(NotSerializable, match=r"value\[0\]\.is_admin is excluded .*lossy=True"):
        out([User(id=1)])
    assert out([User(id=1)], lossy=True) == [{"id": 1}]


# -- what was set -----------------------------------------------------------------------------------------------------


class Patch(BaseModel):
    a: int = 1
    b: str | None = None
    inner: list[Patch] = []
    by_id: dict[int, Patch] = {}


@pytest.mark.parametrize("over", [None, 1])
def test_what_was_set_is_known_again(over: int | None) -> None:
    value = [Patch(b="x", inner=[Patch(), Patch(a=2)], by_id={7: Patch(b=None)}), Patch()]
    codec, payload, seen = carried(value, Rules("doc", Policy(model=list[Patch], compress_over_bytes=over)))
    for found in (seen, decode(codec, payload, list[Patch])):
        assert found == value
        assert [one.model_dump(exclude_unset=True) for one in found] == [  # type: ignore[attr-defined]
            {"b": "x", "inner": [{}, {"a": 2}], "by_id": {7: {"b": None}}},
            {},
        ]


def test_nothing_is_told_where_all_was_set() -> None:
    assert carried(Shape(name="x"), Rules("doc", Policy(model=Shape)))[0] != UNSET


def test_a_payload_that_tells_what_was_set_is_read_without_the_model_too() -> None:
    codec, payload, _ = carried(Patch(a=2), Rules("doc", Policy(model=Patch)))
    assert codec == UNSET
    assert decode(codec, payload) == {"a": 2, "b": None, "inner": [], "by_id": {}}
    told = b"\x91\x92\x90\x93\xa1b\xa5by_id\xa5inner"  # [[[], ["b", "by_id", "inner"]]]
    assert payload == len(told).to_bytes(4, "big") + told + encode(Patch(a=2))[1]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\1", b"\0\0\0\1\x90", b"\0\0\0\4\x91\x92\x91\x07\x80", b"\xff\xff\xff\xff1"]
)
def test_damage_there_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode(UNSET, data, Patch)


# -- whatever its own code raises -------------------------------------------------------------------------------------


class Angry(BaseModel):
    a: int

    @field_serializer("a")
    def fails(self, _: int) -> int:
        raise RuntimeError(SECRET)


class Sulking(BaseModel):
    a: int

    @field_validator("a")
    @classmethod
    def fails(cls, a: int) -> int:
        if a == 13:
            raise KeyError(SECRET)
        return a


@dataclasses.dataclass
class Touchy:
    a: Any

    def __post_init__(self) -> None:
        if self.a == SECRET:
            raise ValueError(SECRET)


class Odd(dict[str, Any]):
    def __iter__(self) -> Any:
        raise OverflowError(SECRET)

    def __getattribute__(self, name: str) -> Any:
        raise OSError(SECRET)


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise LookupError(SECRET)

    __hash__ = None  # type: ignore[assignment]


class Zone(ZoneInfo):
    def utcoffset(self, *_: Any) -> Any:
        raise AssertionError(SECRET)


def touchy() -> Touchy:
    """One that can't be made again."""
    value = Touchy(1)
    value.a = SECRET
    return value


@pytest.mark.parametrize(
    ("value", "model", "said"),
    [
        (Late(1), None, "value.total has no value"),
        ([Late(1)], list[Late], "value[0].total has no value"),
        (Angry(a=1), Angry, "value.a can't be dumped"),
        (Sulking.model_construct(a=13), Sulking, "raised KeyError"),
        (touchy(), Touchy, "ValueError was raised"),
        ({"at": datetime(2026, 1, 2, tzinfo=Zone("Europe/Berlin"))}, None, 'value["at"] is of type datetime.date'),
        (Shape.model_construct(name=SECRET.encode() * 2), Shape, "value.name"),
        (Shape.model_construct(name=[SECRET]), Shape, "name: string_type"),
        (Holder(one=Shape.model_construct(name=SECRET)), Holder, "does not fit"),  # type: ignore[arg-type]
    ],
)
def test_any_error_is_one_error_and_tells_no_value(value: Any, model: Any, said: str) -> None:
    with pytest.raises(NotSerializable) as caught:
        pack(value, Rules("doc", Policy(model=model)), 1.0)
    assert said in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_a_class_with_a_mind_of_its_own() -> None:
    with pytest.raises(NotSerializable):
        out([Odd(a=1), Incomparable()])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_error_passes(stop: type[BaseException]) -> None:
    class Stops(ZoneInfo):
        def utcoffset(self, *_: Any) -> Any:
            raise stop

    with pytest.raises(stop):
        out([datetime(2026, 1, 2, tzinfo=Stops("Europe/Berlin"))])


def test_memory_and_depth_are_errors_of_the_value() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotSerializable):
        out(Base(deep), Base)


def test_a_value_that_is_too_large_with_what_was_not_set() -> None:
    size = len(encode(Patch(), dumped=True)[1])
    with pytest.raises(ValueTooLarge):
        out(Patch(), Patch, max_value_bytes=size)


# -- models that can't be used ----------------------------------------------------------------------------------------


class Abstract(BaseModel, abc.ABC):
    @abc.abstractmethod
    def area(self) -> float: ...


class Bare:
    pass


@pytest.mark.parametrize(
    "model",
    [Abstract, Bare, dict[str, Bare | Point], type, DictToo, list[DictToo], dict[str, tuple[HoldsOne | None, ...]]],
)
def test_what_can_never_be_decoded_is_said_when_the_policy_is_made(model: Any) -> None:
    with pytest.raises(ConfigError, match="policy model: values can't be decoded into"):
        Policy(model=model)


@pytest.mark.parametrize(
    "model", [dict, object, list, int, np.ndarray, Point, Colour, Drawing, Packed, dict[int, Base]]
)
def test_what_can_is_accepted(model: Any) -> None:
    assert Policy(model=model).model is model


def test_a_type_that_is_not_defined_yet() -> None:
    later = create_model("Later", one=("Missing", ...))  # type: ignore[call-overload]
    for value in (1, {"one": 1}, later.model_construct(one=1)):
        with pytest.raises(NotSerializable):
            out(value, later)


# -- copies -----------------------------------------------------------------------------------------------------------


def test_only_what_can_be_changed_is_copied() -> None:
    rules = Rules("doc", Policy(copy=True))
    for value in ("text", 1, None, Decimal(1)):
        record, seen = pack(value, rules, 1.0)
        assert copier(record, seen, rules) is None
    record, seen = pack([1], rules, 1.0)
    copied = copier(record, seen, rules)
    assert copied is not None
    assert copied() == seen
    assert copied() is not seen


def test_a_validator_that_changes_its_mind_fails_no_copy() -> None:
    moody = True

    class Moody(BaseModel):
        parts: list[int]

        @field_validator("parts")
        @classmethod
        def fails(cls, parts: list[int]) -> list[int]:
            if not moody:
                raise ValueError
            return parts

    rules = Rules("doc", Policy(copy=True, model=Moody))
    record, seen = pack(Moody(parts=[1]), rules, 1.0)
    copied = copier(record, seen, rules)
    assert copied is not None
    moody = False
    one, other = copied(), copied()
    assert one == other == seen
    assert one.parts is not other.parts  # type: ignore[attr-defined]


@pytest.mark.parametrize("what", ["array", "scalar"])
def test_what_lies_between_the_fields_of_a_structured_array_is_no_part_of_it(what: str) -> None:
    dtype = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    array = np.frombuffer(bytes(range(1, 49)), dtype).copy()
    rules = Rules("doc", Policy(model=dict[str, Any]))
    value = array if what == "array" else array[0]
    record, seen = pack({"value": value}, rules, 1.0)
    assert isinstance(seen, dict)
    assert all((seen["value"][name] == value[name]).all() for name in ("a", "b"))
    assert record.payload


def test_why_a_value_is_refused_can_be_written_down() -> None:
    with pytest.raises(NotSerializable) as refused:
        pack({"\ud800": object()}, Rules("doc", Policy()), 1.0)
    str(refused.value).encode()
