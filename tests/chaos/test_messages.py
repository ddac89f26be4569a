"""What the bus may do to messages, enumerated: dropped, doubled, delayed, in every order, with the log or without."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from itertools import product
from typing import Any

import pytest

from cachebus import Cache, Policy, Receipt, Settings
from cachebus.assembly.factory import World
from cachebus.testing import Faults, Fleet
from tests.support.caches import parts
from tests.support.simulation import VirtualLoop, live

WHERE = {"tenant_id": "acme"}
D_S = 1.0
SETTINGS = Settings(url="memory://", staleness_bound_s=D_S, probe_interval_s=0.5, gap_grace_s=0.02)
EVENTS = 3
ARRIVALS = [arrival for length in range(EVENTS + 2) for arrival in product(range(EVENTS), repeat=length)]
"""Every way for three messages to come, up to one more than there are."""


async def replaced(cache: Cache) -> list[Receipt]:
    """Three events: of a key, a scope and a tag."""
    return [
        await cache.invalidate("config", "k0", **WHERE),
        await cache.invalidate_scope("acme", "scoped"),
        await cache.invalidate_tags(["t"], **WHERE),
    ]


THINGS = (("config", "k0", []), ("scoped", "k1", []), ("config", "k2", ["t"]))


async def one(loop: VirtualLoop, arrival: tuple[int, ...], logged: bool) -> None:
    """B hears the messages of a's events in this way."""
    world = World(1, loop.time, max_invalidated_scopes=1000, log_max=1000)
    shard = world.shards[0]
    a, b = (Cache(SETTINGS, world=world, clock=loop.time) for _ in range(2))
    async with a, b:
        for data_type, resource_id, tags in THINGS:
            receipt = await a.set(data_type, resource_id, "old", **WHERE, tags=tags)
            assert await b.get(data_type, resource_id, **WHERE, after=receipt) == "old"
        await asyncio.sleep(0.01)
        began, before = b.stats().shards[0].applied, b.stats()
        messages: list[bytes] = []
        shard.publish = messages.append
        await replaced(a)
        returned_s = loop.time()
        if not logged:
            shard.messages.clear()
        gone = set[int]()
        on_message = parts(b).heartbeat.receiver.on_message
        for number in arrival:
            on_message(0, messages[number])
            gone.add(number)
            for i in gone:  # what came is believed at once, whatever is missing before it
                assert await b.get(THINGS[i][0], THINGS[i][1], **WHERE) is None, f"event {i} of {arrival}"
        await asyncio.sleep(returned_s + D_S + 0.001 - loop.time())
        for data_type, resource_id, _ in THINGS:
            for use_memory in (True, False):
                assert await b.get(data_type, resource_id, **WHERE, use_memory=use_memory) is None, (arrival, logged)
        stats = b.stats()
        assert (stats.shards[0].applied, stats.shards[0].gap) == (began + EVENTS, 0)
        applied = stats.events_applied - before.events_applied
        assert applied + stats.events_flushed == EVENTS, (arrival, logged, "an event is not counted, or twice")


@pytest.mark.parametrize("logged", [True, False], ids=["log kept", "log lost"])
def test_messages_dropped_doubled_delayed_or_in_any_order_cost_a_catch_up_and_are_each_counted_once(
    logged: bool,
) -> None:
    for arrival in ARRIVALS:
        live(lambda loop, arrival=arrival: one(loop, arrival, logged))


@pytest.mark.parametrize("seed", range(6))
def test_a_sessions_reads_never_go_back_on_whichever_node_under_faults_of_the_bus(seed: int) -> None:
    async def main(loop: VirtualLoop) -> None:
        faults = Faults(seed=seed, drop=0.3, double=0.2, swap=0.3)
        async with Fleet(3, faults=faults, clock=loop.time, staleness_bound_s=D_S, probe_interval_s=0.5) as fleet:
            session: Receipt | None = None
            seen = 0
            for turn in range(120):
                if turn % 3 == 0:
                    session = await fleet.caches[turn % 2].set("config", "x", turn, **WHERE)
                reader: Any = fleet.caches[(turn + seed) % 3]
                found = await reader.get("config", "x", **WHERE, after=session, use_memory=bool(turn % 4))
                assert found >= seen, f"turn {turn}"
                seen = found
                await asyncio.sleep(0.01 * (turn % 5))
            assert seen == 117

    live(main)


@pytest.mark.parametrize("seed", range(6))
def test_one_loader_at_a_time_over_all_nodes_whatever_becomes_of_messages_and_callers(seed: int) -> None:
    """Leases alone see to it; hints that they have ended only save waiting."""
    dice = random.Random(seed)
    loading = most = loads = 0

    async def load() -> int:
        nonlocal loading, most, loads
        loading += 1
        loads += 1
        most = max(most, loading)
        try:
            await asyncio.sleep(dice.uniform(0, 0.3))  # up to three times as long as a lease that is not held on to
            if dice.random() < 0.2:
                raise RuntimeError("down")
            return loads
        finally:
            loading -= 1

    async def caller(cache: Cache) -> None:
        for _ in range(6):
            with suppress(RuntimeError, TimeoutError):
                async with asyncio.timeout(dice.choice((0.02, 0.2, 5))):
                    await cache.get_or_load("config", "x", load, **WHERE)
            if dice.random() < 0.3:
                await cache.invalidate("config", "y", **WHERE)
            await asyncio.sleep(dice.uniform(0, 0.1))

    async def main(loop: VirtualLoop) -> None:
        faults = Faults(seed=seed, drop=0.5, double=0.2, swap=0.3)
        policies = {"config": Policy(ttl_s=0.05, retries=0)}
        async with Fleet(3, faults=faults, clock=loop.time, lease_ms=100, policies=policies) as fleet:
            await asyncio.gather(*(caller(cache) for cache in fleet.caches for _ in range(4)))

    live(main)
    assert most == 1
    assert loads > 3
