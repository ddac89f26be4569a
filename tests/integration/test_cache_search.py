"""Hierarchical search: the most specific value wins, absence is remembered, and neither outlives an invalidation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cachebus import MISSING, Cache, Policy
from cachebus.base.clock import monotonic
from cachebus.testing import FakeClock, Faults, Fleet
from tests.support.aging import aging
from tests.support.caches import D_S, Source, asked, data_calls, deaf, nodes, past, until
from tests.support.patience import read, settled

FULL = {"tenant_id": "acme", "agent_id": "a", "conversation_id": "v", "collection_id": "c"}
LEVELS: list[dict[str, Any]] = [
    FULL,
    {"tenant_id": "acme", "agent_id": "a", "conversation_id": "v"},
    {"tenant_id": "acme", "agent_id": "a"},
    {"tenant_id": "acme"},
]


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    """Two nodes over one server."""
    async with nodes(redis_url, policies={"negative": Policy(negative_ttl_s=60), "far": Policy(l1=False)}) as caches:
        yield caches


async def search(cache: Cache, data_type: str = "config", **ids: Any) -> Any:
    """A search from the most specific level, or the given one."""
    return await cache.get(data_type, "x", search_hierarchy=True, default=MISSING, **(ids or FULL))


async def test_the_most_specific_level_wins(pair: list[Cache]) -> None:
    a, b = pair
    assert await search(a) is MISSING
    for depth in (3, 2, 1, 0):
        receipt = await a.set("config", "x", depth, **LEVELS[depth])
        assert await search(a) == depth
        assert await search(b, after=receipt, **FULL) == depth
    assert [await search(a, **level) for level in LEVELS] == [0, 1, 2, 3]
    for depth, next_best in ((0, 1), (1, 2), (2, 3), (3, MISSING)):
        receipt = await a.delete("config", "x", **LEVELS[depth])
        assert await search(a) == next_best
        assert await search(b, after=receipt, **FULL) == next_best


async def test_a_search_from_one_context_drops_only_that(pair: list[Cache]) -> None:
    a = pair[0]
    await a.set("config", "x", "agent's", tenant_id="acme", agent_id="a")
    assert await search(a, tenant_id="acme", collection_id="c") is MISSING
    assert await search(a, tenant_id="acme", agent_id="a", collection_id="c") == "agent's"
    assert await search(a, tenant_id="acme", agent_id="b") is MISSING
    assert await a.get("config", "x", **FULL) is None  # searches only when asked
    await a.set("config", "x", "tenant's", tenant_id="acme")
    assert await search(a, tenant_id="acme", collection_id="c") == "tenant's"
    assert await search(a, tenant_id="other", agent_id="a") is MISSING


@pytest.mark.parametrize("depth", [None, 0, 1, 2, 3])
async def test_a_warm_search_touches_no_network(pair: list[Cache], depth: int | None) -> None:
    a, b = pair
    if depth is not None:
        await a.set("config", "x", "v", **LEVELS[depth])
    await until(b.ready)
    with asked(b) as counts:
        first = await search(b)
        cold = data_calls(counts)
        assert first == ("v" if depth is not None else MISSING)
        assert (counts["get"], counts["read"]) in ((4, 0), (0, 1))  # one round trip either way
        for _ in range(3):
            assert await search(b) == first
        assert data_calls(counts) == cold


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
async def test_a_set_elsewhere_ends_the_absence_at_once(pair: list[Cache], depth: int) -> None:
    a, b = pair
    assert await search(b) is MISSING
    await a.set("config", "x", "new", **LEVELS[depth])

    async def found() -> bool:
        return await search(b) == "new"

    await until(found, within_s=D_S)


@pytest.mark.parametrize("depth", [0, 3])
async def test_a_fill_elsewhere_is_seen_within_d(pair: list[Cache], depth: int) -> None:
    a, b = pair
    assert await search(b) is MISSING
    await a.get_or_load("config", "x", lambda: "new", **LEVELS[depth])
    filled_at_s = monotonic()
    await past(filled_at_s + D_S)
    assert await search(b) == "new"


async def test_an_own_fill_is_seen_at_once(pair: list[Cache]) -> None:
    a = pair[0]
    assert await search(a) is MISSING
    assert await a.get_or_load("config", "x", lambda: "new", **LEVELS[2]) == "new"
    assert await search(a) == "new"


async def test_absence_is_not_trusted_for_longer_than_d_by_a_deaf_node(pair: list[Cache]) -> None:
    a, b = pair
    assert await search(b) is MISSING
    with deaf(b):
        await a.set("config", "x", "new", **LEVELS[1])
        await past(monotonic() + D_S)
        assert await search(b) == "new"


async def test_an_absence_that_is_judged_by_a_plain_get_is_as_old_as_the_probe_behind_the_lease() -> None:
    """A record of an epoch that the node has yet to enter counts as missing.

    1. 0 s: `a` is probed, and hears nothing from then on.
    2. 0.1 s: L2 is another server, and `b` sets a narrower value in another epoch.
    3. 1.9 s: `a` searches, and takes the narrower value's record for missing.
    4. 2.5 s: `a` searches again, 2.4 s after the set, and D is 2 s.
    """
    clock = FakeClock()
    deaf_to_all = Faults(drop=1.0)
    async with Fleet(2, clock=clock, staleness_bound_s=2.0, shards=1, faults=deaf_to_all) as fleet:
        a, b = fleet.caches
        await b.set("config", "x", "wide", **LEVELS[3])
        await fleet.probe()
        clock.advance(0.1)
        fleet.world.shards[0].server += "'"
        await b.set("config", "x", "narrow", **LEVELS[2])
        clock.advance(1.8)
        assert await search(a, **LEVELS[2]) == "wide"
        clock.advance(0.6)
        assert await search(a, **LEVELS[2]) == "narrow"


@pytest.mark.parametrize("narrow", ["missing", "not found"])
async def test_a_wider_value_past_its_soft_expiry_has_nothing_loaded_for_the_narrower_key(narrow: str) -> None:
    soft = Policy(ttl_s=1000, soft_ttl_s=10, negative_ttl_s=1000, l1_ttl_s=0.5)
    async with aging(2, soft=soft) as world:
        a, b = world.nodes
        await read(b, Source(x="wide"), "soft")
        if narrow == "not found":
            assert await read(b, Source(), "soft", agent_id="a") is None
        await world.pass_s(11)
        source = Source(x="narrow")
        for _ in range(2):
            assert await read(a, source, "soft", agent_id="a", search_hierarchy=True) == "wide"
            await settled(a)
            await world.pass_s(0.6)
        assert source.calls == 0


@pytest.mark.parametrize("shape", ["scope", "tenant", "contexts", "tag"])
async def test_a_more_specific_value_that_was_invalidated_gives_way_to_the_wider(pair: list[Cache], shape: str) -> None:
    a, b = pair
    for cache in pair:
        await a.set("config", "x", "wide", **LEVELS[3])
        written = await a.set("config", "x", "narrow", tags=["t"], **FULL)
        assert await search(cache, after=written, **FULL) == "narrow"
        if shape == "scope":
            receipt = await a.invalidate_scope("acme", "config", collection_id="c")
        elif shape == "tenant":
            receipt = await a.invalidate_scope("acme", agent_id="a")
        elif shape == "tag":
            receipt = await a.invalidate_tags(["t"], tenant_id="acme")
        else:
            receipt = await a.invalidate("config", "x", tenant_id="acme", contexts="all")
        expected = None if shape == "contexts" else "wide"
        assert await a.get("config", "x", search_hierarchy=True, **FULL) == expected
        assert await b.get("config", "x", search_hierarchy=True, after=receipt, **FULL) == expected


async def test_not_found_at_a_narrow_level_does_not_hide_the_wider(pair: list[Cache]) -> None:
    """It says that the source has nothing for this very context, which is no value."""
    a, b = pair
    await a.set("negative", "x", "wide", **LEVELS[3])
    assert await a.get_or_load("negative", "x", lambda: None, **FULL) is None
    for cache in (a, b, a, b):
        assert await search(cache, "negative", **FULL) == "wide"
        assert await search(cache, "negative", **LEVELS[1]) == "wide"
        assert await cache.get_or_load("negative", "x", lambda: None, search_hierarchy=True, **FULL) == "wide"


async def test_not_found_without_a_wider_value_is_found_by_a_search(pair: list[Cache]) -> None:
    source = Source()
    for cache in (*pair, *pair):
        assert await cache.get_or_load("negative", "x", source.load, search_hierarchy=True, **FULL) is None
        assert await search(cache, "negative", **FULL) is MISSING
    assert source.calls == 1


async def test_a_type_that_does_not_enter_memory_leaves_no_absence_there_either(pair: list[Cache]) -> None:
    a, _ = pair
    assert await search(a, "far", **FULL) is MISSING
    assert a.stats().l1_entries == 0


async def test_use_memory_false_searches_in_l2(pair: list[Cache]) -> None:
    a, b = pair
    await a.set("config", "x", 1, **LEVELS[2])
    for cache in pair:
        with asked(cache) as counts:
            for _ in range(2):
                assert await cache.get("config", "x", search_hierarchy=True, use_memory=False, **FULL) == 1
        assert data_calls(counts) >= 2
    assert b.stats().l1_entries == 0


async def test_get_or_load_searches_when_asked_and_fills_the_most_specific(pair: list[Cache]) -> None:
    a, b = pair
    source = Source(x="loaded")
    await a.set("config", "x", "wide", **LEVELS[3])
    assert await b.get_or_load("config", "x", source.load, search_hierarchy=True, **FULL) == "wide"
    assert source.calls == 0
    await a.delete("config", "x", **LEVELS[3])

    async def loaded() -> bool:
        return await b.get_or_load("config", "x", source.load, search_hierarchy=True, **FULL) == "loaded"

    await until(loaded)
    assert source.calls == 1
    assert await a.get("config", "x", **FULL) == "loaded"
    assert await a.get("config", "x", **LEVELS[1]) is None
    counts = b.stats().types["config"]
    assert counts.misses == counts.loads == 1
