"""What checkers make of calls whose type depends on what they are given: loaders, and cached functions and methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Literal, assert_type
from uuid import UUID

from pydantic import BaseModel, SecretStr

from cachebus import (
    BlockingCache,
    BlockingWriteGuard,
    Cache,
    CachedValue,
    CacheManager,
    DontCache,
    EvictedEvent,
    Fresh,
    Hook,
    InvalidatedEvent,
    KeyIds,
    NotModified,
    Policy,
    Previous,
    Receipt,
    Settings,
    TypedCache,
    blocking,
    cached,
    get_with_cache_aside,
)
from cachebus.producers import BlockingProducer
from cachebus.testing import Fleet


async def load(resource_id: str) -> dict[str, int]:
    """As most are."""
    return {resource_id: 1}


async def load_perhaps(resource_id: str) -> int | None:
    """One whose source may have nothing."""
    return len(resource_id) or None


def load_sync(resource_id: str) -> int:
    """Likewise, but sync."""
    return len(resource_id)


def load_either(resource_id: str) -> Awaitable[str]:
    """Sync, and what it gives is awaited."""
    return load_text(resource_id)


async def load_text(resource_id: str) -> str:
    """A text."""
    return resource_id


class Loader:
    """An object that is a loader, and has some."""

    async def __call__(self, resource_id: str, tenant_id: str) -> bytes:
        return (resource_id + tenant_id).encode()

    async def rows(self, resource_id: str) -> list[int]:
        """A method."""
        return [len(resource_id)]

    def row(self, resource_id: str) -> list[str]:
        """A sync one."""
        return [resource_id]


async def loaded(cache: Cache, unknown: Callable[..., Any]) -> None:
    """`get_or_load` gives what its loader gives."""
    assert_type(await cache.get_or_load("a", 1, load, "acme"), dict[str, int])
    assert_type(await cache.get_or_load("a", 1, load_perhaps, "acme"), int | None)
    assert_type(await cache.get_or_load("a", 1, load_sync, "acme"), int)
    assert_type(await cache.get_or_load("a", 1, load_either, "acme"), str)
    assert_type(await cache.get_or_load("a", 1, Loader(), "acme"), bytes)
    assert_type(await cache.get_or_load("a", 1, Loader().rows, "acme"), list[int])
    assert_type(await cache.get_or_load("a", 1, Loader().row, "acme"), list[str])
    assert_type(await cache.get_or_load("a", 1, lambda: 1, "acme"), int)
    assert_type(await cache.get_or_load("a", 1, lambda: load("x"), "acme", ttl=60), dict[str, int])
    assert_type(await cache.get_or_load("a", 1, partial(load, "x"), "acme", search_hierarchy=True), dict[str, int])
    assert_type(await cache.get_or_load("a", 1, partial(load_sync, "x"), "acme", tags=["t"]), int)
    assert_type(await cache.get_or_load("a", 1, unknown, "acme"), Any)
    assert_type(
        await cache.get_or_load("a", 1, loader=load, tenant_id="acme", after=Receipt.parse("0.0.1")), dict[str, int]
    )


async def load_fresh(resource_id: str) -> Fresh[int]:
    """One that says how long its value lives."""
    return Fresh(len(resource_id), ttl_s=5, soft_ttl_s=1, tags=["t"], l1_ttl_s=2, version="e")


async def load_if_modified(resource_id: str, previous: Previous[str] | None) -> Fresh[str] | NotModified:
    """One that is told what is still cached."""
    return NotModified() if previous is not None and previous.value == resource_id else Fresh(resource_id)


async def load_anything(resource_id: str) -> Fresh[int] | DontCache[int] | NotModified | int:
    """One that decides by the value."""
    return DontCache(0) if resource_id else 1


async def load_fresh_or_nothing(resource_id: str) -> Fresh[dict[str, int]] | None:
    """One whose source may have nothing."""
    return Fresh({resource_id: 1}) if resource_id else None


async def load_fresh_perhaps(resource_id: str) -> Fresh[int | None] | DontCache[int]:
    """Likewise, and it says how long that holds."""
    return Fresh(None, ttl_s=1) if resource_id else DontCache(1)


def load_fresh_sync(resource_id: str) -> Fresh[int] | NotModified:
    """A sync one."""
    return Fresh(len(resource_id))


async def decided(cache: Cache) -> None:
    """What a loader decides of its value is not the value."""
    assert_type(await cache.get_or_load("a", 1, load_fresh, "acme", refresh=True), int)
    assert_type(await cache.get_or_load("a", 1, load_if_modified, "acme"), str)
    assert_type(await cache.get_or_load("a", 1, load_anything, "acme"), int)
    assert_type(await cache.get_or_load("a", 1, load_fresh_or_nothing, "acme"), dict[str, int] | None)
    assert_type(await cache.get_or_load("a", 1, load_fresh_perhaps, "acme"), int | None)
    assert_type(await cache.get_or_load("a", 1, load_fresh_sync, "acme"), int)
    assert_type(await cache.get_or_load("a", 1, lambda: Fresh(1), "acme"), int)
    assert_type(await cache.get_or_load("a", 1, lambda: load_fresh("x"), "acme"), int)
    assert_type(await CacheManager.get_or_load("a", 1, load_if_modified, "acme"), str)
    value, _ = await get_with_cache_aside("a", 1, "acme", load_anything)
    assert_type(value, int | None)
    assert_type(await cached_fresh("x"), int)
    assert_type(await cached_if_modified("x"), str)
    assert_type(await cached_fresh_or_nothing("x"), dict[str, int] | None)
    seen = await cache.look("a", 1, "acme")
    assert_type(seen, CachedValue[Any])
    assert_type(seen.ttl_left_s, float | None)
    assert_type((await CacheManager.look("a", 1, "acme")).tags, tuple[str, ...])
    with cache.bypassed():
        assert_type(await cache.get_or_load("a", 1, load_anything, "acme"), int)


@cached("fresh", resource_id="{resource_id}", tenant_id="acme")
async def cached_fresh(resource_id: str) -> Fresh[int]:
    """A cached function that says how long its result lives."""
    return Fresh(len(resource_id))


@cached("modified", resource_id="{resource_id}", tenant_id="acme")
async def cached_if_modified(resource_id: str, previous: Previous[str] | None = None) -> Fresh[str] | NotModified:
    """One that is told what is still cached."""
    return NotModified() if previous is not None else Fresh(resource_id)


@cached("nothing", resource_id="{resource_id}", tenant_id="acme")
async def cached_fresh_or_nothing(resource_id: str) -> Fresh[dict[str, int]] | None:
    """One whose source may have nothing."""
    return Fresh({resource_id: 1}) if resource_id else None


async def load_rows(ids: list[int]) -> dict[int, str]:
    """What loads several."""
    return {one: str(one) for one in ids}


def load_rows_sync(ids: Sequence[str], tenant_id: str) -> Mapping[str, bytes]:
    """A sync one."""
    return {one: tenant_id.encode() for one in ids}


async def load_fresh_rows(ids: list[int]) -> dict[int, Fresh[str]]:
    """One that says how long each lives."""
    return {one: Fresh(str(one)) for one in ids}


def load_mixed_rows(ids: list[int]) -> Mapping[int, Fresh[bytes] | bytes]:
    """One that decides of some."""
    return {one: Fresh(b"") if one else b"" for one in ids}


async def batches(cache: Cache) -> None:
    """Those of many give what theirs give, by the ids that they are given."""
    assert_type(await cache.get_or_load_many("a", [1, 2], load_rows, "acme"), dict[int, str])
    assert_type(await cache.get_or_load_many("a", ["x", "y"], load_rows_sync, tenant_id="acme"), dict[str, bytes])
    assert_type(await cache.get_or_load("a", 1, batch=load_rows, tenant_id="acme"), str | None)
    assert_type(await cache.get_or_load("a", 1, batch=load_rows_sync, batch_max=50), bytes | None)
    assert_type(await CacheManager.get_or_load_many("a", [1, 2], load_rows, "acme", ttl=60), dict[int, str])
    assert_type(await cache.get_or_load_many("a", [1, 2], load_fresh_rows, "acme"), dict[int, str])
    assert_type(await cache.get_or_load_many("a", [1, 2], load_mixed_rows, "acme"), dict[int, bytes])
    assert_type(await cache.get_or_load("a", 1, batch=load_fresh_rows, tenant_id="acme"), str | None)
    assert_type(await cache.get_or_load("a", 1, batch=load_mixed_rows, tenant_id="acme"), bytes | None)


async def process_wide() -> None:
    """The verbs of `CacheManager` are the cache's."""
    assert_type(await CacheManager.get_or_load("a", 1, load, "acme"), dict[str, int])
    assert_type(await CacheManager.get_or_load("a", 1, load_sync, tenant_id="acme", ttl=60), int)
    assert_type(await CacheManager.get("a", 1, "acme", None, None, None, True, False), Any)
    assert_type(await CacheManager.set("a", 1, {}, tenant_id="acme", tags=["t"], wait="nodes"), Receipt)
    assert_type(await CacheManager.set_if_not_exists("a", 1, {}, ttl=60, tenant_id="acme"), bool)
    assert_type(await CacheManager.delete("a", 1, "acme", contexts="all"), Receipt)
    assert_type(await CacheManager.invalidate("a", "*", "acme", wait="nodes"), Receipt)
    assert_type(await CacheManager.invalidate_scope("acme", "a"), Receipt)
    assert_type(await CacheManager.invalidate_tags(["t"], "acme"), Receipt)
    assert_type((await CacheManager.get_many("a", [1, 2], "acme")).get(1), Any | None)


async def aside() -> None:
    """`get_with_cache_aside` gives what its functions give, or None."""
    value, _ = await get_with_cache_aside("a", 1, "acme", load)
    assert_type(value, dict[str, int] | None)
    value, _ = await get_with_cache_aside("a", 1, "acme", fetch_from_db_func=lambda: load("x"), ttl=60, agent_id=7)
    count, _ = await get_with_cache_aside("a", 1, "acme", load_sync)
    assert_type(count, int | None)
    both, _ = await get_with_cache_aside("a", 1, "acme", load_perhaps, load_text)
    assert_type(both, int | str | None)
    mixed, _ = await get_with_cache_aside("a", 1, "acme", load_sync, generate_func=load)
    assert_type(mixed, int | dict[str, int] | None)
    other, _ = await get_with_cache_aside("a", 1, "acme", load, load_sync, raise_errors=True)
    assert_type(other, dict[str, int] | int | None)
    made, _ = await get_with_cache_aside("a", 1, "acme", generate_func=load_text)
    assert_type(made, str | None)
    anything, _ = await get_with_cache_aside("a", 1, "acme")
    assert_type(anything, Any)
    decoded, metrics = await get_with_cache_aside("a", 1, "acme", load, deserializer=int)
    assert_type(decoded, Any)
    assert_type(metrics["cache_hit"], bool)
    assert_type(metrics["latency_ms"], float)
    if metrics["source"] == "error":
        assert_type(metrics["error"], BaseException | None)


@cached("page", resource_id="{number}", tenant_id="acme", ignore=["quick"])
async def page(number: int, *, quick: bool = False) -> dict[str, str]:
    """A cached function."""
    return {str(number): str(quick)}


@cached("rows", resource_id="{kind.__name__}:{number}", tenant_id="acme")
async def row(kind: type[int], number: int) -> int:
    """One whose first parameter is a class, and that is no class method."""
    return kind(number)


class Shelf:
    """Methods of every kind."""

    @cached("book", resource_id="{number}", tenant_id="acme", ignore=["quick"])
    async def book(self, number: int, quick: bool = False) -> str:
        """A method."""
        return f"{number} {quick}"

    @cached("shelf", resource_id="{number}", tenant_id="acme", ignore=("cls",))
    @classmethod
    async def of(cls, number: int) -> list[int]:
        """A class method."""
        return [number]

    @cached("count", resource_id="{number}", tenant_id="acme")
    @staticmethod
    async def count(number: int) -> bytes:
        """A static method."""
        return bytes(number)


class Upper(Shelf):
    """Inherits them."""


async def decorated(shelf: Shelf, upper: Upper) -> None:
    """What is called, and what can be done with it."""
    assert_type(await page(1, quick=True), dict[str, str])
    assert_type(await page(number=1), dict[str, str])
    assert_type(await page.get(1), dict[str, str] | None)
    assert_type(await page.refresh(1, quick=True), dict[str, str])
    assert_type(await page.invalidate(1), Receipt)
    assert_type(page.key(1)["data_type"], str)
    assert_type(await CacheManager.get(**page.key(1)), Any)
    assert_type(await row(int, number=1), int)
    assert_type(await shelf.book(1, quick=True), str)
    assert_type(await shelf.book.get(number=1), str | None)
    assert_type(await shelf.book.refresh(1), str)
    assert_type(await Shelf.book(shelf, 1), str)
    assert_type(await Upper.book.invalidate(upper, 1), Receipt)
    assert_type(await upper.book(1), str)
    assert_type(await Shelf.of(1), list[int])
    assert_type(await Shelf.of.get(number=1), list[int] | None)
    assert_type(await shelf.of.refresh(1), list[int])
    assert_type(await Upper.of(1), list[int])
    assert_type(await upper.of.invalidate(1), Receipt)
    assert_type(await Shelf.count(1), bytes)
    assert_type(await Shelf.count.get(number=1), bytes | None)
    assert_type(await Upper.count.refresh(1), bytes)


class Product(BaseModel):
    """A model."""

    name: str


async def load_products(resource_ids: Sequence[int]) -> Mapping[int, Product]:
    return {number: Product(name="x") for number in resource_ids}


async def load_product(resource_id: str) -> Product:
    """One that always has it."""
    return Product(name=resource_id)


async def load_product_perhaps(resource_id: str) -> Product | None:
    """One that may not."""
    return Product(name=resource_id) if resource_id else None


def load_fresh_product(resource_id: str) -> Fresh[Product]:
    """One that says how long it lives."""
    return Fresh(Product(name=resource_id))


async def load_changed_product(resource_id: str, previous: Previous[Product] | None) -> Fresh[Product] | NotModified:
    """One that is told what is still cached."""
    return NotModified() if previous else Fresh(Product(name=resource_id))


def load_brief_product(resource_id: str) -> DontCache[Product] | None:
    """One whose source may have nothing."""
    return DontCache(Product(name=resource_id)) if resource_id else None


async def load_fresh_products(resource_ids: Sequence[int]) -> Mapping[int, Fresh[Product]]:
    """Several, and how long each lives."""
    return {number: Fresh(Product(name="x")) for number in resource_ids}


async def handles(cache: Cache) -> None:
    """A handle's verbs have its model's type."""
    products = assert_type(cache.of("product", model=Product, tags=["catalog"]), TypedCache[Product])
    assert_type(CacheManager.of("product", model=Product), TypedCache[Product])
    assert_type(cache.of("names", model=list[str], ttl=60), TypedCache[list[str]])
    assert_type(cache.of("anything"), TypedCache[Any])
    assert_type(await products.get(7, "acme"), Product | None)
    assert_type(await products.get(7, tenant_id="acme", default=0), Product | int)
    assert_type(await products.get_many([7, "8"], "acme"), dict[str | int | UUID, Product])
    assert_type(await products.get_or_load(7, load_product, "acme"), Product)
    assert_type(await products.get_or_load(7, batch=load_products, tenant_id="acme"), Product | None)
    assert_type(await products.get_or_load_many([7, 8], load_products, "acme"), dict[int, Product])
    assert_type(await products.get_or_load(7, load_fresh_product, "acme"), Product)
    assert_type(await products.get_or_load(7, load_changed_product, "acme"), Product)
    assert_type(await products.get_or_load(7, load_brief_product, "acme"), Product | None)
    assert_type(await products.get_or_load(7, lambda: Fresh(Product(name="x")), "acme"), Product)
    assert_type(await products.get_or_load(7, batch=load_fresh_products, tenant_id="acme"), Product | None)
    assert_type(await products.get_or_load_many([7, 8], load_fresh_products, "acme"), dict[int, Product])
    assert_type((await products.look(7, "acme")).value, Product | None)
    assert_type(await products.set_many({7: Product(name="x")}, "acme"), Receipt)
    assert_type(await products.invalidate_many([7], "acme"), Receipt)
    assert_type(await products.get_or_load(7, load_product_perhaps, "acme"), Product | None)
    assert_type(await products.get_or_load(7, lambda: Product(name="x"), "acme"), Product)
    assert_type(await products.set(7, Product(name="x"), "acme", wait="nodes"), Receipt)
    assert_type(await products.add(7, Product(name="x"), "acme"), bool)
    assert_type(await products.invalidate(7, "acme", reason="import"), Receipt)
    assert_type(await products.delete(7, "acme"), Receipt)
    mine = assert_type(products.within(tenant_id="acme", agent_id="a7"), TypedCache[Product])
    assert_type(await mine.get(7), Product | None)


async def hooks(cache: Cache) -> None:
    """What a callback gets has the type of the hook."""
    assert_type(cache.on("loaded", lambda event: print(event.key.resource_id, event.took_s)), Hook)
    with cache.on("degraded", lambda event: print(event.part, event.why)) as hook:
        assert_type(hook, Hook)
    hook.remove()

    @cache.on("invalidated")
    async def replaced(event: InvalidatedEvent) -> None:
        assert_type(event.reason, str)

    @cache.on("evicted", timeout_s=1)
    def gone(event: EvictedEvent) -> int:
        return event.size_bytes

    assert_type(gone(EvictedEvent(0.0, KeyIds("a", "b"), 1)), int)
    print(replaced)


async def told_how(receipt: Receipt) -> None:
    """Functions of `@cached` keep their types with options."""
    assert_type(await page.with_options(after=receipt)(1, quick=True), dict[str, str])
    assert_type(await page.with_options(wait="nodes", reason="import").invalidate(1), Receipt)
    assert_type(await Shelf().book.with_options(use_memory=False).get(1), str | None)


def declared() -> None:
    """Settings and policies, with what pydantic makes the fields of."""
    settings = Settings(
        url="memory://",
        password="secret",
        bus="redis",
        on_outage="miss",
        logs="loguru",
        policies={"a": Policy(ttl_s=60, copy=True), "b": {"ttl_s": 60, "codec": "f32", "tags": ["t"]}},
    )
    assert_type(settings.url, SecretStr)
    assert_type(settings.on_outage, Literal["raise", "miss"])
    assert_type(settings.policies, dict[str, Policy])
    policy = Policy(ttl_s=None, retry_on=[KeyError], model=dict[str, int], tags=("t",), retries=0)
    assert_type(policy.tags, tuple[str, ...])
    assert_type(policy.codec, Literal["msgpack", "f32", "raw"])
    given: dict[str, Any] = {"url": "memory://"}
    assert_type(Settings(**given), Settings)
    assert_type(Fleet(2, staleness_bound_s=1.0, policies={"a": {"l1": False}}), Fleet)


def synchronous(cache: BlockingCache, producer: BlockingProducer) -> None:
    """The verbs without await: what they give, loaders of each kind, and what is decorated."""

    def load(resource_id: str) -> dict[str, int]:
        return {resource_id: 1}

    async def load_async(resource_id: str) -> bytes:
        return resource_id.encode()

    in_thread = blocking(load)
    loader: Callable[[str], Coroutine[Any, Any, dict[str, int]]] = in_thread
    assert_type(cache.get_or_load("config", "x", load, "acme"), dict[str, int])
    assert_type(cache.get_or_load("config", "x", load_async, "acme"), bytes)
    found: dict[str, int] = cache.get_or_load("config", "x", loader, "acme")
    print(found)
    assert_type(cache.get_or_load("config", "x", in_thread, "acme"), dict[str, int])
    assert_type(cache.get_or_load("config", "x", blocking(load), "acme"), dict[str, int])
    assert_type(cache.get_many("config", ["x"], "acme"), dict[str | int | UUID, Any])
    assert_type(cache.set("config", "x", 1, "acme", wait="nodes"), Receipt)
    assert_type(cache.invalidate("config", "x", "acme"), Receipt)
    assert_type(cache.add("config", "x", 1, tenant_id="acme"), bool)
    assert_type(cache.increment("hits", "acme"), int)
    assert_type(cache.ready(), bool)
    assert_type(cache.stats().hit_ratio, float)
    with cache, cache.write_guard([("config", "x")], "acme") as guard:
        assert_type(guard, BlockingWriteGuard)
        assert_type(guard.receipt, Receipt)
    with BlockingCache.open("memory://", timeout_s=5) as other, producer:
        assert_type(other, BlockingCache)
        assert_type(producer.invalidate("config", "x", "acme"), Receipt)
        assert_type(producer.invalidate_type("config"), Receipt)

    @cache.cached("price", resource_id="{number}", tenant_id="acme")
    def price(number: int) -> list[int]:
        return [number]

    @cache.cached("fresh", resource_id="{number}", tenant_id="acme")
    def fresh(number: int) -> Fresh[list[int]] | NotModified:
        return Fresh([number])

    @cache.cached("brief", resource_id="{number}", tenant_id="acme")
    def brief(number: int) -> DontCache[int] | None:
        return DontCache(number) if number else None

    assert_type(fresh(7), list[int])
    assert_type(fresh.get(7), list[int] | None)
    assert_type(fresh.refresh(7), list[int])
    assert_type(brief(7), int | None)
    assert_type(cache.get_or_load("config", "x", load_fresh_sync, "acme"), int)
    assert_type(cache.get_or_load_many("a", [1], load_fresh_rows, "acme"), dict[int, str])
    assert_type(cache.get_or_load_many("a", [1], load_mixed_rows, "acme"), dict[int, bytes])
    assert_type(cache.get_or_load("a", 1, batch=load_fresh_rows, tenant_id="acme"), str | None)

    class Shop:
        @cache.cached("price", resource_id="{number}", tenant_id="acme")
        def dear(self, number: int) -> str:
            return str(number)

    assert_type(price(7), list[int])
    assert_type(price.get(number=7), list[int] | None)
    assert_type(price.refresh(7), list[int])
    assert_type(price.invalidate(7), Receipt)
    assert_type(Shop().dear(7), str)
    assert_type(Shop().dear.get(7), str | None)
