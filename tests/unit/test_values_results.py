"""What a function says that it returns: which model values are decoded into for it, and where none is needed."""

from __future__ import annotations

import collections
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, LiteralString, Never, NewType, Self, TypeVar, Union

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import JsonValue
from typing_extensions import TypeAliasType

from cachebus import ConfigError, Policy
from cachebus.policy import Rules
from cachebus.values import check_model
from cachebus.values.results import returned_by
from cachebus.wire.packing import carried

if TYPE_CHECKING:
    from decimal import Decimal as ForCheckers

T = TypeVar("T")


@dataclass
class Price:
    """What comes back as a dict unless something is known of it."""

    amount: int


class Colour(Enum):
    """Comes back as its value."""

    RED = "red"


Named = NewType("Named", Price)
Numbered = NewType("Numbered", int)
Alias = TypeAliasType("Alias", Price)
Maybe = TypeAliasType("Maybe", Price | None)  # type: ignore[type-arg, unused-ignore]

Json = TypeAliasType("Json", "dict[str, Json] | list[Json] | str | None")  # type: ignore[misc, unused-ignore]
There = TypeAliasType("There", "list[Back] | int")  # type: ignore[misc, unused-ignore]
Back = TypeAliasType("Back", "dict[str, There]")  # type: ignore[misc, unused-ignore]
Prices = TypeAliasType("Prices", "Price | list[Prices]")  # type: ignore[misc, unused-ignore]
OldJson: Any = Union[dict[str, "OldJson"], list["OldJson"], str, None]  # type: ignore[misc]  # noqa: UP007
OldPrices: Any = Union["Price", list["OldPrices"]]  # type: ignore[misc]


def model_of(function: Callable[..., Any], owner: type | None = None) -> Any:
    """As `@cached` asks."""
    returned = returned_by(function)
    return None if returned is None else returned.model(owner)


def said(annotation: Any) -> Any:
    """The model for a function that is annotated so."""

    async def function() -> Any:
        raise NotImplementedError

    function.__annotations__["return"] = annotation
    return model_of(function)


PLAIN: list[Any] = [Any, Any | None, object, None, Never, LiteralString, T, Numbered, Annotated[int, "of shoes"]]
CONTAINERS = [dict, dict[str, Any], list[dict[str, int]], Sequence[int], Iterable[int], Mapping[str, list[str]]]
OTHERS = [Iterable, Literal["a", 1], np.ndarray, NDArray[np.float32], np.int64]


RECURSIVE = [Json, dict[str, Json], Json | None, There, Back, JsonValue, dict[str, JsonValue], OldJson, list[OldJson]]


@pytest.mark.parametrize("annotation", [*PLAIN, *CONTAINERS, *OTHERS, *RECURSIVE])
def test_what_comes_back_as_it_is_needs_no_model(annotation: Any) -> None:
    assert said(annotation) is None


@pytest.mark.parametrize("annotation", [Price, Price | None, Named, Alias, Maybe, "Price", Annotated[Price, "net"]])
def test_a_name_for_a_model_is_that_model(annotation: Any) -> None:
    assert said(annotation) is Price


@pytest.mark.parametrize(
    "annotation",
    [
        *(list[Price], list[Alias], dict[str, Named], Sequence[Price], Iterable[Price], Literal[Colour.RED], Colour),
        *(tuple, tuple[int, int], list[tuple[int, str]], dict[str, tuple[int, ...]], Price | int, Sequence[tuple[int]]),
    ],
)
def test_what_would_come_back_as_something_else_needs_it(annotation: Any) -> None:
    model = said(annotation)
    assert model == annotation
    check_model(model)


def test_an_alias_that_stands_in_itself_comes_back_so_at_any_depth() -> None:
    model = said(Prices)
    check_model(model)
    for value in (Price(1), [Price(1), [Price(2), []]]):
        assert back(value, model) == value
    assert said(list[Prices]) == list[Prices]


def test_what_stands_in_itself_without_an_alias_is_told() -> None:
    for annotation in (OldPrices, dict[str, OldPrices]):
        with pytest.raises(NameError, match="'OldPrices' stands for what it is in: define it by `type OldPrices"):
            said(annotation)


def test_without_the_rest_of_the_signature() -> None:
    async def function(session: ForCheckers) -> Price:
        raise NotImplementedError

    assert model_of(function) is Price


async def fetch(table: str, number: int) -> Price:
    """A function of a module."""
    return Price(len(table) + number)


def passes_on(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator."""

    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


class Fetch:
    """What is called, or has what is called."""

    amount: int

    async def __call__(self, number: int) -> Price:
        raise NotImplementedError

    async def method(self, number: int) -> Price:
        raise NotImplementedError

    def later(self) -> Awaitable[Price]:
        raise NotImplementedError

    def task(self) -> Coroutine[Any, Any, Price]:
        raise NotImplementedError

    async def never(self) -> Awaitable[Price]:
        raise NotImplementedError


@pytest.mark.parametrize(
    "function",
    [
        *(functools.partial(fetch, "prices"), functools.partial(functools.partial(fetch, "prices"), number=1)),
        *(Fetch(), Fetch().method, functools.partial(Fetch()), Fetch.later, Fetch().task),
        *(passes_on(fetch), functools.partial(passes_on(fetch), "prices")),
    ],
)
def test_whatever_is_called(function: Callable[..., Any]) -> None:
    assert model_of(function) is Price


def test_what_is_awaited_twice_is_no_value() -> None:
    with pytest.raises(ConfigError, match="no type of data"):
        check_model(model_of(Fetch.never))


# -- names -------------------------------------------------------------------------------------------------------


async def early() -> list[Later]:
    raise NotImplementedError


read_early = returned_by(early)


@dataclass
class Later:
    """Defined below."""

    amount: int


def test_a_name_that_comes_later() -> None:
    assert read_early is not None
    assert read_early.model(None) == list[Later]


async def unknown() -> Unknown:  # type: ignore[name-defined]  # noqa: F821
    raise NotImplementedError


def test_a_name_that_never_comes() -> None:
    returned = returned_by(unknown)
    assert returned is not None
    for _ in range(2):
        with pytest.raises(NameError, match="Unknown"):
            returned.model(None)


class Node(Generic[T]):
    """Says itself."""

    class Part:
        """Of a node."""

    async def own(self) -> Node[int]:
        raise NotImplementedError

    async def several(self) -> dict[str, Self] | None:
        raise NotImplementedError

    async def this(self) -> Self:
        raise NotImplementedError

    async def parts(self) -> list[Part]:
        raise NotImplementedError

    async def list(self) -> Any:
        raise NotImplementedError

    async def of_method_names(self) -> list[tuple[int]]:  # type: ignore[valid-type]
        raise NotImplementedError

    read = tuple(returned_by(each) for each in (parts, of_method_names))


def test_the_class_around() -> None:
    class Child(Node[int]):
        pass

    for owner in (Node, Child):
        assert model_of(Node.this, owner) is owner
        assert model_of(Node.several, owner) == dict[str, owner]  # type: ignore[valid-type]
    for method in (Node.this, Node.several):
        with pytest.raises(NameError, match="which class Self is: put @cached above what wraps the method"):
            model_of(method)
    for each in (Node, Child, None):
        assert model_of(Node.own, each) == Node[int]
    parts, of_method_names = Node.read
    assert parts is not None
    assert of_method_names is not None
    assert parts.model(Node) == list[Node.Part]
    assert of_method_names.model(Node) == list[tuple[int]]


def test_names_of_the_functions_around() -> None:
    @dataclass
    class Price:
        """Another one than the module's."""

    class Holder:
        """In a function."""

        async def held(self) -> Price:
            raise NotImplementedError

        async def own(self) -> Holder:
            raise NotImplementedError

        read = returned_by(held), returned_by(own)

    async def local() -> list[Price]:
        raise NotImplementedError

    assert model_of(local) == list[Price]
    held, own = Holder.read
    assert held is not None
    assert own is not None
    assert held.model(Holder) is Price
    assert own.model(Holder) is Holder


def test_of_another_class_of_that_name_nothing_is_taken() -> None:
    """As of the one that a module had before it was loaded anew."""

    def make() -> tuple[Any, type]:
        class Node:
            """Not the module's."""

            async def own(self) -> Node:
                raise NotImplementedError

            read = returned_by(own)

        return Node.read, Node

    read, local = make()
    with pytest.raises(NameError, match="nobody says which class Node is: put @cached above what wraps it"):
        read.model(None)
    assert read.model(local) is local


def test_of_a_class_that_inherits_the_method_its_name_is_not_taken() -> None:
    namesake = type("Price", (Fetch,), {})
    assert model_of(Fetch.method, namesake) is Price


# -- what can be decoded -----------------------------------------------------------------------------------------


class NoType:
    """No data."""


@pytest.mark.parametrize(
    "model",
    [
        *(collections.deque[int], collections.Counter[str], collections.OrderedDict[str, int], NoType | None),
        *(collections.defaultdict[str, int], collections.abc.Iterator[int], Callable, Awaitable[int], type[Price]),
        *(list[NoType], dict[str, collections.deque[int]], tuple[int, NoType], Sequence[range]),
    ],
)
def test_what_can_never_be_decoded_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="no type of data"):
        Policy(model=model)


def back(value: object, model: Any) -> Any:
    """As it comes back."""
    return carried(value, Rules("doc", Policy(model=model)))[2]


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (Iterable[int], [1, 2]),
        (Iterable[Price], [Price(1)]),
        (dict[str, Iterable[Price]], {"a": [Price(1)]}),
        (Iterable[int], {1, 2}),
    ],
)
def test_an_iterable_is_what_was_given(model: Any, value: object) -> None:
    assert back(value, model) == value


def test_arrays_with_a_type_of_their_items() -> None:
    value = np.array([1.5, 2.5], dtype=np.float32)
    assert back(value, NDArray[np.float32]).tobytes() == value.tobytes()
    assert back([value], list[NDArray[np.float32]])[0].tobytes() == value.tobytes()


class Tree(msgspec.Struct):
    """Has parts that are defined below."""

    branch: Branch | None = None


check_model(Tree)  # once what it names is defined, it may be decoded into


class Branch(msgspec.Struct):
    """Of a tree."""

    length: int


def test_a_struct_whose_parts_are_defined_below() -> None:
    assert back(Tree(Branch(7)), Tree) == Tree(Branch(7))
