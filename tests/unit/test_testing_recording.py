"""`record_invalidations`: what was invalidated, by whatever named it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cachebus import BlockingCache, Cache, Cascade, ConfigError, Policy, Target
from cachebus.testing import Fleet, Invalidations, record_invalidations


@pytest.fixture(params=[True, False], ids=["on", "off"])
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    """One in memory, with a cascade and a type with a tag; and the same with everything off."""
    policies = {"page": Policy(tags=("book:{resource_id}",))}
    async with Fleet(1, enabled=request.param, policies=policies) as fleet:
        fleet.caches[0].register(Cascade("document", to=[("embedding", "doc:{resource_id}"), ("query", "*")]))
        yield fleet.caches[0]


def covered(seen: Invalidations) -> list[str]:
    """Which of some values are."""
    ids = {
        "config x": ("config", "x", "acme"),
        "config x of agent": ("config", "x", "acme", "a7"),
        "config y": ("config", "y", "acme"),
        "all config": ("config", "*", "acme"),
        "all config of agent": ("config", "*", "acme", "a7"),
        "config x elsewhere": ("config", "x", "globex"),
        "all config elsewhere": ("config", "*", "globex"),
        "embedding": ("embedding", "doc:7", "acme"),
        "query": ("query", "any", "acme"),
        "page": ("page", 1, "acme"),
    }
    return [name for name, each in ids.items() if seen.covers(*each)]


async def test_every_way_to_invalidate_is_seen(cache: Cache) -> None:
    ways = {
        "key": lambda: cache.invalidate("config", "x", "acme"),
        "number": lambda: cache.delete("page", 1, "acme"),
        "context": lambda: cache.invalidate("config", "x", "acme", "a7"),
        "contexts": lambda: cache.invalidate("config", "x", "acme", contexts="all"),
        "type": lambda: cache.invalidate("config", "*", "acme"),
        "scope": lambda: cache.invalidate_scope("acme", "config"),
        "agent": lambda: cache.invalidate_scope("acme", agent_id="a7"),
        "tenant": lambda: cache.invalidate_scope("globex"),
        "tag": lambda: cache.invalidate_tags(["book:1"], "acme"),
        "cascade": lambda: cache.invalidate("document", 7, "acme"),
        "targets": lambda: cache.invalidate_targets([Target("config", "y"), Target("page", 1)], "acme"),
    }
    found = {}
    for name, way in ways.items():
        with record_invalidations(cache) as seen:
            await way()
        found[name] = covered(seen)
    config = ["config x", "config x of agent", "config y", "all config", "all config of agent"]
    assert found == {
        "key": ["config x"],
        "number": ["page"],
        "context": ["config x of agent"],
        "contexts": ["config x", "config x of agent"],
        "type": config,
        "scope": config,
        "agent": ["config x of agent", "all config of agent"],
        "tenant": ["config x elsewhere", "all config elsewhere"],
        "tag": ["page"],
        "cascade": ["embedding", "query"],
        "targets": ["config y", "page"],
    }


async def test_a_tag_counts_where_the_value_has_it(cache: Cache) -> None:
    with record_invalidations(cache) as seen:
        await cache.invalidate_tags(["plan:pro"], "acme")
    assert seen.covers("config", "x", "acme", tags=["plan:pro"])
    assert not seen.covers("config", "x", "acme", tags=["plan:free"])
    assert not seen.covers("config", "x", "globex", tags=["plan:pro"])


async def test_what_ends_for_all_tenants_ends_for_each(cache: Cache) -> None:
    with record_invalidations(cache) as seen:
        await cache.invalidate_type("config")
        assert seen.covers("config", "x", "acme")
        assert seen.covers("config", "*", "globex")
        assert not seen.covers("query", "x", "acme")
        await cache.clear()
        assert seen.covers("query", "*", "acme")
        assert "all of config" in seen.described()
        assert seen.described().endswith("everything")


async def test_a_write_guard_is_seen_and_a_set_is_none(cache: Cache) -> None:
    with record_invalidations(cache) as seen:
        await cache.set("config", "x", 1, "acme")
        await cache.get_or_load("config", "y", lambda: 2, "acme")
        assert len(seen) == 0
        async with cache.write_guard([("config", "x")], "acme", scopes=["query"], db_timeout_s=1):
            pass
    assert covered(seen) == ["config x", "query"]


async def test_it_is_seen_only_within_the_block(cache: Cache) -> None:
    await cache.invalidate("config", "x", "acme")
    with record_invalidations(cache) as seen:
        pass
    await cache.invalidate("config", "x", "acme")
    assert (len(seen), covered(seen)) == (0, [])


async def test_what_is_asserted_says_what_was_there(cache: Cache) -> None:
    with record_invalidations(cache) as seen:
        with pytest.raises(AssertionError, match=r"config/x/acme was not invalidated, but nothing"):
            seen.assert_invalidated("config", "x", "acme")
        await cache.invalidate("config", "y", "acme")
        await cache.invalidate_tags(["t"], "acme")
        with pytest.raises(AssertionError, match=r"config/x/acme was not.*config.*y.*, tag acme/t"):
            seen.assert_invalidated("config", "x", "acme")
        seen.assert_invalidated("config", "y", "acme")
        seen.assert_not_invalidated("config", "x", "acme")
        with pytest.raises(AssertionError, match=r"config/y/acme was invalidated: "):
            seen.assert_not_invalidated("config", "y", "acme")
        assert "tag acme/t" in repr(seen)


async def test_of_several_caches() -> None:
    async with Fleet(2) as fleet:
        a, b = fleet.caches
        with record_invalidations(a, b) as seen, record_invalidations(b) as of_b:
            await a.invalidate("config", "x", "acme")
            await b.invalidate("config", "y", "acme")
        assert covered(seen) == ["config x", "config y"]
        assert covered(of_b) == ["config y"]


async def test_a_cache_that_is_not_open_has_none() -> None:
    with pytest.raises(ConfigError, match="not open"), record_invalidations(Cache.open("memory://")):
        pass
    with pytest.raises(ValueError, match="no caches"), record_invalidations():
        pass


def test_a_blocking_cache_is_recorded_too() -> None:
    cache = BlockingCache.open("memory://recorded")
    with record_invalidations(cache) as seen:
        cache.invalidate("config", "x", "acme")
        cache.set("config", "y", 1, "acme")
    seen.assert_invalidated("config", "x", "acme")
    seen.assert_not_invalidated("config", "y", "acme")
    cache.close()
    with pytest.raises(ConfigError), record_invalidations(cache):
        pass
