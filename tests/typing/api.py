"""The public API as a typed program uses it: never run, but checked by mypy and pyright, both at their strictest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, assert_type
from uuid import UUID, uuid4

from cachebus import (
    DEFAULT_TTL_MAPPING,
    MISSING,
    TTL_EXTENDED,
    TTL_PERMANENT,
    Cache,
    CacheBusError,
    CacheManager,
    Cascade,
    Codec,
    Context,
    ContextMatch,
    L2Unavailable,
    Metrics,
    OnOutage,
    Policy,
    Receipt,
    Settings,
    Stats,
    Target,
    Template,
    Wait,
    WriteGuard,
    cached,
    configure,
    current_cache,
    declare,
    deserialize_from_cache,
    generate_resource_id_hash,
    get_counter,
    get_with_cache_aside,
    increment_counter,
    invalidate_coordinated,
    invalidate_resource_cache,
    lifespan,
    serialize_for_cache,
    track_cache_metrics,
    with_context,
    write_guard,
)
from cachebus.celery import CeleryCache
from cachebus.django import Invalidation, blocking_cache, invalidate_on, invalidate_on_commit
from cachebus.flask import CacheBus
from cachebus.producers import (
    DirectProducer,
    KafkaProducer,
    Outbox,
    OutboxProducer,
    Producer,
    SyncOutboxProducer,
    SyncProducer,
)
from cachebus.testing import (
    FakeClock,
    Faults,
    Fleet,
    Invalidations,
    Verdict,
    override_settings,
    record_invalidations,
    verify,
)
from cachebus.threads import BlockingCache


async def load_all(resource_id: str, tenant_id: str, ctx: Context) -> dict[str, int]:
    """A loader of all three."""
    return {resource_id: len(tenant_id) + len(ctx.metrics)}


def load_sync(resource_id: str) -> int:
    """A sync loader of one."""
    return len(resource_id)


@cached("agent_config", resource_id="{agent_id}", tenant_id="{tenant_id}", ttl=60, tags=["agents"])
async def agent(agent_id: str, tenant_id: str, *, verbose: bool = False) -> dict[str, str]:
    """A decorated function keeps its types."""
    return {agent_id: f"{tenant_id} {verbose}"}


class Repository:
    """Methods keep their types too."""

    @cached("user", resource_id="{user_id}", tenant_id="acme")
    async def user(self, user_id: int) -> int:
        """A method."""
        return user_id

    async def load(self, resource_id: str, tenant_id: str) -> int:
        """A loader that is a method."""
        return len(resource_id + tenant_id)


@with_context(tenant=True, agent=True)
def in_context(tenant_id: str, agent_id: str, ctx: Context | None = None) -> int:
    """So does a sync one in a context."""
    return len(tenant_id) + len(agent_id)


@with_context()
async def in_context_too(tenant_id: str) -> list[int]:
    """And an async one."""
    return [len(tenant_id)]


def on_applied(shard: int, epoch: str, seq: int, at_s: float) -> None:
    """A hook."""
    print(shard, epoch, seq, at_s)


async def verbs(settings: Settings) -> None:
    """Every verb of a cache."""
    async with Cache.open(settings) as cache:
        assert_type(cache, Cache)
        receipt = assert_type(await cache.set("config", "x", {"a": 1}, "acme", ttl=60, tags=["t"]), Receipt)
        assert_type(await cache.set("config", 7, None, tenant_id=7, ttl=TTL_PERMANENT), Receipt)
        value: Any = await cache.get("config", "x", "acme", "a", "v", "c", True, False)
        value = await cache.get("config", "x", tenant_id="acme", default=MISSING, after=receipt)
        value = await cache.get("config", "x", tenant_id="acme", after=str(receipt))
        value = await cache.get_or_load("config", "x", load_all, tenant_id="acme", search_hierarchy=True)
        value = await cache.get_or_load("config", "x", load_sync, tenant_id="acme", ttl=1.5, tags=("t",))
        value = await cache.get_or_load("config", "x", lambda: 1, tenant_id="acme", use_memory=False)
        value = await cache.get_or_load("config", "x", Repository().load, tenant_id="acme")
        value = await cache.get("config", uuid4(), tenant_id=uuid4(), agent_id=uuid4())
        found = await cache.get_many("config", ["x", 7, uuid4()], tenant_id="acme")
        assert_type(found, dict[str | int | UUID, Any])
        several_found = await cache.get_targets([("config", "x"), ("page", "y")], "acme", after=receipt)
        assert_type(several_found, dict[tuple[str, str], Any])
        assert_type(await cache.set_many("config", {"x": 1, 7: 2}, "acme", ttl=60, tags=["t"], wait="nodes"), Receipt)
        assert_type(await cache.invalidate_many("config", ["x", 7], "acme", contexts="all", reason="why"), Receipt)
        assert_type(await cache.invalidate_targets([("config", "x"), ("page", 7, "a")], "acme"), Receipt)
        assert_type(await cache.add("job", "x", value, 60, "acme"), bool)
        assert_type(await cache.delete("config", "x", tenant_id="acme"), Receipt)
        assert_type(await cache.invalidate("config", "x", tenant_id="acme", contexts="all"), Receipt)
        assert_type(await cache.invalidate_scope("acme", "config", collection_id="c"), Receipt)
        assert_type(await cache.invalidate_tags(["t"], tenant_id="acme"), Receipt)
        assert_type(await cache.set("config", "x", 1, "acme", wait="nodes"), Receipt)
        assert_type(await cache.delete("config", "x", "acme", wait="nodes"), Receipt)
        assert_type(await cache.invalidate_scope("acme", wait="nodes"), Receipt)
        assert_type(await cache.invalidate_tags(["t"], "acme", wait=None), Receipt)
        wait: Wait | None = "nodes"
        contexts: ContextMatch = "all"
        assert_type(await cache.invalidate("config", "x", "acme", contexts=contexts, wait=wait), Receipt)
        several = [Target("config", "x"), Target("page", 7, agent_id="a")]
        assert_type(await cache.invalidate_targets(several, "acme", wait="nodes"), Receipt)
        codec: Codec = "f32"
        on_outage: OnOutage = "miss"
        assert_type(Policy(codec=codec), Policy)
        assert_type(Settings(url="memory://", on_outage=on_outage), Settings)
        assert_type(await cache.increment("hits", "acme", 2, "page", expires_in_s=60, request_id="r"), int)
        cascade = Cascade("a", to=[("b", "{resource_id}")], on_set=True)
        cache.register(cascade, policies={"a": Policy(ttl_s=TTL_EXTENDED)})
        assert_type(cache.ready(), bool)
        stats = assert_type(cache.stats(), Stats)
        assert_type(stats.hit_ratio, float)
        assert_type(stats.types["config"].loads, int)
        assert_type(stats.shards[0].lease_left_s, float)
        cache.on_applied = on_applied
        async with cache.write_guard(
            [("config", "x"), ("config", 7, "a")],
            "acme",
            scopes=["page", {"data_type": "page", "agent_id": "a"}],
            tags=["t"],
            timeout_s=9,
            db_timeout_s=5,
            wait="nodes",
        ) as guard:
            assert_type(guard, WriteGuard)
        assert_type(guard.receipt, Receipt)
        assert_type(write_guard([("config", "x")], "acme"), WriteGuard)
        assert_type(CacheManager.write_guard(tags=["t"]), WriteGuard)
        await cache.probe()
        assert_type(await cache.drain(1.5), bool)
        assert_type(await cache.warmed(1.5), bool)
        assert_type(stats.pending, int)
        await cache.aclose()


async def receipts(receipt: Receipt) -> None:
    """A receipt, there and back."""
    assert_type(str(receipt), str)
    assert_type(Receipt.parse("0.0123456789abcdef.1"), Receipt)
    assert_type(receipt.seq, int)
    assert_type(receipt.status, Literal["applied", "pending", "disabled"])
    assert_type(receipt.stored, bool)
    assert_type(receipt.targets, Mapping[str, int])
    assert_type(receipt.confirmed, tuple[str, ...])
    assert_type(receipt.lapsed, tuple[str, ...])


async def process_wide() -> None:
    """The functions that services call."""
    assert_type(configure("redis://localhost"), Settings)
    declare(Cascade("a", to=[("b", "*")]))
    async with lifespan(
        Settings(url="redis://localhost", policies={"a": Policy(copy=True, model=list[int], lossy=True)})
    ) as cache:
        assert_type(cache, Cache)
        assert_type(current_cache(), Cache)
        await CacheManager.set("config", "x", 1, "acme", ttl=CacheManager.ttl_short)
        await CacheManager.get("config", "x", "acme", search_hierarchy=True, use_memory=True)
        assert_type(CacheManager.ttl_standard, float)
        value, metrics = await get_with_cache_aside(
            "config",
            "x",
            "acme",
            fetch_from_db_func=load_all,
            generate_func=load_sync,
            agent_id="a",
            ttl=60,
            ctx=Context("acme"),
            serializer=str,
            deserializer=int,
        )
        assert_type(metrics, Metrics)
        print(value, metrics["source"])
        counts = await invalidate_coordinated("acme", "document", 7, [{"data_type": "page", "resource_id": "*"}])
        assert_type(counts["document"], int)
        assert_type(counts.receipt, Receipt)
        assert_type(await invalidate_resource_cache("config", "x", "acme"), bool)
        assert_type(await increment_counter("hits", "acme", 1, "x"), int)
        assert_type(await get_counter("hits", "acme"), int)
        await track_cache_metrics("config", "acme", "hit", 1.5, {"a": 1})
        assert_type(serialize_for_cache({"a": 1}, "config"), bytes)
        print(deserialize_from_cache(b"", "config"))
        assert_type(generate_resource_id_hash("a", 1, {"b": 2}), str)
        assert_type(Template("{a}:{b}").fill({"a": "x", "b": uuid4()}), str)
        assert_type(DEFAULT_TTL_MAPPING["embedding"], float)


async def decorated() -> None:
    """What decorators leave of the types."""
    assert_type(await agent("a7", "acme", verbose=True), dict[str, str])
    assert_type(in_context("acme", "a7"), int)
    assert_type(await in_context_too("acme"), list[int])
    async with asyncio.TaskGroup() as group:
        tasks = group.create_task(agent("a7", "acme")), group.create_task(Repository().user(7))
    assert_type(tasks[0].result(), dict[str, str])
    assert_type(tasks[1].result(), int)
    method: Callable[[int], Coroutine[Any, Any, int]] = Repository().user
    assert_type(await method(7), int)


async def contexts() -> None:
    """A context, both ways."""
    with Context(tenant_id="acme", agent_id=7) as ctx:
        ctx.add_metric("a", 1)
        assert_type(ctx.get_tenant_id(), str | int | UUID)
        assert_type(ctx.has_tenant_id(), bool)
    async with Context("acme") as other:
        assert_type(other, Context)


async def for_tests() -> None:
    """The twins."""
    clock = FakeClock()
    async with Fleet(3, faults=Faults(seed=1, drop=0.1), clock=clock, staleness_bound_s=1.0) as fleet:
        clock.advance(1.5)
        fleet.away = True
        fleet.faults = None
        await fleet.probe()
        await fleet.settle()
        for cache in fleet.caches:
            assert_type(cache, Cache)
        with record_invalidations(*fleet.caches) as seen:
            assert_type(seen, Invalidations)
        assert_type(seen.covers("config", 7, "acme", tags=["t"]), bool)
        seen.assert_invalidated("config", "*", tenant_id="acme")
        seen.assert_not_invalidated("config", "x", "acme", agent_id="a")
    with override_settings(url="memory://", enabled=False, clock=clock, policies={"a": {"ttl_s": 1}}):
        async with lifespan():
            pass


async def verified() -> None:
    """The promises, put to the test."""
    verdict = assert_type(await verify(seconds=10, seed=7, faults="network,kill", nodes=3, bound_s=0.5), Verdict)
    assert_type(await verify("redis://localhost", rate=0, write_rate=5), Verdict)
    assert_type(verdict.ok, bool)
    assert_type(verdict.within(0.5), float)
    assert_type(verdict.faults["kill"], int)
    assert_type([finding.promise for finding in verdict.broken], list[str])
    verdict.raise_for_broken()


async def write_path(error: L2Unavailable) -> None:
    """A producer; and what an error is."""
    async with DirectProducer.open("redis://localhost", [Cascade("a", to=[("b", "*")])]) as producer:
        assert_type(await producer.invalidate("config", "x", "acme", contexts="all"), Receipt)
        assert_type(await producer.invalidate("config", uuid4(), uuid4()), Receipt)
        assert_type(await producer.invalidate_scope("acme", "config"), Receipt)
        assert_type(await producer.invalidate_tags(["t"], "acme"), Receipt)
        assert_type(await producer.invalidate_coordinated("acme", "config", "x", wait="nodes"), Receipt)
    outbox = Outbox("redis://localhost", [Cascade("a", to=[("b", "*")])], table="app.outbox")
    rows = OutboxProducer(object(), outbox)
    assert_type(await rows.invalidate("config", "x", "acme"), Receipt)
    async with rows.together() as several:
        assert_type(several, Producer)
        assert_type(await several.invalidate_tags(["t"], "acme"), Receipt)
    sync = SyncOutboxProducer(object(), paramstyle="format")
    assert_type(sync.invalidate_coordinated("acme", "config", "x", [{"data_type": "page"}]), Receipt)
    with sync.together() as them:
        assert_type(them, SyncProducer)
        assert_type(them.invalidate_scope("acme"), Receipt)
    async with KafkaProducer.open(timeout_s=1.0) as commands:
        assert_type(commands, KafkaProducer)
        assert_type(await commands.invalidate_scope("acme"), Receipt)
    caught: CacheBusError = error
    connection: ConnectionError = error
    print(caught, connection)


def frameworks(bus: CacheBus, tasks: CeleryCache) -> None:
    """Django, Flask and Celery."""
    assert_type(bus.cache, BlockingCache)
    assert_type(CacheBus(tenant=lambda request: request.headers.get("X-Tenant")).cache, BlockingCache)
    assert_type(tasks.cache, BlockingCache)
    assert_type(blocking_cache("pages"), BlockingCache)
    mapping = invalidate_on({"shop.Product": lambda product: ["page", ("product", 7)]}, tenant=lambda product: "acme")
    assert_type(mapping, Invalidation)
    invalidate_on_commit("page", ("product", uuid4()), Target("product", 7), tenant_id="acme")
