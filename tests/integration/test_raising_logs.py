"""What the service around the library raises, in its logging or in a callback, ends nothing of the library's."""

from __future__ import annotations

import asyncio
import logging

import pytest

from cachebus.base.log import Logger
from cachebus.listening.heartbeat import LOOP
from cachebus.listening.probe import Prober
from cachebus.testing import Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.broken_logs import NeedsRequest, broken
from tests.support.caches import QUICK, nodes, parts, until


@pytest.mark.parametrize("filters", [(), (NeedsRequest(),)], ids=["handler", "filter"])
async def test_a_node_comes_back_whose_logging_raises(
    own_server: EmbeddedServer, filters: tuple[logging.Filter, ...]
) -> None:
    async with nodes(own_server.url, 1, connect_timeout_s=0.5) as (cache,):
        with broken(*filters):
            own_server.pause()
            await until(lambda: not cache.ready() and parts(cache).listening.outages.lacks(0))
            own_server.resume()
            await until(cache.ready, within_s=10.0)
            assert await cache.set("config", "x", 1, "acme")


async def test_what_waits_is_delivered_though_the_line_of_it_raises() -> None:
    async with Fleet(1, **QUICK, pending_max=8) as fleet:
        [cache] = fleet.caches
        await cache.set("config", "x", 1, "acme")
        fleet.away = True
        with broken() as handler:
            assert (await cache.invalidate("config", "x", "acme")).status == "pending"
            assert any("invalidations wait" in line for line in handler.refused)
            fleet.away = False
            assert await cache.drain(10.0)
        await cache.set("config", "x", 2, "acme")
        assert await cache.get("config", "x", "acme") == 2


def test_a_line_that_the_logging_refuses_is_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with broken():
        Logger().warning("{} is away", "L2")
        Logger().info("{} is back", "L2")
        Logger().error("{} {}", "too few")
    said = capfd.readouterr().err
    assert "L2 is away (the service's logging has raised OSError)" in said
    assert "is back" not in said
    assert "{} {} (" in said


def test_loguru_that_raises_is_no_matter() -> None:
    class Raises:
        def opt(self, **_: object) -> Raises:
            return self

        def log(self, *_: object) -> None:
            raise OSError("sink full")

    told_by = Logger()
    told_by._loguru = Raises()
    told_by.warning("{} is away", "L2")


async def test_a_hook_that_raises_costs_no_event(own_server: EmbeddedServer) -> None:
    def raises(*_: object) -> None:
        raise ValueError("hook")

    async with nodes(own_server.url, 2) as (a, b):
        a.on_applied = b.on_applied = raises
        await a.set("config", "x", 1, "acme")
        assert await b.get("config", "x", "acme") == 1
        before = b.stats().reconnects
        receipt = await a.invalidate("config", "x", "acme")
        await until(lambda: b.stats().shards[receipt.shard].applied >= receipt.seq)
        assert (b.stats().reconnects, b.stats().gaps) == (before, 0)


# -- tasks ---------------------------------------------------------------------------------------------------------


async def test_a_stray_cancellation_ends_no_loop_of_the_heartbeat(
    own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a future that somebody else has cancelled, and a step waited for."""
    real, strays = Prober.reach, [asyncio.CancelledError()]

    async def reach(prober: Prober, shard: int) -> None:
        if strays:
            raise strays.pop()
        await real(prober, shard)

    async with nodes(own_server.url, 1) as (cache,):
        monkeypatch.setattr(Prober, "reach", reach)
        await until(lambda: not strays)
        own_server.pause()
        await until(lambda: not cache.ready())
        own_server.resume()
        await until(cache.ready, within_s=10.0)


async def test_a_heartbeat_that_somebody_has_cancelled_is_in_health(own_server: EmbeddedServer) -> None:
    async with nodes(own_server.url, 1) as (cache,):
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "cachebus-heartbeat"]
        task.cancel()
        await asyncio.wait([task])
        health = cache.health()
        assert (health.serving, health.coherent) == (False, False)
        assert health.degraded[0].startswith("the heartbeat has ended, ")


async def test_one_loop_of_the_heartbeat_that_somebody_has_ended_is_told() -> None:
    async with Fleet(1, shards=4) as fleet:
        (cache,) = fleet.caches
        assert cache.health().degraded == ()
        loops = await until(lambda: [task for task in asyncio.all_tasks() if task.get_name() == LOOP])
        one = loops[0]
        one.cancel()
        await asyncio.wait([one])
        assert cache.health().degraded[0].startswith("the heartbeat has ended, ") and not cache.health().serving


async def test_a_queue_whose_delivery_somebody_has_ended_goes_on_with_the_next_write() -> None:
    async with Fleet(1, **QUICK, pending_max=8) as fleet:
        [cache] = fleet.caches
        fleet.away = True
        assert (await cache.invalidate("config", "x", "acme")).status == "pending"
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "cachebus-pending"]
        task.cancel()
        await asyncio.wait([task])
        fleet.away = False
        await until(cache.ready)
        await cache.set("config", "x", 2, "acme")
        assert cache.stats().pending == 0
