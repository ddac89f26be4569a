"""Models go into the codec, and come back as themselves where they are named."""

# ruff: noqa: DTZ001 (naive datetimes are meant)

from __future__ import annotations

import enum
import subprocess
import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr
from pydantic.dataclasses import dataclass as pydantic_dataclass

from cachebus.errors import ConfigError, NotSerializable
from cachebus.values import CorruptValue, Form, carry, check_model, decode, encode, models
from tests.support.roundtrip import back, same


class Colour(enum.Enum):
    RED = "red"


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
        INNER,
        OUTER,
        ROW,
        Shape(3, datetime(2026, 1, 2)),
        Shape(3, datetime(2026, 1, 2), "r"),
        Pair(1, Decimal("2.50")),
        Checked(1, date(2026, 1, 2)),
        Ids([uuid.UUID(int=1)]),
        WithArray("x", INNER),
    ],
    ids=lambda v: type(v).__name__,
)
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


class Order(BaseModel):
    id: int


class Invoice(BaseModel):
    id: int


@pytest.mark.parametrize("holder", [lambda model: model, lambda model: list[model], lambda model: dict[str, model]])
def test_unions_in_another_order_are_other_models(holder: Any) -> None:
    """Data that fits both becomes the first."""
    one, other = holder(Order | Invoice), holder(Invoice | Order)
    assert one == other
    for model, kind in ((one, Order), (other, Invoice), (one, Order)):
        check_model(model)
        value = holder(kind)
        made = kind(id=7) if value is kind else [kind(id=7)] if value == list[kind] else {"a": kind(id=7)}
        assert same(back(made, model=model), made)


def test_decoders_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_BUILT_MAX", 3)
    monkeypatch.setattr(models, "_built", {})
    for _ in range(20):
        assert back([7], model=list[int]) == [7]
        assert len(models._built) <= 3


@pytest.mark.parametrize("model", [object(), subprocess.Popen | deque | Path])
def test_what_is_no_type_of_data(model: Any) -> None:
    with pytest.raises(ConfigError, match="can't be decoded into"):
        check_model(model)
    with pytest.raises(CorruptValue, match="can't be decoded into"):  # a reader knows no other error
        decode(*encode({"a": 1}), model)


def test_a_model_with_a_field_that_can_not_be_carried() -> None:
    class Account(BaseModel):
        token: SecretStr

    with pytest.raises(NotSerializable, match=r"value\[0\]\.token is of type pydantic.*SecretStr"):
        encode([Account(token=SecretStr("hunter2"))])


class Portion(BaseModel):
    a: int = 0
    b: int = 0


class Numbered(BaseModel):
    m: dict[int, Portion]


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Portion]
    other: Portion = Portion()

    @property
    def shadow(self) -> Portion:
        return self.other


@pytest.mark.parametrize(
    "value",
    [Numbered(m={2**64: Portion(a=1)}), Open(json=Portion(a=1)), Open(other=Portion(a=1, b=2), shadow=Portion(a=1))],
    ids=repr,
)
def test_what_was_set_is_restored_wherever_the_model_lies_or_the_value_is_refused(value: BaseModel) -> None:
    """By a key that no int of the wire holds; as an extra field with the name of a method, or of a property."""
    try:
        byte, payload, seen = carry(value, Form("msgpack", None, 1 << 20, type(value)))
    except NotSerializable:
        return
    for found in (seen, decode(byte, payload, type(value))):
        assert found == value
        if "m" not in type(value).model_fields:
            assert isinstance(found, BaseModel)
            assert found.model_dump(exclude_unset=True) == value.model_dump(exclude_unset=True)
