"""A connection to L2 that is lost again and again: leases live on, and it is told all the same."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import count

import pytest

from cachebus import Cache, L2Unavailable
from cachebus.base.losses import MANY, WINDOW_S, Losses, Sent
from cachebus.testing import FakeClock, Fleet
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import nodes, until
from tests.support.logs import told


def says(cache: Cache, text: str) -> bool:
    """Whether it names this among what is not as it should be."""
    return any(text in said for said in cache.health().degraded)


@pytest.mark.parametrize(
    ("of", "kind", "connected", "says_what"),
    [
        ("a connection to L2", "normal", "l2_connected", ("L2: ", "closed the connection: calls under way then fail")),
        (
            "a connection of the bus",
            "pubsub",
            "bus_connected",
            ("bus: ", "until there is another one, events are found by probes, within the staleness bound"),
        ),
    ],
    ids=["to L2", "of the bus"],
)
async def test_each_loss_is_in_the_log_and_many_are_in_health(
    own_server: EmbeddedServer, of: str, kind: str, connected: str, says_what: tuple[str, str]
) -> None:
    part, cost = says_what
    with told("WARNING", of=f"{of} was lost: ") as lines:
        async with nodes(own_server.url, 1) as (cache,):
            for _ in range(MANY):
                assert not says(cache, "connections were lost")
                assert kind == "normal" or cache.health().coherent
                known = len(lines)
                await until(lambda: getattr(cache.stats(), connected))
                await asyncio.to_thread(own_server.command, "CLIENT", "KILL", "TYPE", kind)
                await until(lambda known=known: len(lines) > known)
            await until(lambda: getattr(cache.stats(), connected))
            assert says(cache, f"{part}5 connections were lost in the last minute, the last one as 127.0.0.1:")
            assert says(cache, cost)
        known = len(lines)
    assert known == MANY, "closing loses nothing"


async def test_a_type_that_redis_ends_connections_for_is_named(own_server: EmbeddedServer) -> None:
    own_server.command("CONFIG", "SET", "proto-max-bulk-len", "1mb")
    with told("WARNING", of="was on its way") as lines:
        async with nodes(own_server.url, 1) as (cache,):
            numbers = count()

            async def tells() -> bool:
                number, value = next(numbers), b"x" * 2_000_000
                if cache.stats().l2_connected:
                    if number % 2:
                        assert await cache.get_or_load("report", number, lambda: value, "acme") == value
                    else:
                        with suppress(L2Unavailable):
                            await cache.set("report", number, value, "acme")
                return says(cache, "; a report of 2,000,")

            await until(tells)
            assert says(cache, "see proto-max-bulk-len and client-query-buffer-limit")
    assert lines
    assert all(line.startswith("a connection to L2 was lost while a report of 2,000,") for line in lines)


async def test_what_is_not_connected_now_is_told_before_any_probe_has_failed() -> None:
    async with Fleet(1, clock=FakeClock(), probe_interval_s=5.0, staleness_bound_s=10.0) as fleet:
        (cache,) = fleet.caches
        assert cache.health().degraded == ()
        fleet.away = True
        assert says(cache, "L2 is not connected for all shards: until it is, reads go to the source")
        fleet.away = False
        assert cache.health().degraded == ()


def test_what_is_over_for_a_minute_is_told_no_more() -> None:
    clock = FakeClock()
    losses = Losses(clock)
    losses.blame(Sent("report", 2_000_000))
    for _ in range(MANY - 1):
        losses.note("here:1", "it went")
    assert losses.trouble == ""
    losses.note("here:1", "it went away")
    assert losses.trouble.startswith(
        "5 connections were lost in the last minute, the last one as it went away; a report"
    )
    clock.advance(WINDOW_S)
    assert losses.trouble == ""
    for _ in range(MANY):
        losses.note("here:1", "it went")
    assert "report" not in losses.trouble


def test_one_blip_of_many_servers_is_not_told_and_one_server_is_told_beside_others() -> None:
    losses = Losses(FakeClock())
    for number in range(MANY + 1):
        losses.note(f"there:{number}", "all went")
    assert losses.trouble == ""
    for _ in range(MANY - 1):
        losses.note("there:0", "it went")
    losses.note("there:1", "another went")
    assert losses.trouble == "5 connections were lost in the last minute, the last one as it went"
