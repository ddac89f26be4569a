"""More scopes, tags and ids invalidated than L2 remembers: who does it loses by it, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from cachebus import Cache
from cachebus.cascade import Target
from cachebus.core.invalidated import PRUNED_AT_ONCE
from cachebus.keys.key import bucket_of
from tests.support.caches import heard, nodes, parts

MOST = 256
AT_ONCE = 16
BUSY = "busy"
QUIET = [name for name in (f"quiet-{number}" for number in range(70)) if bucket_of(name) != bucket_of(BUSY)][:64]
KEPT = 3


@pytest.fixture
async def pair(redis_url: str) -> AsyncIterator[list[Cache]]:
    async with nodes(redis_url, max_invalidated_scopes=MOST, guard_max_s=0.0) as opened:
        yield opened


async def quiet_tenants(writer: Cache) -> None:
    """Values of other tenants, each with a mark of its own that is older than they."""
    for tenant in QUIET:
        await writer.invalidate_tags(["t"], tenant)
        for number in range(KEPT):
            await writer.set("doc", number, "kept", tenant, tags=["t"])


async def held(cache: Cache, *, use_memory: bool = True) -> int:
    """How many of them a node still has."""
    found = [
        await cache.get("doc", number, tenant, use_memory=use_memory) for tenant in QUIET for number in range(KEPT)
    ]
    return found.count("kept")


async def busy_rows(writer: Cache, rows: int) -> None:
    """So many rows of one tenant, each invalidated in all contexts, as `invalidate_coordinated` does."""
    for first in range(0, rows, AT_ONCE):
        targets = [Target("row", f"r{first + i}") for i in range(AT_ONCE)]
        receipt = await writer.invalidate_targets(targets, BUSY, contexts="all")
    assert receipt


def invalidated_of(cache: Cache, tenant: str) -> int:
    """How many marks of its bucket a node remembers."""
    return len(parts(cache).node.shards[0].invalidated.get(bucket_of(tenant), ()))


async def test_a_tenant_with_more_marks_than_are_kept_loses_its_own_values_alone(pair: list[Cache]) -> None:
    writer, reader = pair
    await quiet_tenants(writer)
    await writer.set("row", "in a context", 1, BUSY, agent_id="a7")
    await writer.set("row", "old", 1, BUSY)
    assert await held(reader) == len(QUIET) * KEPT
    await busy_rows(writer, 6 * MOST)
    await heard(pair, await writer.invalidate("row", "last", BUSY))
    for cache in pair:
        assert await held(cache) == len(QUIET) * KEPT
        assert await held(cache, use_memory=False) == len(QUIET) * KEPT
        assert await cache.get("row", "old", BUSY) is None, "older than what is remembered of its bucket"
        stats = cache.stats()
        assert stats.watermarks_raised
        assert set(stats.flushes) == {"start"}
        assert invalidated_of(cache, BUSY) <= MOST + PRUNED_AT_ONCE + AT_ONCE
    assert reader.stats().lost_to_watermarks, "that is counted"
    receipt = await writer.invalidate_tags(["t"], QUIET[0])
    await heard(pair, receipt)
    assert await held(reader) == (len(QUIET) - 1) * KEPT, "and marks that are kept are heeded"


async def test_ids_of_a_type_without_contexts_take_no_room_at_all(pair: list[Cache]) -> None:
    writer, _ = pair
    await quiet_tenants(writer)
    await writer.set("row", "old", 1, BUSY)
    await busy_rows(writer, 6 * MOST)
    await heard(pair, await writer.invalidate("row", "last", BUSY))
    for cache in pair:
        assert await held(cache) == len(QUIET) * KEPT
        assert await cache.get("row", "old", BUSY) == 1, "nor does it lose anything"
        assert cache.stats().watermarks_raised == 0
        assert invalidated_of(cache, BUSY) == 0


async def test_a_node_that_begins_later_knows_what_is_not_remembered_any_more(
    pair: list[Cache], redis_url: str
) -> None:
    writer, _ = pair
    await writer.set("row", "in a context", "old", BUSY, agent_id="a7")
    await writer.set("row", "r0", "old", BUSY, agent_id="a7")
    await busy_rows(writer, 6 * MOST)
    async with nodes(redis_url, 1, max_invalidated_scopes=MOST, guard_max_s=0.0) as (late,):
        for resource_id in ("r0", "in a context"):
            assert await late.get("row", resource_id, BUSY, agent_id="a7") is None


@pytest.mark.parametrize("first", ["the value", "the invalidation"])
async def test_an_id_in_all_contexts_reaches_every_context_whenever_the_first_came(
    pair: list[Cache], first: str
) -> None:
    writer, reader = pair
    if first == "the invalidation":
        await writer.invalidate("row", "7", BUSY, contexts="all")
    for context in ({"agent_id": "a7"}, {"collection_id": "c1"}, {"agent_id": "a7", "conversation_id": "v"}):
        await writer.set("row", "7", "old", BUSY, **context)
        assert await reader.get("row", "7", BUSY, **context) == "old"
    receipt = await writer.invalidate("row", "7", BUSY, contexts="all")
    for context in ({"agent_id": "a7"}, {"collection_id": "c1"}, {"agent_id": "a7", "conversation_id": "v"}):
        for use_memory in (True, False):
            assert await reader.get("row", "7", BUSY, **context, after=receipt, use_memory=use_memory) is None
