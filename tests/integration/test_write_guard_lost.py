"""A write guard that its epoch has taken along: told at every end of its block, and never where it was not."""

from __future__ import annotations

import pytest

from cachebus import Cache, InvalidationFailed
from cachebus.testing import FakeClock, Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from cachebus.writing.guard import WriteGuard
from tests.support.caches import key_of, nodes, parts, until
from tests.support.logs import WITH_LEVEL, told

TIMES = {"staleness_bound_s": 0.6, "probe_interval_s": 0.1, "db_timeout_s": 5.0}


async def in_another_epoch(cache: Cache, before: str) -> None:
    """Until the node has heard of it, by a probe."""
    view = parts(cache).node.shards[0]
    await until(lambda: view.epoch.decode() != before and view.fresh_as_of_s > 0)


def counts(cache: Cache) -> tuple[int, int]:
    """Guards that were left, and those that were lost."""
    stats = cache.stats()
    return stats.guards_left, stats.guards_lost


async def left_standing(guard: WriteGuard) -> None:
    """Its block raises, so only its time-out ends it."""
    with pytest.raises(ZeroDivisionError):
        async with guard:
            raise ZeroDivisionError


async def test_an_end_that_waits_for_l2_has_lost_nothing_where_l2_only_hung(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, pending_max=100, **TIMES) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")
        async with guard:
            epoch = guard.receipt.epoch
            own_server.pause()
        assert (guard.receipt.status, guard.lost, *counts(cache)) == ("pending", False, 1, 0)
        own_server.resume()
        await until(lambda: cache.stats().pending_delivered == 1 and cache.ready())
        assert cache.stats().shards[0].epoch == epoch
        assert (guard.lost, *counts(cache)) == (False, 1, 0)


@pytest.mark.parametrize("pending_max", [0, 100])
async def test_an_end_that_does_not_reach_l2_is_told_lost_once_l2_is_back_without_it(
    own_server: EmbeddedServer, pending_max: int
) -> None:
    async with nodes(own_server.url, 1, pending_max=pending_max, **TIMES) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")
        try:
            async with guard:
                epoch = guard.receipt.epoch
                own_server.kill()
        except InvalidationFailed:
            assert not pending_max
        assert (guard.lost, *counts(cache)) == (False, 1, 0), "nothing is known yet"
        with told(form=WITH_LEVEL) as lines:
            own_server.restart()
            await in_another_epoch(cache, epoch)
            await until(lambda: guard.lost)
        assert counts(cache) == (1, 1)
        assert any(line.startswith("WARNING a write guard was lost") for line in lines)


async def test_a_block_that_raises_behind_a_restart_has_lost_its_guard(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, **TIMES) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")

        async def block() -> None:
            async with guard:
                epoch = guard.receipt.epoch
                own_server.kill()
                own_server.restart()
                await in_another_epoch(cache, epoch)
                raise ValueError("whether it was committed is unknown")

        with pytest.raises(ValueError, match="unknown"):
            await block()
        assert (guard.lost, *counts(cache)) == (True, 0, 1), "nothing stands"


async def test_a_block_that_raises_before_the_restart_is_heard_of_is_told_lost_then(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, **TIMES) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")
        with pytest.raises(ValueError, match="unknown"):
            async with guard:
                raise ValueError("whether it was committed is unknown")
        assert (guard.lost, *counts(cache)) == (False, 1, 0)
        own_server.kill()
        own_server.restart()
        await until(lambda: guard.lost)
        assert counts(cache) == (1, 1)


async def test_a_guard_that_had_ended_before_is_not_lost(own_server: EmbeddedServer) -> None:
    """What was taken away, and what stood to the end of its time."""
    async with nodes(own_server.url, 1, **{**TIMES, "db_timeout_s": 0.1}) as (cache,):
        async with cache.write_guard([("config", "x")], "acme") as ended:
            epoch = ended.receipt.epoch
        left = cache.write_guard([("config", "x")], "acme", timeout_s=0.7)
        with pytest.raises(ValueError, match="unknown"):
            async with left:
                raise ValueError("whether it was committed is unknown")
        until_s = parts(cache).node.shards[0].fresh_as_of_s + 0.8
        await until(lambda: parts(cache).node.shards[0].fresh_as_of_s > until_s)
        own_server.kill()
        own_server.restart()
        await in_another_epoch(cache, epoch)
        await cache.invalidate("config", "y", "acme")
        assert (ended.lost, left.lost, *counts(cache)) == (False, False, 1, 0)


async def test_a_block_that_ends_well_behind_a_restart_is_told_lost(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1, **TIMES) as (cache,):
        guard = cache.write_guard([("config", "x")], "acme")
        async with guard:
            epoch = guard.receipt.epoch
            own_server.kill()
            own_server.restart()
            await in_another_epoch(cache, epoch)
        assert (guard.lost, *counts(cache)) == (True, 0, 1)


async def test_what_is_loaded_while_a_lost_one_may_stand_lives_no_longer_in_memory_than_in_l2(redis_url: str) -> None:
    """An epoch that has just begun may have lost guards."""
    async with nodes(redis_url, 1, guard_max_s=60.0) as (cache,):
        loaded = await cache.get_or_load("config", "x", lambda: "v", "acme", ttl=3600)
        assert loaded == "v"
        entry = parts(cache).node.l1.entries[key_of(cache, "config", "x", "acme").l1]
        assert entry.expires_s < parts(cache).node.clock() + 120.0


async def test_one_that_is_left_is_known_until_a_probe_that_was_sent_behind_its_end_is_answered() -> None:
    """A lease that reaches further tells nothing of the time until then."""
    clock = FakeClock()
    async with Fleet(1, clock=clock, staleness_bound_s=2.0, guard_max_s=60.0) as fleet:
        (cache,) = fleet.caches
        first = cache.write_guard([("config", "x")], "acme", timeout_s=10.0, db_timeout_s=5.0)
        second = cache.write_guard([("config", "y")], "acme", timeout_s=10.0, db_timeout_s=5.0)
        await left_standing(first)
        clock.advance(9.0)
        await fleet.probe()
        await left_standing(second)
        fleet.world.shards[0].server += "'"
        clock.advance(0.5)
        await fleet.probe()
        assert (first.lost, second.lost) == (True, True)
        assert counts(cache) == (2, 2)
