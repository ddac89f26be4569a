"""Whole lives of a fleet over memory, in virtual time, under seeded faults: no read is staler than D, sessions hold."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from cachebus.l2.memory import MemoryShard
from cachebus.testing import Faults, Fleet
from tests.support.history import JudgedWorkload, Mix, replay_of, seeds
from tests.support.shard_state import copied, lose_nodes, put_back
from tests.support.simulation import VirtualLoop, Wire, live

FILE = "tests/chaos/test_history.py"
D_S = 1.0
LIFE_S = 20.0
NODES = 3


class RandomFaults:
    """What befalls a fleet, at moments that the dice choose."""

    def __init__(self, fleet: Fleet, wires: list[Wire], dice: random.Random) -> None:
        self.fleet, self.wires, self.dice = fleet, wires, dice
        self.shard: MemoryShard = fleet.world.shards[0]
        self._backup = copied(self.shard)

    async def outage(self) -> None:
        """The store is out of everybody's reach."""
        self.fleet.away = True
        await asyncio.sleep(self.dice.uniform(0, 3 * D_S))
        self.fleet.away = False

    async def cut(self) -> None:
        """A connection is lost, with the answers on it."""
        self.dice.choice(self.wires).cut()

    async def exile(self) -> None:
        """One node can't reach the store; the others can, and its subscription may live or not."""
        wire = self.dice.choice(self.wires)
        wire.away, wire.deaf = True, self.dice.random() < 0.7
        wire.cut()
        await asyncio.sleep(self.dice.uniform(0, 4 * D_S))
        wire.away = wire.deaf = False

    async def deafness(self) -> None:
        """One node hears nothing, while its commands work."""
        wire = self.dice.choice(self.wires)
        wire.deaf = True
        await asyncio.sleep(self.dice.uniform(0, 4 * D_S))
        wire.deaf = False

    async def restart(self) -> None:
        """The server begins again with what it had, or with an older copy of it, or with nothing."""
        self.shard.server = f"{self.dice.getrandbits(160):040x}"
        then = self.dice.choice(("same", "older", "older", "nothing"))
        if then == "older":
            put_back(self.shard, self._backup)
        elif then == "nothing":
            self.shard.wipe()
        for wire in self.wires:
            wire.cut()

    async def backup(self) -> None:
        """A copy of all that the server has."""
        self._backup = copied(self.shard)

    async def flush(self) -> None:
        """FLUSHALL."""
        self.shard.wipe()

    async def lost_marks(self) -> None:
        """The marks are evicted, and perhaps the log too."""
        self.shard.invalidated.lose()
        if self.dice.random() < 0.5:
            self.shard.messages.clear()

    async def lost_counts(self) -> None:
        """What is known of the marks is evicted, and they are there."""
        self.shard.invalidated.lose_counts()

    async def lost_nodes(self) -> None:
        """The nodes' rows are evicted."""
        lose_nodes(self.shard)

    async def lost_log(self) -> None:
        """The log is evicted, while somebody does not listen."""
        self.shard.messages.clear()
        await self.deafness()
        self.shard.messages.clear()

    async def go_on(self, mix: Mix, loop: VirtualLoop, until_s: float) -> None:
        """One after the other until the time comes."""
        while loop.time() < until_s:
            await asyncio.sleep(self.dice.uniform(0, mix.calm_s * D_S))
            kinds: tuple[Callable[[RandomFaults], Awaitable[None]], ...] = (
                RandomFaults.outage,
                RandomFaults.cut,
                RandomFaults.exile,
                RandomFaults.deafness,
                RandomFaults.restart,
                RandomFaults.flush,
                RandomFaults.lost_marks,
                RandomFaults.lost_counts,
                RandomFaults.lost_nodes,
                RandomFaults.lost_log,
            )
            await mix.pick(kinds)(self)
            if self.dice.random() < 0.3:
                await self.backup()


async def life(seed: int, loop: VirtualLoop) -> None:
    """Some nodes, two callers each, for a while."""
    dice = random.Random(seed)
    random.seed(seed)  # the jitter of heartbeats
    mix = Mix(dice)
    faults = Faults(seed=seed, drop=dice.choice((0, 0.3)), double=dice.choice((0, 0.2)), swap=dice.choice((0, 0.3)))
    settings = {"staleness_bound_s": D_S, "probe_interval_s": 0.25, "gap_grace_s": 0.02, "lease_ms": 500}
    until_s = loop.time() + LIFE_S
    fleet = Fleet(
        NODES,
        faults=faults,
        clock=loop.time,
        log_max_len=dice.choice((16, 1000)),
        max_invalidated_scopes=16,
        **settings,
    )
    async with fleet:
        delay_s = dice.choice((0.002, 0.02, 0.2))
        wires = [Wire(cache, fleet, dice, delay_s) for cache in fleet.caches]
        workload = JudgedWorkload(loop.time, D_S, mix)
        lives = [
            workload.read_on(cache, f"node {i}", until_s) for i, cache in enumerate(fleet.caches) for _ in range(4)
        ]
        lives += [workload.write_on(fleet.caches, until_s) for _ in range(2)]
        await asyncio.gather(*lives, RandomFaults(fleet, wires, dice).go_on(mix, loop, until_s))
        await workload.rest(fleet.caches)
        workload.verdict(replay_of(FILE, seed))


@pytest.mark.parametrize("seed", seeds(11))
def test_lives_under_faults(seed: int) -> None:
    live(lambda loop: life(seed, loop))


def test_a_seed_lives_the_same_life_again() -> None:
    """What fails by a seed can be looked at as often as need be."""
    times: list[list[float]] = []

    async def noted(loop: VirtualLoop) -> None:
        moments: list[float] = []
        times.append(moments)
        random.seed(1)
        dice = random.Random(1)
        async with Fleet(2, clock=loop.time) as fleet:
            for cache in fleet.caches:
                Wire(cache, fleet, dice, 0.01)
            workload = JudgedWorkload(loop.time, 2.0, Mix(dice))
            for i in range(200):
                await workload.read(fleet.caches[i % 2], "")
                if i % 9 == 0:
                    await workload.write(fleet.caches[i % 2])
                moments.append(loop.time())

    for _ in range(2):
        live(noted)
    assert times[0] == times[1]
    assert len(times[0]) == 200
