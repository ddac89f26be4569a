"""What no checker may accept: each line with a mark is an error of these codes to mypy, then to pyright."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from cachebus import (
    BlockingCache,
    Cache,
    CacheManager,
    Context,
    LoadedEvent,
    Policy,
    Settings,
    blocking,
    cached,
    get_with_cache_aside,
    with_context,
)
from cachebus.producers import SyncOutboxProducer
from cachebus.testing import Fleet, override_settings


async def load(resource_id: str, tenant_id: str) -> dict[str, int]:
    """A loader."""
    return {resource_id: len(tenant_id)}


@cached("agent", resource_id="{agent_id}", tenant_id="{tenant_id}")
async def agent(agent_id: str, tenant_id: str) -> int:
    """A cached function."""
    return len(agent_id + tenant_id)


@with_context(tenant=True)
def in_context(tenant_id: str, agent_id: str) -> int:
    """A function in a context."""
    return len(tenant_id + agent_id)


async def verbs(cache: Cache) -> None:
    """Of a cache."""
    await cache.get_or_load("config", "x", 5)  # call-overload | reportArgumentType
    await cache.get_or_load("config", "x", load("x", "t"))  # call-overload | reportArgumentType
    await cache.get_or_load("config", "x", load, tenant="acme")  # call-overload | reportCallIssue
    found: int = await cache.get_or_load("config", "x", load, "acme")  # arg-type | reportAssignmentType
    print(found)
    await cache.invalidate("config", "x", "acme", contexts="every")  # arg-type | reportArgumentType
    await cache.set("config", "x", 1, "acme", wait="node")  # arg-type | reportArgumentType
    await cache.set("config", "x", 1, "acme", tt=60)  # call-arg | reportCallIssue
    await cache.get_or_load("config", "x", load, "acme", batch=load)  # call-overload | reportCallIssue
    await cache.get_or_load_many("config", ["x"], load, tenant="acme")  # call-overload | reportCallIssue
    await cache.get("config", 1.5, "acme")  # arg-type | reportArgumentType


async def process_wide() -> None:
    """Of the process-wide one."""
    await CacheManager.get("config", "x", tenant="acme")  # call-arg | reportCallIssue
    await CacheManager.get("config", None, "acme")  # arg-type | reportArgumentType
    await CacheManager.set("config", "x")  # call-arg | reportCallIssue
    await CacheManager.set("config", "x", 1, "acme", wait="node")  # arg-type | reportArgumentType
    await CacheManager.get_or_load("config", "x")  # call-overload | reportCallIssue
    await CacheManager.get_or_load("config", "x", load, "acme", tll=1)  # call-overload | reportCallIssue
    await CacheManager.invalidate("config", "x", "acme", contexts="every")  # arg-type | reportArgumentType
    await CacheManager.set_if_not_exists("config", "x", 1, tenant="acme")  # call-arg | reportCallIssue
    CacheManager.write_guard([("config", "x")], tenant="acme")  # call-arg | reportCallIssue


async def aside() -> None:
    """The helper."""
    await get_with_cache_aside("config", "x", "acme", load, tll=60)  # call-overload | reportCallIssue
    await get_with_cache_aside("config", "x", "acme", 5)  # call-overload | reportArgumentType
    await get_with_cache_aside("config", "x", "acme", load, ctx="a")  # call-overload | reportArgumentType
    value, metrics = await get_with_cache_aside("config", "x", "acme", load)
    print(value["x"])  # index | reportOptionalSubscript
    print(metrics["sauce"])  # typeddict-item | reportGeneralTypeIssues
    print(metrics["source"] == "databse")  # comparison-overlap | reportUnnecessaryComparison


def declared() -> None:
    """Settings, policies, fleets."""
    print(Settings(urll="memory://"))  # call-arg | reportCallIssue
    print(Settings(url=7))  # arg-type | reportArgumentType
    print(Settings(on_outage="mis"))  # arg-type | reportArgumentType
    print(Settings(bus="rabbit"))  # arg-type | reportArgumentType
    print(Settings(logs="print"))  # arg-type | reportArgumentType
    print(Settings(kafka_sasl_mechanism="NONE"))  # arg-type | reportArgumentType
    print(Settings(policies={"a": 60}))  # dict-item | reportArgumentType
    print(Settings(policies={"a": {"tll_s": 60}}))  # dict-item | reportArgumentType
    print(Policy(ttl=60))  # call-arg | reportCallIssue
    print(Policy(ttl_s="60"))  # arg-type | reportArgumentType
    print(Policy(codec="pickle"))  # arg-type | reportArgumentType
    print(Policy(retry_on=(5,)))  # arg-type | reportArgumentType
    print(Fleet(2, staleness_bound=1.0))  # call-arg | reportCallIssue
    print(SyncOutboxProducer(object(), paramstyle="percent"))  # arg-type | reportArgumentType
    print(override_settings(urll="memory://"))  # call-arg | reportCallIssue
    print(Fleet(2, shards="4"))  # arg-type | reportArgumentType


@cached("rows", resource_id="x", tenant_id="acme")  # arg-type | reportArgumentType
def sync_rows() -> list[int]:
    """Not async."""
    return []


@cached("rows", resource_id="x", tenant_id="acme")  # arg-type | reportArgumentType
def generated_rows() -> Iterator[int]:
    """A generator."""
    yield 1


class Shelf:
    """Methods of every kind."""

    @cached("book", resource_id="{number}", tenant_id="acme")
    async def book(self, number: int) -> str:
        """A method."""
        return str(number)

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


async def methods(shelf: Shelf) -> None:
    """They take what they take, and are no coroutine functions of anything else."""
    await shelf.book("1")  # arg-type | reportArgumentType
    await shelf.book.get("1")  # arg-type | reportArgumentType
    await shelf.book.refresh()  # call-arg | reportCallIssue
    await Shelf.book(1)  # call-arg | reportCallIssue
    await Shelf.of("1")  # arg-type | reportArgumentType
    await Shelf.of.get("1")  # arg-type | reportArgumentType
    await shelf.of.invalidate(number="1")  # arg-type | reportArgumentType
    await Shelf.of()  # call-arg | reportCallIssue
    await Shelf.count("1")  # arg-type | reportArgumentType
    await Shelf.count.refresh(1, 2)  # call-arg | reportCallIssue
    text: str = await Shelf.of(1)  # assignment | reportAssignmentType
    print(text)


class Product(BaseModel):
    """A model."""

    name: str


def note(event: LoadedEvent) -> None:
    """A hook of loads."""
    print(event.took_s)


async def handles(cache: Cache) -> None:
    """A handle takes and gives its model alone."""
    products = cache.of("product", model=Product)
    await products.set(7, {"name": "x"}, "acme")  # arg-type | reportArgumentType
    await products.get_or_load(7, load, "acme")  # arg-type | reportArgumentType
    text: str | None = await products.get(7, "acme")  # assignment | reportAssignmentType
    print(text)
    await products.invalidate("product", 7, "acme", wait="all")  # arg-type | reportArgumentType


def hooks(cache: Cache) -> None:
    """A callback takes what its hook tells."""
    cache.on("invalidated", note)  # call-overload | reportArgumentType
    cache.on("load", note)  # call-overload | reportArgumentType
    cache.on("loaded", lambda event: print(event.value))  # call-overload | reportAttributeAccessIssue


async def decorated() -> None:
    """What is decorated is called as it was."""
    await agent(7, "acme")  # arg-type | reportArgumentType
    await agent("a7")  # call-arg | reportCallIssue
    await agent.refresh("a7", tenant="acme")  # call-arg | reportCallIssue
    in_context("acme")  # call-arg | reportCallIssue
    print(Context(tenant="acme"))  # call-arg | reportCallIssue


def synchronous(cache: BlockingCache) -> None:
    """Of a cache for synchronous code."""
    cache.get_or_load("config", "x", 5)  # call-overload | reportArgumentType
    cache.get("config", 1.5, "acme")  # arg-type | reportArgumentType
    cache.set("config", "x", 1, "acme", wait="node")  # arg-type | reportArgumentType
    blocking(5)  # arg-type | reportArgumentType
