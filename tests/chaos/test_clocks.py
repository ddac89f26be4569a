"""Clocks that are set, machines that sleep: no rule reads the wall clock, and a suspended machine believes nothing."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import cachebus
from cachebus.base import clock
from cachebus.base.clock import monotonic
from cachebus.listening import probe
from cachebus.testing import Fleet
from tests.support.caches import D_S, deaf, nodes, until

WHERE = {"tenant_id": "acme"}


def test_only_one_module_can_read_a_clock_and_no_rule_asks_it_for_the_wall_clock() -> None:
    users = set()
    for path in Path(cachebus.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = {getattr(node, "id", ""), getattr(node, "attr", "")}
            names |= {alias.name for alias in getattr(node, "names", ()) if isinstance(alias, ast.alias)}
            if names & {"wall_s", "utcnow", "today", "localtime"} and path.name != "clock.py":
                users.add(path.relative_to(Path(cachebus.__file__).parent).as_posix())
    assert not {user for user in users if not user.startswith(("cli/", "tools/"))}


@pytest.mark.parametrize("step_s", [-86_400.0, -3.0, 3.0, 86_400.0])
async def test_a_step_of_the_wall_clock_changes_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    async with nodes(redis_url, 2) as (a, b):
        await a.set("config", "kept", 1, **WHERE, ttl=60)
        receipt = await a.set("config", "x", "old", **WHERE)
        assert await b.get("config", "x", **WHERE, after=receipt) == "old"
        import time

        lapsed = [cache.stats().lease_lapses for cache in (a, b)]  # a busy machine may have been slow to begin
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + step_s)
        assert abs(clock.wall_s() - wall() - step_s) < 1
        assert await b.get("config", "x", **WHERE) == "old"
        receipt = await a.invalidate("config", "x", **WHERE)
        assert await b.get("config", "x", **WHERE, after=receipt) is None
        await a.set("config", "short", 1, **WHERE, ttl=60)
        for cache in (a, b):
            assert await cache.get("config", "kept", **WHERE) == 1
            assert await cache.get("config", "short", **WHERE) == 1
            assert cache.ready()
        assert [cache.stats().lease_lapses for cache in (a, b)] == lapsed


async def test_a_step_of_the_servers_clock_neither_revives_what_was_replaced_nor_makes_a_node_unready() -> None:
    """The server's clock stands in records' expiries alone; a memory store is given one that can be set."""
    async with Fleet(2, staleness_bound_s=D_S, probe_interval_s=0.1, gap_grace_s=0.02) as fleet:
        a, b = fleet.caches
        shard: Any = fleet.world.shards[0]
        await a.set("config", "x", "old", **WHERE)
        assert await b.get("config", "x", **WHERE) == "old"
        await a.invalidate("config", "x", **WHERE)
        for step_s in (3600.0, -7200.0):
            before = shard.clock
            shard.clock = lambda before=before, step_s=step_s: before() + step_s
            await fleet.probe()
            for cache in (a, b):
                assert cache.ready()
                assert await cache.get("config", "x", **WHERE) is None
            receipt = await b.set("config", "y", step_s, **WHERE, ttl=60)
            for cache in (a, b):
                assert await cache.get("config", "y", **WHERE, after=receipt) == step_s
                assert await cache.get("config", "y", use_memory=False, **WHERE) == step_s


async def test_after_a_suspension_nothing_is_served_by_a_lease_from_before_it(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock stood still: by it the lease is as good as new."""
    async with nodes(redis_url, 2, staleness_bound_s=60, probe_interval_s=0.1) as (a, b):
        receipt = await a.set("config", "x", "old", **WHERE)
        assert await b.get("config", "x", **WHERE, after=receipt) == "old"
        with deaf(b):
            await a.invalidate("config", "x", **WHERE)
            assert await b.get("config", "x", **WHERE) == "old", "it has heard nothing, and its lease lives"
        monkeypatch.setattr(probe, "boottime_s", lambda: monotonic() + 3600)
        await until(lambda: b.stats().flushes.get("suspended"))
        assert await b.get("config", "x", **WHERE) is None
        await until(b.ready)
