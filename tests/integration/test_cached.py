"""`@cached`: what its results are cached by, as what they come, and what can be done with them."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from cachebus import Cache, CacheManager, ConfigError, Context, InvalidKey, Policy, TenantRequired, cached, lifespan
from cachebus.base.definition import Definition
from cachebus.settings import Settings
from tests.support.caches import nodes, quick

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_called() -> Iterator[None]:
    calls.clear()
    known = dict(CacheManager._models)
    yield
    CacheManager._models.clear()
    CacheManager._models.update(known)


@pytest.fixture
async def cache(redis_url: str) -> AsyncIterator[Cache]:
    """The process-wide one."""
    async with lifespan(quick(redis_url)) as opened:
        yield opened


class Price(BaseModel):
    """What msgpack alone would bring back as a dict."""

    amount: Decimal


@dataclass
class Line:
    """Likewise."""

    text: str


# -- what is decorated -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resource_id": "{a}"}, r"calls that differ in b, c alone would share one result.*ignore=\('b', 'c'\)"),
        ({"resource_id": "{a}", "ignore": ["b"]}, "calls that differ in c alone"),
        ({"resource_id": "{a}:{b}", "ignore": ["c", "d"]}, "ignore names d"),
        ({"resource_id": "{a}:{b}", "tags": ["{d}"], "ignore": ["c"]}, "no such argument"),
        ({"resource_id": "{a}:{b}:{c}", "tags": "shelf"}, "sequences of strings"),
    ],
)
def test_an_argument_that_results_may_differ_by_is_not_overlooked(options: dict[str, Any], message: str) -> None:
    async def function(a: int, b: int, *, c: bool = False) -> int:
        return a + b

    with pytest.raises(ConfigError, match=message):
        cached("sum", tenant_id="acme", **options)(function)


async def test_tags_and_tenant_are_templates_too(cache: Cache) -> None:
    @cached("book", resource_id="{name}", tenant_id="{shop}", tags=["shelf:{shelf}", "books"])
    async def book(name: str, shop: str, shelf: str) -> str:
        calls.append(name)
        return name

    for _ in range(2):
        await book("a", "acme", "x")
        await book("b", "acme", shelf="y")
    assert calls == ["a", "b"]
    await cache.invalidate_tags(["shelf:x"], "acme")
    await book("a", "acme", "x")
    await book("b", "acme", "y")
    assert calls == ["a", "b", "a"]
    await cache.invalidate_tags(["books"], "acme")
    await book("b", "acme", "y")
    assert calls == ["a", "b", "a", "b"]


class Shelf(StrEnum):
    """An id is what it holds, however it shows itself."""

    HIGH = "high"

    def __str__(self) -> str:
        return "no shelf"


async def test_a_tag_is_what_its_argument_holds(cache: Cache) -> None:
    @cached("book", resource_id="{name}", tenant_id="acme", tags=["{shelf}"])
    async def book(name: str, shelf: Any) -> str:
        calls.append(name)
        return name

    number = uuid4()
    for name, shelf, tag in (("a", Shelf.HIGH, "high"), ("b", 7, "7"), ("c", number, str(number))):
        for expected in ([name], [name], [name, name]):
            if expected == [name, name]:
                await cache.invalidate_tags([tag], "acme")
            await book(name, shelf)
            assert calls == expected
        calls.clear()
    await book("d", None)
    for wrong in (True, 1.5, object(), ""):
        with pytest.raises(InvalidKey, match="tag"):
            await book("e", wrong)
    assert calls == ["d"]


async def test_without_a_template_all_arguments_count(cache: Cache) -> None:
    @cached("sum", tenant_id="{tenant}", ignore=["trace"])
    async def total(tenant: str, *numbers: int, scale: float = 1.0, trace: str = "", **more: Any) -> float:
        calls.append(numbers)
        return sum(numbers) * scale

    for given in ({}, {"scale": 2.0}, {"trace": "t1"}, {"other": 1}):
        assert await total("acme", 1, 2, **given) == 3 * given.get("scale", 1.0)  # type: ignore[arg-type]
    assert await total("acme", 1, 2, scale=1.0) == 3.0
    assert await total("acme", 12) == 12.0
    assert await total("globex", 1, 2) == 3.0
    assert len(calls) == 5

    @cached("sum", tenant_id="acme")
    async def other(a: int) -> int:
        calls.append("other")
        return -a

    assert await other(1) == -1
    assert other.key(1)["resource_id"] != total.key("acme", 1)["resource_id"]


async def test_the_tenant_may_surround_the_call(cache: Cache) -> None:
    @cached("page", resource_id="{name}")
    async def page(name: str) -> str:
        calls.append(name)
        return name

    with Context(tenant_id="acme"):
        await page("p")
        await page("p")
    assert calls == ["p"]
    with pytest.raises(TenantRequired):
        await page("p")


# -- as what results come ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_l1", [True, False])
async def test_what_the_annotation_says_is_what_comes(redis_url: str, *, use_l1: bool) -> None:
    @cached("price", resource_id="{product}", tenant_id="acme")
    async def price(product: int) -> Price | None:
        calls.append(product)
        return Price(amount=Decimal("1.10"))

    @cached("lines", resource_id="{product}", tenant_id="acme")
    async def lines(product: int) -> list[Line]:
        return [Line("a"), Line("b")]

    async with lifespan(quick(redis_url, use_memory_cache=use_l1)):
        for _ in range(3):
            found = await price(1)
            assert found is not None
            assert found.amount == Decimal("1.10")
            assert [line.text for line in await lines(1)] == ["a", "b"]
    assert calls == [1]


async def test_a_policy_that_is_registered_later_keeps_the_model(cache: Cache) -> None:
    @cached("price", resource_id="{product}", tenant_id="acme")
    async def price(product: int) -> Price:
        return Price(amount=Decimal(1))

    cache.register(policies={"price": Policy(ttl_s=60)})
    assert isinstance(await price(1), Price)
    assert isinstance(await price(1), Price)


async def test_two_models_of_one_type_are_refused(redis_url: str) -> None:
    @cached("price", resource_id="{product}", tenant_id="acme")
    async def price(product: int) -> Price:
        return Price(amount=Decimal(1))

    with pytest.raises(ConfigError, match="decoded into one model"):

        @cached("price", resource_id="{product}", tenant_id="acme")
        async def line(product: int) -> Line:
            return Line("x")

    with pytest.raises(ConfigError, match=r"price returns .*Price.*the policy of 'price' has the model .*Line"):
        async with lifespan(quick(redis_url, policies={"price": Policy(model=Line)})):
            pass


def _declared(model: Any, *, module: str = __name__, cache: Cache | None = None) -> None:
    """As by a function of that module that returns such models."""

    async def load(number: int) -> Any:
        raise NotImplementedError

    load.__module__, load.__annotations__["return"] = module, model
    cached("price", resource_id="{number}", tenant_id="acme", cache=cache)(load)


@pytest.mark.parametrize("given", [True, False])
def test_functions_of_one_name_are_told_apart_by_their_modules(*, given: bool) -> None:
    cache = Cache.open("memory://") if given else None
    _declared(Price, module="users", cache=cache)
    _declared(Price, module="orders", cache=cache)
    with pytest.raises(ConfigError, match=r"orders\..*load returns .*Line.*and users\..*load .*Price"):
        _declared(Line, module="orders", cache=cache)


@pytest.mark.parametrize("given", [True, False])
def test_functions_that_one_function_makes_are_told_apart_by_their_models(*, given: bool) -> None:
    cache = Cache.open("memory://") if given else None
    _declared(Price, cache=cache)
    _declared(Price, cache=cache)
    with pytest.raises(ConfigError, match="decoded into one model"):
        _declared(Line, cache=cache)


def test_a_module_that_is_loaded_anew_may_say_another_model() -> None:
    text = "from dataclasses import dataclass\n@dataclass\nclass {0}:\n    a: int\nasync def load(n) -> {0}: ..."
    for model in ("One", "One", "Other"):
        module: dict[str, Any] = {"__name__": __name__}
        exec(text.format(model), module)
        cached("price", resource_id="{n}", tenant_id="acme")(module["load"])
        assert CacheManager._models["price"][0] is module[model]


async def test_of_a_cache_that_was_given(redis_url: str) -> None:
    async with nodes(redis_url, 1) as (own,):

        @cached("price", resource_id="{product}", tenant_id="acme", cache=own)
        async def price(product: int) -> Price:
            return Price(amount=Decimal(1))

        assert isinstance(await price(1), Price)
        assert isinstance(await own.get("price", 1, "acme"), Price)


# -- what can be done --------------------------------------------------------------------------------------------


async def test_key_get_invalidate_and_refresh(cache: Cache) -> None:
    @cached("page", resource_id="{book}:{number}", tenant_id="{tenant}")
    async def page(tenant: str, book: str, number: int) -> int:
        calls.append(number)
        return len(calls)

    where = ("acme", "a", 7)
    assert page.key(*where) == {"data_type": "page", "resource_id": "a:7", "tenant_id": "acme"}
    assert await page.get(*where) is None
    assert await page(*where) == 1
    assert await page.get(*where) == 1
    assert await cache.get(**page.key(*where)) == 1
    assert (await page.invalidate(*where)).status == "applied"
    assert await page.get(*where) is None
    assert await page(*where) == 2
    assert await page.refresh(*where) == 3
    assert await page.get(*where) == 3


class Repository:
    """With every kind of method."""

    def __init__(self, shop: str) -> None:
        self.shop = shop

    @cached("product", resource_id="{product}", tenant_id="{self.shop}")
    async def by_id(self, product: int) -> str:
        """Of one shop."""
        calls.append(product)
        return f"{self.shop}'s {product}"

    @cached("of-class", resource_id="{cls.__name__}:{product}", tenant_id="acme")
    @classmethod
    async def of_class(cls, product: int) -> str:
        calls.append(product)
        return cls.__name__

    @cached("of-nobody", resource_id="{product}", tenant_id="acme")
    @staticmethod
    async def of_nobody(product: int) -> int:
        calls.append(product)
        return product


async def test_methods(cache: Cache) -> None:
    one, other = Repository("acme"), Repository("globex")
    for _ in range(2):
        assert await one.by_id(1) == "acme's 1"
        assert await other.by_id(1) == "globex's 1"
        assert await Repository.by_id(one, 1) == "acme's 1"
        assert await Repository.of_class(1) == await one.of_class(1) == "Repository"
        assert await Repository.of_nobody(1) == await one.of_nobody(1) == 1
    assert calls == [1, 1, 1, 1]
    await one.by_id.invalidate(1)
    assert await other.by_id.get(1) == "globex's 1"
    assert await one.by_id.get(1) is None
    assert await one.by_id.refresh(1) == "acme's 1"
    await Repository.of_class.invalidate(1)
    await Repository.of_nobody.invalidate(1)
    assert await one.of_class.get(1) is None
    assert await one.of_nobody.get(1) is None


async def test_it_looks_like_the_function(cache: Cache) -> None:
    @cached("page", resource_id="{name}", tenant_id="acme")
    async def page(name: str) -> str:
        """A page."""
        return name

    assert (page.__name__, page.__doc__, page.__module__) == ("page", "A page.", __name__)
    assert list(inspect.signature(page).parameters) == ["name"]
    one, other = Repository("acme").by_id, Repository("globex").by_id
    assert list(inspect.signature(one).parameters) == ["product"]
    assert inspect.signature(one) is inspect.signature(other)  # nothing is worked out when a method is looked up
    assert (one.__name__, one.__doc__) == ("by_id", "Of one shop.")
    assert inspect.iscoroutinefunction(one) == (sys.version_info >= (3, 12))
    assert repr(page).startswith("<cached ")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(page("p"))
    assert task.result() == "p"
    with pytest.raises(TypeError, match="missing"):
        await page()  # type: ignore[call-arg]


def test_a_settings_policy_keeps_the_rest_of_what_it_says() -> None:
    """The model is added to it, and nothing else is changed."""
    settings = Settings(url="memory://", policies={"price": Policy(ttl_s=7, tags=("prices",))})
    cache = Cache.open(settings)
    cache.decode_into("price", Price, Definition.of(nodes))
    assert cache._policies["price"] == Policy(ttl_s=7, tags=("prices",), model=Price)
