"""Whole lives of a fleet over memory, in virtual time, under seeded faults: no read is staler than D, sessions hold."""

from __future__ import annotations

import asyncio
import random

import pytest

from cachebus.testing import Faults, Fleet
from tests.support.history import Town, replay_of, seeds
from tests.support.simulation import VirtualLoop, Wire, live

FILE = "tests/chaos/test_history.py"
D_S = 1.0
LIFE_S = 20.0


async def trouble(fleet: Fleet, wires: list[Wire], dice: random.Random, until_s: float, loop: VirtualLoop) -> None:
    """Outages, cut wires, deaf ears, restarts, flushes and lost keys of cachebus's own, now and then."""

    async def outage() -> None:
        fleet.away = True
        await asyncio.sleep(dice.uniform(0, 2 * D_S))
        fleet.away = False

    async def cut() -> None:
        dice.choice(wires).cut()

    async def deaf() -> None:
        wire = dice.choice(wires)
        wire.deaf = True
        await asyncio.sleep(dice.uniform(0, 3 * D_S))
        wire.deaf = False

    async def restart() -> None:
        fleet.world.shards[0].server = f"{dice.getrandbits(160):040x}"

    async def flush() -> None:
        fleet.world.shards[0].wipe()

    async def lose_marks() -> None:
        fleet.world.shards[0].marks.clear()

    async def lose_log() -> None:
        fleet.world.shards[0].messages.clear()

    troubles = (outage, cut, cut, deaf, deaf, restart, flush, lose_marks, lose_log)
    while loop.time() < until_s:
        await asyncio.sleep(dice.uniform(0, D_S))
        await dice.choice(troubles)()


async def life(seed: int, loop: VirtualLoop) -> None:
    """Four nodes, two callers each, for twenty virtual seconds."""
    dice = random.Random(seed)
    random.seed(seed)  # the jitter of heartbeats
    faults = Faults(seed=seed, drop=dice.uniform(0, 0.3), double=dice.uniform(0, 0.2), swap=dice.uniform(0, 0.3))
    settings = {"staleness_bound_s": D_S, "probe_interval_s": 0.25, "hole_grace_s": 0.02, "l2_timeout_s": 0.5}
    until_s = loop.time() + LIFE_S
    fleet = Fleet(4, faults=faults, clock=loop.time, log_max_len=dice.choice((16, 100_000)), max_marks=16, **settings)
    async with fleet:
        wires = [Wire(cache, fleet, dice, delay_s=dice.choice((0.002, 0.02, 0.2))) for cache in fleet.caches]
        town = Town(loop.time, D_S, dice)
        lives = [town.live(cache, f"node {i}", until_s) for i, cache in enumerate(fleet.caches) for _ in range(2)]
        await asyncio.gather(*lives, trouble(fleet, wires, dice, until_s, loop))
        fleet.away = False
        for wire in wires:
            wire.deaf = False
        await town.rest(fleet.caches)
        for cache in fleet.caches:
            stats = cache.stats()
            assert stats.flights == 0, replay_of(FILE, seed)
        town.verdict(replay_of(FILE, seed))


@pytest.mark.parametrize("seed", seeds(12))
def test_lives_under_faults(seed: int) -> None:
    live(lambda loop: life(seed, loop))
