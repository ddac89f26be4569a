"""Real processes that come to each step of an operation and are killed there, or frozen, or a while later woken."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import pytest

from cachebus.base.clock import monotonic
from cachebus.tools.servers.redis import EmbeddedServer
from tests.support.caches import D_S, heard, nodes, past, until
from tests.support.mortal import Mortals
from tests.support.operations import OLD, WHERE
from tests.support.steps import WHENS, When

LEASE_MS = 300
TAKEN_OVER_S = 5.0
"""When somebody else has long taken over, on however busy a machine."""
STEPS_OF = {
    "set": ["write"],
    "invalidate by key": ["invalidate"],
    "invalidate by type": ["invalidate"],
    "get_or_load": ["get", "fill_lease", "load", "fill"],
    "close and open": ["forget", "reach", "listen", "probe"],
}
CASES = [(name, at, when) for name, steps in STEPS_OF.items() for at in range(len(steps)) for when in WHENS]
FROZEN = [case for case in CASES if case[0] in ("get_or_load", "set")]


@pytest.fixture
def mortals() -> Iterator[Mortals]:
    """Processes that may be killed."""
    with Mortals() as mortals:
        yield mortals


async def test_a_process_killed_at_any_step_leaves_a_fleet_that_converges_within_d(
    redis_server: EmbeddedServer, mortals: Mortals
) -> None:
    async def killed(number: int, name: str, at: int, when: When) -> None:
        namespace, loads = f"killed{number}", name == "get_or_load"
        async with nodes(redis_server.url, 2, namespace=namespace, lease_ms=LEASE_MS) as pair:
            a, b = pair
            if not loads:
                receipt = await a.set("config", "x", OLD, **WHERE)
                assert await b.get("config", "x", **WHERE, after=receipt) == OLD
            mortals.begin(number, redis_server.url, namespace, name, at, when, frozen=False)
            there = await until(lambda: mortals.told(number, "there"))
            assert [step.replace("read", "get") for step in there[1]] == STEPS_OF[name][: at + 1]
            mortals.signal(number, signal.SIGKILL)
            for _ in range(2):  # what it sent before is done when the server has gone round
                await asyncio.to_thread(redis_server.command, "PING")
            killed_s = monotonic()
            if loads:  # whoever waits for it takes over when its lease ends
                assert await asyncio.wait_for(b.get_or_load("config", "x", lambda: OLD, **WHERE), TAKEN_OVER_S) == OLD
            await past(killed_s + D_S)
            in_l2 = [await cache.get("config", "x", **WHERE, use_memory=False) for cache in pair]
            assert in_l2[0] == in_l2[1]
            assert [await cache.get("config", "x", **WHERE) for cache in pair] == in_l2
            if when == "after" and name in STEPS_OF and not loads and name != "close and open":
                assert OLD not in in_l2, "it was carried out, though nobody was told"
            for writer in pair:
                await heard(pair, await writer.set("config", "x", killed_s, **WHERE))
                assert [await cache.get("config", "x", **WHERE) for cache in pair] == [killed_s, killed_s]

    await asyncio.gather(*(killed(number, *case) for number, case in enumerate(CASES)))


async def test_a_process_frozen_at_any_step_for_longer_than_d_and_its_lease_neither_serves_nor_fills_what_is_old(
    redis_server: EmbeddedServer, mortals: Mortals
) -> None:
    """It goes on where it was: with the answer that it had, the value that it loaded, the lease that it believes in."""

    async def frozen(number: int, name: str, at: int, when: When) -> None:
        namespace = f"frozen{number}"
        async with nodes(redis_server.url, 2, namespace=namespace, lease_ms=LEASE_MS) as pair:
            a, b = pair
            if name == "set":
                await a.set("config", "x", OLD, **WHERE)
            mortals.begin(number, redis_server.url, namespace, name, at, when, frozen=True)
            await until(lambda: mortals.told(number, "there") and mortals.stopped(number))
            if name == "get_or_load":
                assert await asyncio.wait_for(b.get_or_load("config", "x", lambda: OLD, **WHERE), TAKEN_OVER_S) == OLD
            await b.invalidate("config", "x", **WHERE)
            returned_s = monotonic()
            await past(returned_s + D_S)
            mortals.signal(number, signal.SIGCONT)
            await until(lambda: mortals.told(number, "closed"))
            stale = [told for told in mortals.said[number] if told[0] == "read" and told[2] == OLD]
            assert not stale, f"{when} step {at} of {name}: {stale[0][1] - returned_s:.2f} s after the invalidation"
            # It may have gone on to a write or a load of its own, which are newer; what it had before is gone.
            assert await a.get("config", "x", **WHERE, use_memory=False) != OLD
            await past(monotonic() + D_S)
            for cache in pair:
                found = await cache.get("config", "x", **WHERE)
                assert found in (None, 2)
                assert found == await cache.get("config", "x", **WHERE, use_memory=False)

    await asyncio.gather(*(frozen(number, *case) for number, case in enumerate(FROZEN)))
