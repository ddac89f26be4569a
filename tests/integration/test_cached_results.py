"""`@cached`: results come as the annotation says, also where what it names is not there yet; else it is said."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import pytest

from cachebus import Cache, CacheManager, ConfigError, Settings, cached, lifespan
from cachebus.testing import override_settings

if TYPE_CHECKING:
    from decimal import Decimal as ForCheckers

OPEN = "memory://cached-results"


@pytest.fixture(autouse=True)
def _nothing_declared() -> Iterator[None]:
    with override_settings():
        yield


@cached("results-later", resource_id="{n}", tenant_id="acme")
async def later(n: int) -> Later:
    """Says what is defined below."""
    return Later(n)


@dataclass
class Later:
    """Defined below."""

    amount: int


@dataclass(slots=True)
class Active:
    """Loads itself. With slots it is made twice."""

    amount: int

    @cached("results-own", resource_id="{self.amount}", tenant_id="acme")
    async def own(self) -> list[Active]:
        """By its name."""
        return [self]

    @cached("results-self", resource_id="{self.amount}", tenant_id="acme")
    async def this(self) -> Self:
        """As itself."""
        return self


def passes_on(function: Any) -> Any:
    """A decorator that is put above `@cached`, and so keeps its class from it."""

    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


@dataclass
class Wrapped:
    """Has methods of which nobody says that they are its own."""

    amount: int

    @passes_on
    @cached("results-wrapped", resource_id="{self.amount}", tenant_id="acme")
    async def own(self) -> Wrapped:
        """By its name."""
        return self

    @staticmethod
    @cached("results-wrapped", resource_id="{n}", tenant_id="acme")
    async def of_none(n: int) -> Wrapped:
        """Of no instance."""
        return Wrapped(n)

    @classmethod
    async def plain(cls, n: int) -> Wrapped:
        """Not cached."""
        return cls(n)

    @classmethod
    async def this(cls, n: int) -> Self:
        """As the class that it is called on."""
        return cls(n)


async def fetch(shelf: str, n: int) -> tuple[Later, ...]:
    """What a partial is made of."""
    return (Later(n), Later(len(shelf)))


async def test_what_is_defined_below_is_there_when_a_cache_is_opened() -> None:
    of_partial: Any = cached("results-partial", resource_id="{shelf}:{n}", tenant_id="acme")(
        functools.partial(fetch, "books")
    )
    for _ in range(2):  # a test's declarations end with it, a module's don't
        with override_settings(url=OPEN):
            async with lifespan() as cache:
                for _ in range(2):
                    assert await later(1) == Later(1)
                    assert await Active(2).own() == [Active(2)]
                    assert await Active(3).this() == Active(3)
                    assert await of_partial(4) == (Later(4), Later(5))
                assert await cache.get("results-later", 1, "acme") == Later(1)


async def test_a_method_of_which_nobody_says_so_names_its_class() -> None:
    of_class: Any = cached("results-wrapped", resource_id="{n}", tenant_id="acme", ignore=("cls",))
    bound, this = of_class(Wrapped.plain), of_class(Wrapped.this)
    async with lifespan(OPEN):
        for _ in range(2):
            assert await Wrapped(1).own() == Wrapped(1)
            assert await Wrapped.of_none(2) == Wrapped(2)
            assert await bound(3) == Wrapped(3)
            assert await this(4) == Wrapped(4)


async def test_a_function_that_is_put_into_a_class_names_it() -> None:
    async def load(self: Holder) -> Holder:
        return self

    @dataclass
    class Holder:
        """Has it later."""

        amount: int

    load.__qualname__ = f"{Holder.__qualname__}.load"
    of_holder: Any = cached("results-held", resource_id="{self.amount}", tenant_id="acme")(load)
    async with lifespan(OPEN):
        for _ in range(2):
            assert await of_holder(Holder(1)) == Holder(1)


async def test_of_a_local_class_that_nobody_says_it_is_told_what_helps() -> None:
    class Wrapped:
        """Not the module's."""

        @passes_on
        @cached("results-local", resource_id="1", tenant_id="acme")
        async def own(self) -> Wrapped:
            """By its name."""
            return self

    with pytest.raises(ConfigError, match="which class Wrapped is: put @cached above what wraps it"):
        async with lifespan(OPEN):
            pass
    del Wrapped


async def test_what_a_cache_has_by_then_comes_so_before_the_first_call() -> None:
    async with lifespan(OPEN) as cache:
        await cache.set("results-later", 5, {"amount": 5}, "acme")
        assert await later.get(5) == Later(5)


async def test_what_is_defined_while_a_cache_is_open_is_there_at_the_first_call() -> None:
    names: dict[str, Any] = {"cached": cached, "dataclass": dataclass, "__name__": __name__}
    async with lifespan(OPEN), Cache.open("memory://results-given") as given:
        names["given"] = given
        exec(
            "@cached('results-first', resource_id='{n}', tenant_id='acme')\n"
            "async def first(n) -> 'list[Row]': return [Row(n)]\n"
            "@cached('results-first', resource_id='{n}', tenant_id='acme', cache=given)\n"
            "async def of_given(n) -> 'Row': return Row(n)\n",
            names,
        )
        exec("@dataclass\nclass Row:\n    amount: int\n", names)
        for _ in range(2):
            assert await names["first"](1) == [names["Row"](1)]
            assert await names["of_given"](1) == names["Row"](1)


async def test_what_is_never_there_is_said() -> None:
    @cached("results-never", resource_id="{n}", tenant_id="acme")
    async def never(n: int) -> ForCheckers | None:
        raise NotImplementedError

    with pytest.raises(ConfigError, match=r"never says that it returns 'ForCheckers \| None', which can't be read"):
        async with lifespan(OPEN):
            pass
    async with Cache.open("memory://results-given") as given:
        there = cached("results-never", resource_id="{n}", tenant_id="acme", cache=given)(never.__wrapped__)
        for _ in range(2):
            with pytest.raises(ConfigError, match="can't be read"):
                await there(1)
    del never, there


async def test_a_function_that_is_gone_holds_up_nobody() -> None:
    def make() -> None:
        @cached("results-never", resource_id="{n}", tenant_id="acme")
        async def gone(n: int) -> ForCheckers:
            raise NotImplementedError

    make()
    async with lifespan(OPEN):
        assert await later(1) == Later(1)


async def test_a_class_that_is_gone_holds_up_nobody() -> None:
    def make() -> None:
        class Gone:
            """Holds itself until it is collected."""

            @cached("results-never", resource_id="{n}", tenant_id="acme")
            async def get(self, n: int) -> ForCheckers:
                raise NotImplementedError

    make()
    with override_settings(url=OPEN):
        async with lifespan():
            assert await later(1) == Later(1)


async def test_self_of_a_subclass_does_not_fit_the_one_model_of_the_type() -> None:
    @dataclass
    class Base:
        """Its class is the model."""

        n: int

        @cached("results-inherited", resource_id="{cls.__name__}:{n}", tenant_id="acme")
        @classmethod
        async def load(cls, n: int) -> Self:
            """As the class that it is called on."""
            return cls(n)

    class Child(Base):
        """Inherits it."""

    async with lifespan(OPEN) as cache:
        for kind in (Base, Child):
            assert [await kind.load(1), await kind.load(1)] == [kind(1), kind(1)]
        assert cache.stats().types["results-inherited"].loads == 3


async def test_two_models_of_one_type_are_refused_late_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def one(n: int) -> Any:
        raise NotImplementedError

    async def other(n: int) -> Later:
        raise NotImplementedError

    one.__annotations__["return"] = "list[DefinedLater]"
    by_type = cached("results-two", resource_id="{n}", tenant_id="acme")
    declared = [by_type(one), by_type(other)]
    monkeypatch.setitem(globals(), "DefinedLater", Later)
    with pytest.raises(ConfigError, match="decoded into one model"):
        async with lifespan(Settings(url=OPEN)):
            pass
    assert CacheManager._cache is None
    assert declared


@pytest.mark.parametrize("said", [Iterator[int], range, dict[str, range], 5])
def test_what_no_value_can_be_decoded_into_is_refused_at_once(said: Any) -> None:
    async def function(n: int) -> Any:
        raise NotImplementedError

    function.__annotations__["return"] = said
    with pytest.raises(ConfigError, match=r"function: values can't be decoded into.*say what comes back"):
        cached("results-wrong", resource_id="{n}", tenant_id="acme")(function)
