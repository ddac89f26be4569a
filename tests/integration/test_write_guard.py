"""The write guard as services use it: what is cached in the block and behind it, how it ends, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cachebus import (
    Cache,
    CacheManager,
    Cascade,
    ConfigError,
    InvalidationFailed,
    InvalidKey,
    TenantRequired,
    lifespan,
    write_guard,
)
from cachebus.testing import FakeClock, Fleet
from tests.support.caches import Source, nodes, parts, quick, until

TIMES: dict[str, Any] = {"staleness_bound_s": 0.6, "probe_interval_s": 0.1, "db_timeout_s": 1.0}


@asynccontextmanager
async def pair(**more: Any) -> AsyncIterator[tuple[Fleet, Cache, Cache]]:
    """Two nodes over a memory store."""
    async with Fleet(2, **{**TIMES, **more}) as fleet:
        yield fleet, *fleet.caches


async def test_in_the_block_everybody_reads_the_source_and_behind_it_the_cache(redis_url: str) -> None:
    source = Source(x="old")
    async with nodes(redis_url, 2, db_timeout_s=1.0) as (a, b):
        await b.get_or_load("config", "x", source.load, tenant_id="acme")
        async with a.write_guard([("config", "x")], tenant_id="acme") as guard:
            assert guard.receipt.targets == {"config": 1}
            for cache in (a, b):
                for _ in range(2):
                    calls = source.calls
                    assert (
                        await cache.get_or_load("config", "x", source.load, tenant_id="acme", after=guard.receipt)
                        == "old"
                    )
                    assert source.calls == calls + 1
            source.values["x"] = "new"
            assert await a.get("config", "x", "acme") is None
        calls = source.calls
        assert await a.get_or_load("config", "x", source.load, tenant_id="acme") == "new"
        assert await b.get_or_load("config", "x", source.load, tenant_id="acme", after=guard.receipt) == "new"
        assert source.calls == calls + 1
        assert (a.stats().guards, a.stats().guards_left, a.stats().guarded_loads) == (1, 0, 2)


async def test_cascades_scopes_and_tags_are_guarded(redis_url: str) -> None:
    async with nodes(redis_url, 2, db_timeout_s=1.0) as (a, b):
        a.register(Cascade("document", to=[("embedding", "doc:{resource_id}"), ("page", "*")]))
        covered = [("document", "7"), ("embedding", "doc:7"), ("page", "p"), ("view", "v"), ("answer", "q")]
        scopes: list[Any] = ["view", {"data_type": "answer", "collection_id": "c1"}]
        async with a.write_guard([("document", "7")], "acme", scopes=scopes, tags=["t"]) as guard:
            assert guard.receipt.targets == {
                "document": 1,
                "embedding": 1,
                "page": 1,
                "view": 1,
                "answer": 1,
                "tags": 1,
            }
            for data_type, name in covered:
                context = {"collection_id": "c1"} if data_type == "answer" else {}
                receipt = await b.set(data_type, name, 1, "acme", **context)
                assert not receipt.stored
                assert not await b.add(data_type, name, 1, 60, "acme", **context)
            assert not (await b.set("other", "o", 1, "acme", tags=["t"])).stored
            assert (await b.set("other", "o", 1, "acme")).stored
            assert (await b.set("answer", "q", 1, "acme", collection_id="c2")).stored
            assert (await b.set("document", "7", 1, "other")).stored, "another tenant"
        for data_type, name in covered:
            assert (await b.set(data_type, name, 1, "acme")).stored


async def test_a_set_under_a_guard_says_so_and_replaces_what_there_was() -> None:
    async with pair() as (_, a, b):
        async with a.write_guard([("config", "x")], "acme"):
            receipt = await b.set("config", "x", "early", "acme")
            assert (receipt.status, receipt.stored) == ("applied", False)
            assert [await cache.get("config", "x", "acme") for cache in (a, b)] == [None, None]
        assert (await b.set("config", "x", "late", "acme")).stored
        assert await a.get("config", "x", "acme") == "late"


@pytest.mark.parametrize("end", ["exception", "cancellation"])
async def test_left_otherwise_it_stands_to_its_time_out(end: str) -> None:
    clock = FakeClock()
    async with pair(clock=clock) as (fleet, a, b):

        async def block() -> None:
            async with a.write_guard([("config", "x")], "acme", timeout_s=2.0):
                if end == "exception":
                    raise OSError("COMMIT: connection lost")
                await asyncio.sleep(60)

        running = asyncio.create_task(block())
        await asyncio.sleep(0.01)
        if end == "cancellation":
            running.cancel()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await running
        assert a.stats().guards_left == 1
        assert not (await b.set("config", "x", 1, "acme")).stored
        clock.advance(1.9)
        await fleet.probe()
        assert not (await b.set("config", "x", 1, "acme")).stored
        clock.advance(0.2)
        await fleet.probe()
        assert (await b.set("config", "x", 1, "acme")).stored


async def test_guards_overlap() -> None:
    async with pair() as (_, a, b):
        async with a.write_guard([("config", "x")], "acme"):
            async with b.write_guard([("config", "x")], "acme"), b.write_guard(scopes=["config"], tenant_id="acme"):
                assert not (await a.set("config", "y", 1, "acme")).stored
            assert (await a.set("config", "y", 1, "acme")).stored
            assert not (await b.set("config", "x", 1, "acme")).stored
        assert (await b.set("config", "x", 1, "acme")).stored


async def test_a_guard_that_outlasted_its_time_invalidates_all_the_same_and_is_counted() -> None:
    clock = FakeClock()
    async with pair(clock=clock) as (fleet, a, b):
        async with a.write_guard([("config", "x")], "acme", timeout_s=2.0):
            clock.advance(2.1)
            await fleet.probe()
            await b.set("config", "x", "old", "acme")
        assert a.stats().guards_left == 1
        assert await a.get("config", "x", "acme") is None
        await fleet.settle()
        assert await b.get("config", "x", "acme") is None


async def test_it_waits_for_the_nodes_when_asked_to(redis_url: str) -> None:
    async with nodes(redis_url, 2, db_timeout_s=1.0) as pair_:
        a, b = pair_
        async with a.write_guard([("config", "x")], "acme", wait="nodes") as guard:
            pass
        assert set(guard.receipt.confirmed) == {cache.stats().node for cache in pair_}
        assert await b.get("config", "x", "acme") is None


async def test_without_l2_it_is_not_entered_and_at_its_end_it_raises_or_waits() -> None:
    async with pair() as (fleet, a, _):
        fleet.away = True
        with pytest.raises(InvalidationFailed):
            async with a.write_guard([("config", "x")], "acme"):
                raise AssertionError("entered")
        fleet.away = False
        await until(a.ready)
        with pytest.raises(InvalidationFailed):
            async with a.write_guard([("config", "x")], "acme"):
                fleet.away = True
        fleet.away = False
    async with pair(pending_max=5) as (fleet, a, _):
        async with a.write_guard([("config", "x")], "acme") as guard:
            fleet.away = True
        assert guard.receipt.status == "pending"
        fleet.away = False
        assert await a.drain(5)
        assert parts(a).node.blocked is None
        fleet.away = True
        with pytest.raises(InvalidationFailed):
            await a.write_guard([("config", "x")], "acme").__aenter__()  # a guard can't wait
        fleet.away = False
        await until(a.ready)


@pytest.mark.parametrize(
    ("settings", "arguments", "words"),
    [
        ({"db_timeout_s": None}, {}, "db_timeout_s"),
        ({}, {"timeout_s": 1.0}, "must exceed db_timeout_s"),
        ({}, {"timeout_s": 0.9, "db_timeout_s": 0.5, "bound": 1}, "staleness_bound_s"),
        ({}, {"timeout_s": 61}, "guard_max_s"),
        ({}, {"db_timeout_s": 60}, "guard_max_s"),
        ({"guard_max_s": 0}, {}, "guard_max_s"),
    ],
)
async def test_times_that_can_not_keep_the_promise_are_refused(
    settings: dict[str, Any], arguments: dict[str, Any], words: str
) -> None:
    if arguments.pop("bound", None):
        settings = {"staleness_bound_s": 1.0}
    async with pair(**settings) as (_, a, _):
        with pytest.raises(ConfigError, match=words):
            a.write_guard([("config", "x")], "acme", **arguments)


async def test_it_outlasts_the_largest_staleness_bound_of_the_fleet(redis_url: str) -> None:
    """Another node may serve its memory for its own D, which may be more than ours: also once that one has gone."""
    async with nodes(redis_url, 1, staleness_bound_s=3.0):
        pass
    async with nodes(redis_url, 1, db_timeout_s=1.0) as (a,):
        with pytest.raises(ConfigError, match=r"staleness_bound_s \(3, the largest of the fleet\)"):
            a.write_guard([("config", "x")], "acme", timeout_s=2.9)
        async with a.write_guard([("config", "x")], "acme"):
            link: Any = parts(a).store
            ends_us = int(await link._links.of(0).call("HGET", "{cachebus:0}:meta", "guards"))
            seconds, us = map(int, await link._links.of(0).call("TIME"))
            assert ends_us > (seconds + 1) * 1_000_000 + us + 3_000_000, "after D and the transaction"


async def test_what_it_covers_is_checked_at_once() -> None:
    async with pair() as (_, a, _):
        for bad in ({}, {"tags": "t"}, {"scopes": "config"}, {"scopes": [{"resource_id": "x"}]}):
            with pytest.raises(ValueError, match=r"guard|sequence|data_type"):
                a.write_guard(tenant_id="acme", **bad)  # type: ignore[arg-type]
        with pytest.raises(TenantRequired):
            a.write_guard([("config", "x")])
        with pytest.raises(InvalidKey):
            a.write_guard([("config", "")], "acme")
        guard = a.write_guard([("config", "x")], "acme")
        async with guard:
            with pytest.raises(ConfigError, match="one block"):
                await guard.__aenter__()


async def test_the_process_wide_form(redis_url: str) -> None:
    with pytest.raises(ConfigError, match="no cache is open"):
        write_guard([("config", "x")], "acme")
    async with lifespan(quick(redis_url, db_timeout_s=1.0)):
        async with CacheManager.write_guard([("config", "x")], tenant_id="acme") as guard:
            assert not (await CacheManager.set("config", "x", 1, "acme")).stored
        assert guard.receipt.status == "applied"
        async with write_guard(tenant_id="acme", tags=["t"], timeout_s=2.0):
            pass


async def test_in_a_disabled_cache_it_does_nothing() -> None:
    async with pair(enabled=False) as (_, a, _):
        async with a.write_guard([("config", "x")], "acme") as guard:
            pass
        assert (guard.receipt.status, guard.receipt.stored) == ("disabled", False)


async def test_before_its_block_it_stands_for_nothing() -> None:
    async with pair() as (_, a, _):
        assert a.write_guard([("config", "x")], "acme").receipt.status == "pending"


async def test_a_value_loaded_under_a_guard_is_as_any_node_would_give_it() -> None:
    async with pair() as (_, a, b), a.write_guard([("config", "x")], "acme"):
        assert await b.get_or_load("config", "x", lambda: (1, 2), "acme") == [1, 2]
        unfit = object()
        assert await b.get_or_load("config", "x", lambda: unfit, "acme") is unfit
        assert await b.get_or_load("config", "x", lambda: None, "acme") is None
