"""Callers may make up any number of data types: what is kept for each is bounded, and nothing is believed for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cachebus import Cache, Policy
from cachebus.observe import OTHER, TYPES_MAX, Counters
from cachebus.testing import Fleet
from tests.support.caches import parts

TENANT = "acme"
Invalidate = Callable[[Cache, str], Awaitable[Any]]
WAYS: dict[str, Invalidate] = {
    "type": lambda cache, t: cache.invalidate_scope(TENANT, t),
    "tenant": lambda cache, t: cache.invalidate_scope(TENANT),
    "agent of a type": lambda cache, t: cache.invalidate_scope(TENANT, t, agent_id="a7"),
    "agent": lambda cache, t: cache.invalidate_scope(TENANT, agent_id="a7"),
    "id in every context": lambda cache, t: cache.invalidate(t, "x", TENANT, contexts="all"),
    "key": lambda cache, t: cache.invalidate(t, "x", TENANT, "a7"),
    "tag": lambda cache, t: cache.invalidate_tags([f"tag of {t}"], TENANT),
}
NARROW = ("type", "agent of a type", "id in every context", "key", "tag")
"""What leaves other types alone."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes tell two types apart."""
    monkeypatch.setattr("cachebus.observe.counters.TYPES_MAX", 2)


async def stored(cache: Cache, data_type: str) -> None:
    await cache.set(data_type, "x", data_type, TENANT, "a7", tags=[f"tag of {data_type}"])


async def held(cache: Cache, data_type: str) -> Any:
    """What the node gives, out of its memory if it may."""
    return await cache.get(data_type, "x", TENANT, "a7")


async def test_what_is_kept_by_type_is_bounded() -> None:
    async with Fleet(1, policies={"mine": Policy(ttl_s=5)}) as fleet:
        (cache,) = fleet.caches
        for at in range(2 * TYPES_MAX):
            await stored(cache, f"type-{at}")
            assert await held(cache, f"type-{at}") == f"type-{at}"
            await cache.get(f"type-{at}", "absent", TENANT)
        await stored(cache, "mine")
        await cache.get("mine", "absent", TENANT)
        node, stats = parts(cache).node, cache.stats()
        assert len(stats.types) == TYPES_MAX + 2, "those first seen, the others together, and the one with a policy"
        assert (stats.types[OTHER].l1_hits, stats.types[OTHER].misses) == (TYPES_MAX, TYPES_MAX)
        assert (stats.types["type-7"].l1_hits, stats.types["type-7"].misses) == (1, 1)
        assert stats.types["mine"].misses == 1
        assert (stats.l1_hits, stats.misses) == (2 * TYPES_MAX, 2 * TYPES_MAX + 1)
        kept = (
            node.groups.live[0],
            node.groups.with_contexts[0],
            node.groups.with_tags[0],
            node.counters.types,
            parts(cache).policies._rules,
        )
        assert [len(each) <= TYPES_MAX + 2 for each in kept] == [True] * 5  # type: ignore[arg-type]


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("by", [0, 1])
async def test_one_among_the_others_is_dropped_as_any(way: str, by: int) -> None:
    async with Fleet(2) as fleet:
        reader = fleet.caches[0]
        for data_type in "abcdef":
            await stored(reader, data_type)
        for data_type in "af":
            await WAYS[way](fleet.caches[by], data_type)
            await fleet.settle()
            assert await held(reader, data_type) is None
        if way in NARROW:
            fleet.away = True
            assert [await held(reader, data_type) for data_type in "bcde"] == list("bcde"), "out of memory"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("looked_at", [True, False])
async def test_one_that_gets_a_policy_later_takes_its_entries_along(way: str, looked_at: bool) -> None:
    async with Fleet(2) as fleet:
        reader, writer = fleet.caches
        for data_type in "abcdef":
            await stored(reader, data_type)
        reader.register(policies={"f": Policy(ttl_s=5)})
        if looked_at:
            fleet.away = True
            assert [await held(reader, data_type) for data_type in "cdef"] == list("cdef"), "out of memory"
            fleet.away = False
        await WAYS[way](writer, "f")
        await fleet.settle()
        assert await held(reader, "f") is None
        await stored(reader, "f")
        assert await held(reader, "f") == "f"
        assert reader.stats().types["f"].l1_hits == 1 + looked_at
        await WAYS[way](writer, "f")
        await fleet.settle()
        assert await held(reader, "f") is None


@pytest.mark.usefixtures("few")
async def test_what_others_name_takes_no_place() -> None:
    async with Fleet(2) as fleet:
        reader, writer = fleet.caches
        for at in range(10):
            await writer.invalidate_scope(TENANT, f"made-up-{at}")
        await fleet.settle()
        await stored(reader, "mine")
        assert await held(reader, "mine") == "mine"
        assert set(reader.stats().types) == {"mine"}


@pytest.mark.usefixtures("few")
def test_a_type_keeps_its_name() -> None:
    counters = Counters()
    assert not counters.declare("policy")
    assert [counters.name_of(each) for each in ("a", OTHER, "c", "policy")] == ["a", OTHER, OTHER, "policy"]
    assert counters.declare("c"), "it may have been among the others"
    assert not counters.declare("c")
    assert [counters.name_of(each) for each in "abc"] == ["a", OTHER, "c"]
