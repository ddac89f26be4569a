"""What one invalidation replaces: keys, scopes of every shape, tags, cascades; and what it leaves alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest

from cachebus import Cache, Cascade, ConfigError, Context, InvalidKey, Policy, TenantRequired
from tests.support.caches import asked, data_calls, deaf, nodes, rules_of, until

POLICIES = {"tagged": Policy(tags=("of:{resource_id}", "all-of:{tenant_id}"))}
TENANTS, TYPES, CONTEXTS = ("acme", "other"), ("config", "query"), (None, "1", "2")
Ids = tuple[str, str, str | None, str | None, str | None]
EVERYTHING: list[Ids] = list(product(TENANTS, TYPES, CONTEXTS, CONTEXTS, CONTEXTS))
SHAPES: list[dict[str, str]] = [
    {"tenant_id": "acme"},
    {"tenant_id": "acme", "agent_id": "1"},
    {"tenant_id": "acme", "conversation_id": "1"},
    {"tenant_id": "acme", "collection_id": "1"},
    {"tenant_id": "acme", "data_type": "config"},
    {"tenant_id": "acme", "data_type": "config", "agent_id": "1"},
    {"tenant_id": "acme", "data_type": "config", "conversation_id": "1"},
    {"tenant_id": "acme", "data_type": "config", "collection_id": "1"},
]
NAMES = ("tenant_id", "data_type", "agent_id", "conversation_id", "collection_id")


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server."""
    async with nodes(redis_url, policies=POLICIES) as caches:
        yield caches


def covers(shape: dict[str, str], ids: Ids) -> bool:
    """Whether a scope of that shape has this key in it."""
    return all(dict(zip(NAMES, ids, strict=True))[name] == wanted for name, wanted in shape.items())


async def found_by(cache: Cache, *, use_memory: bool = True) -> set[Ids]:
    """Which of all the keys the cache still gives a value for."""
    found = set()
    for ids in EVERYTHING:
        tenant, data_type, *contexts = ids
        if await cache.get(data_type, "x", tenant, *contexts, use_memory=use_memory) is not None:
            found.add(ids)
    return found


@pytest.mark.parametrize("shape", SHAPES, ids="+".join)
async def test_a_scope_replaces_what_lies_in_it_and_nothing_else(pair: list[Cache], shape: dict[str, str]) -> None:
    a, b = pair
    for tenant, data_type, *contexts in EVERYTHING:
        await a.set(data_type, "x", 1, tenant, *contexts)
    assert await found_by(b) == set(EVERYTHING)
    expected = {ids for ids in EVERYTHING if not covers(shape, ids)}
    receipt = await a.invalidate_scope(**shape)
    assert await found_by(a) == expected

    async def spread() -> bool:
        return await found_by(b) == expected

    await until(spread)
    assert await found_by(b, use_memory=False) == expected
    assert await b.get("config", "x", "other", after=receipt) == 1
    # What comes after the scope's invalidation is not hidden by it.
    for tenant, data_type, *contexts in EVERYTHING:
        await b.get_or_load(data_type, "x", lambda: 2, tenant, *contexts)
    assert await found_by(b) == await found_by(b, use_memory=False) == set(EVERYTHING)
    with asked(b) as counts:
        await found_by(b)
    assert data_calls(counts) == 0


async def test_contexts_all_covers_the_id_in_every_context(pair: list[Cache]) -> None:
    a, b = pair
    for tenant, data_type, *contexts in EVERYTHING:
        await a.set(data_type, "x", 1, tenant, *contexts)
    await a.set("config", "y", 1, "acme", "1")
    await found_by(b)
    receipt = await a.invalidate("config", "x", tenant_id="acme")
    alone: Ids = ("acme", "config", None, None, None)
    assert await found_by(a) == set(EVERYTHING) - {alone}
    receipt = await a.invalidate("config", "x", tenant_id="acme", contexts="all")
    expected = {ids for ids in EVERYTHING if ids[:2] != ("acme", "config")}
    assert await found_by(a) == expected
    assert await b.get("config", "x", "acme", "1", after=receipt) is None

    async def spread() -> bool:
        return await found_by(b) == expected

    await until(spread)
    assert await b.get("config", "y", "acme", "1") == 1


async def test_an_invalidation_with_contexts_is_that_key_exactly(pair: list[Cache]) -> None:
    a = pair[0]
    for agent in (None, "1", "2"):
        await a.set("config", "x", 1, "acme", agent)
    await a.invalidate("config", "x", "acme", "1")
    assert [await a.get("config", "x", "acme", agent) for agent in (None, "1", "2")] == [1, None, 1]


async def test_all_contexts_of_one_context_is_refused_rather_than_done_by_half(pair: list[Cache]) -> None:
    with pytest.raises(InvalidKey, match="contexts"):
        await pair[0].invalidate("config", "x", "acme", "1", contexts="all")


# -- tags ------------------------------------------------------------------------------------------------


async def test_tags_replace_what_was_stored_with_any_of_them(pair: list[Cache]) -> None:
    a, b = pair
    tags: dict[str, list[str]] = {"none": [], "pro": ["plan:pro"], "eu": ["eu"], "both": ["plan:pro", "eu"]}
    for resource_id, its in tags.items():
        await a.set("config", resource_id, 1, tenant_id="acme", tags=its)
        await a.set("config", resource_id, 1, tenant_id="other", tags=its)
        await b.get_or_load("query", resource_id, lambda: 1, tenant_id="acme", tags=its)
    for cache in pair:
        assert len(await cache.get_many("config", tags, tenant_id="acme")) == 4
        assert len(await cache.get_many("query", tags, tenant_id="acme")) == 4
    receipt = await a.invalidate_tags(["plan:pro", "nobody's"], tenant_id="acme")
    assert dict(receipt.targets) == {"tags": 2}
    assert await b.get("config", "pro", tenant_id="acme", after=receipt) is None
    for cache in pair:
        for data_type in ("config", "query"):

            async def spread(cache: Cache = cache, data_type: str = data_type) -> bool:
                return set(await cache.get_many(data_type, tags, tenant_id="acme")) == {"none", "eu"}

            await until(spread)
        assert len(await cache.get_many("config", tags, tenant_id="other")) == 4


async def test_own_tag_invalidations_hold_at_once(pair: list[Cache]) -> None:
    a = pair[0]
    with deaf(a):
        for use_memory in (True, False):
            await a.set("config", "x", 1, tenant_id="acme", tags=["t"])
            await a.invalidate_tags(["t"], tenant_id="acme")
            assert await a.get("config", "x", tenant_id="acme", use_memory=use_memory) is None
            await a.set("config", "x", 2, tenant_id="acme", tags=["t"])
            assert await a.get("config", "x", tenant_id="acme", use_memory=use_memory) == 2


async def test_a_types_own_tags(pair: list[Cache]) -> None:
    a, b = pair
    for resource_id in ("x", "y", "z"):
        await a.set("tagged", resource_id, 1, tenant_id="acme", tags=["more"] if resource_id == "z" else [])
    await a.invalidate_tags(["of:x"], tenant_id="acme")
    assert set(await a.get_many("tagged", "xyz", tenant_id="acme")) == {"y", "z"}
    await a.invalidate_tags(["more"], tenant_id="acme")
    assert set(await a.get_many("tagged", "xyz", tenant_id="acme")) == {"y"}
    receipt = await a.invalidate_tags(["all-of:acme"], tenant_id="acme")
    assert await b.get_many("tagged", "xyz", tenant_id="acme", after=receipt) == {}


async def test_tags_belong_to_a_tenant(pair: list[Cache]) -> None:
    a = pair[0]
    with pytest.raises(TenantRequired, match="tags"):
        await a.set("system", "x", 1, tags=["t"])
    with pytest.raises(TenantRequired):
        await a.invalidate_tags(["t"])
    await a.set("system", "x", 1)
    await a.set("system", "x", 2, tenant_id="acme", tags=["t"])
    with Context(tenant_id="acme"):
        await a.invalidate_tags(["t"])
    assert await a.get("system", "x", tenant_id="acme") is None
    assert await a.get("system", "x") == 1


# -- cascades --------------------------------------------------------------------------------------------

DOCUMENT = Cascade(
    "document", to=[("embedding", "doc:{resource_id}"), ("vector_store", "{collection_id}"), ("query_result", "*")]
)


async def seeded(cache: Cache) -> None:
    """A document, and what depends on it; each in collection c1 and in c2."""
    for collection in ("c1", "c2"):
        for data_type, resource_id in (
            ("document", "7"),
            ("embedding", "doc:7"),
            ("vector_store", collection),
            ("query_result", "q"),
        ):
            await cache.set(data_type, resource_id, 1, tenant_id="acme", collection_id=collection)


async def left(cache: Cache) -> list[str]:
    """Which of it is still there."""
    found = []
    for collection in ("c1", "c2"):
        for data_type, resource_id in (
            ("document", "7"),
            ("embedding", "doc:7"),
            ("vector_store", collection),
            ("query_result", "q"),
        ):
            if await cache.get(data_type, resource_id, tenant_id="acme", collection_id=collection) is not None:
                found.append(f"{data_type}/{collection}")
    return found


@pytest.mark.parametrize("verb", ["invalidate", "delete"])
async def test_a_cascade_follows_in_one_step_within_the_same_contexts(pair: list[Cache], verb: str) -> None:
    a, b = pair
    a.register(DOCUMENT)
    await seeded(a)
    assert len(await left(b)) == 8
    events = b.stats().events_applied
    others = ["document/c2", "embedding/c2", "vector_store/c2", "query_result/c2"]
    with deaf(a):
        receipt: Any = await getattr(a, verb)("document", "7", tenant_id="acme", collection_id="c1")
        assert await left(a) == others
    assert dict(receipt.targets) == {"document": 1, "embedding": 1, "vector_store": 1, "query_result": 1}
    assert await b.get("embedding", "doc:7", "acme", collection_id="c1", after=receipt) is None

    async def spread() -> bool:
        return await left(b) == others

    await until(spread)
    assert b.stats().events_applied == events + 1


async def test_a_cascade_that_lacks_an_id_raises_and_replaces_nothing(pair: list[Cache]) -> None:
    a = pair[0]
    a.register(DOCUMENT)
    await a.set("document", "7", 1, tenant_id="acme")
    with pytest.raises(InvalidKey, match="collection_id"):
        await a.invalidate("document", "7", tenant_id="acme")
    assert await a.get("document", "7", tenant_id="acme") == 1


async def test_a_cascade_runs_on_and_scopes_entail_nothing(pair: list[Cache]) -> None:
    a = pair[0]
    a.register(
        Cascade("document", to=[("page", "{resource_id}-1"), ("page", "{resource_id}-2")]),
        Cascade("page", to=[("embedding", "{resource_id}"), ("search", "*")]),
        Cascade("search", to=[("never", "*")]),
    )
    ids = [("page", "7-1"), ("page", "7-2"), ("embedding", "7-1"), ("embedding", "7-2"), ("search", "s")]
    ids.append(("never", "n"))
    for data_type, resource_id in ids:
        await a.set(data_type, resource_id, 1, tenant_id="acme")
    receipt = await a.invalidate("document", "7", tenant_id="acme")
    assert dict(receipt.targets) == {"document": 1, "page": 2, "embedding": 2, "search": 1}
    assert [await a.get(*one, tenant_id="acme") for one in ids] == [None] * 5 + [1]
    await a.set("page", "7-1", 1, tenant_id="acme")
    await a.invalidate_scope("acme", "document")
    assert await a.get("page", "7-1", tenant_id="acme") == 1


async def test_set_follows_only_cascades_that_say_so(pair: list[Cache]) -> None:
    a, b = pair
    a.register(Cascade("config", to=[("view", "{resource_id}")]), Cascade("user", to=[("view", "*")], on_set=True))
    await a.set("view", "x", 1, tenant_id="acme")
    await a.set("config", "x", 1, tenant_id="acme")
    assert await b.get("view", "x", tenant_id="acme") == 1
    receipt = await a.set("user", "u", 1, tenant_id="acme")
    assert dict(receipt.targets) == {"user": 1, "view": 1}
    assert await a.get("view", "x", tenant_id="acme") is None
    assert await b.get("view", "x", tenant_id="acme", after=receipt) is None
    assert await b.get("user", "u", tenant_id="acme") == 1
    await a.set("view", "x", 1, tenant_id="acme")
    assert await a.add("user", "u", 2, tenant_id="acme") is False
    assert await a.get("view", "x", tenant_id="acme") == 1


async def test_a_cycle_is_refused_where_it_is_registered(redis_url: str) -> None:
    there = Cascade("a", to=[("b", "*")])
    back = Cascade("b", to=[("a", "*")])
    cache = Cache.open(redis_url)
    cache.register(there)
    with pytest.raises(ConfigError, match="cycle"):
        cache.register(back)
    async with cache:  # what was refused does not come back to haunt it
        with pytest.raises(ConfigError, match="cycle"):
            cache.register(back)
        await cache.invalidate("a", "x", tenant_id="acme")
    async with cache:
        await cache.invalidate("b", "x", tenant_id="acme")


async def test_a_policy_that_does_not_fit_its_type_is_refused_where_it_is_registered(redis_url: str) -> None:
    cache = Cache.open(redis_url)
    with pytest.raises(ConfigError, match="soft_ttl_s"):
        cache.register(policies={"token_counter": Policy(soft_ttl_s=301)})
    async with cache:
        assert rules_of(cache, "token_counter").soft_ttl_s is None


async def test_policies_and_cascades_registered_before_and_after_opening(redis_url: str) -> None:
    cache = Cache.open(redis_url)
    cache.register(Cascade("a", to=[("b", "*")]), policies={"a": Policy(ttl_s=7)})
    async with cache:
        assert rules_of(cache, "a").ttl_s == 7
        cache.register(Cascade("b", to=[("c", "*")]), policies={"a": Policy(ttl_s=8)})
        assert rules_of(cache, "a").ttl_s == 8
    async with cache:
        assert rules_of(cache, "a").ttl_s == 8
        assert dict((await cache.invalidate("b", "x", tenant_id="acme")).targets) == {"b": 1, "c": 1}
