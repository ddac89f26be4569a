"""For your own tests: several caches over one store in memory, a clock that you turn, faults with a seed.

```python
async with Fleet(nodes=2) as fleet:
    a, b = fleet.caches
    await a.set("config", "x", 1, tenant_id="acme")
    fleet.away = True          # the store is out of reach
    fleet.faults = Faults(seed=7, drop=0.2, double=0.1, swap=0.1)
```
The rules of coherence are the real ones; only Redis is played by memory.

`verify` is the same question put to the real thing: processes, a server, faults of every kind, every read judged.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self

from cachebus.assembly.factory import World
from cachebus.base.clock import Clock, monotonic
from cachebus.bus.memory import MemoryChannel
from cachebus.cache import Cache
from cachebus.settings import Settings
from cachebus.tools.verify.checker.verdict import Finding, Verdict


class FakeClock:
    """A monotonic clock (seconds) that stands still until `advance` is called; it may begin below zero."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        """Turn the clock on by so many seconds; it never goes back."""
        if by_s < 0:
            raise ValueError("a monotonic clock never goes back")
        self.now_s += by_s


@dataclass
class Faults:
    """What happens to messages of the bus, each with its probability (0-1); the same seed gives the same faults."""

    seed: int = 0
    drop: float = 0.0
    double: float = 0.0
    swap: float = 0.0
    """Held back until the next message of its channel has gone."""
    _random: random.Random = field(init=False, repr=False)
    _held: dict[int, list[bytes]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("drop", "double", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, not {getattr(self, name)!r}")
        self._random = random.Random(self.seed)

    def applied_to(self, message: bytes, channel: int = 0) -> list[bytes]:
        """What arrives on the channel in place of a message, in this order."""
        if self._random.random() < self.drop:
            return []
        arriving = [message] * (2 if self._random.random() < self.double else 1)
        if channel not in self._held and self._random.random() < self.swap:
            self._held[channel] = arriving
            return []
        return arriving + self._held.pop(channel, [])


class Fleet:
    """`nodes` caches over one store and one bus in memory, each a node of its own. To be entered."""

    def __init__(
        self, nodes: int = 2, *, faults: Faults | None = None, clock: Clock = monotonic, **settings: Any
    ) -> None:
        if nodes < 1:
            raise ValueError(f"nodes must be at least 1, not {nodes}")
        self.settings = Settings(**{"url": "memory://", **settings})
        self.world = World(
            self.settings.shards,
            clock,
            max_invalidated_scopes=self.settings.max_invalidated_scopes,
            log_max=self.settings.log_max_len,
            log_max_bytes=self.settings.log_max_bytes,
        )
        self.faults = faults
        self.caches = [Cache(self.settings, world=self.world, clock=clock) for _ in range(nodes)]
        self._stack = AsyncExitStack()
        for number, (shard, channel) in enumerate(zip(self.world.shards, self.world.channels, strict=True)):
            shard.publish = partial(self._send, channel, number)

    def _send(self, channel: MemoryChannel, number: int, message: bytes) -> None:
        for arriving in [message] if self.faults is None else self.faults.applied_to(message, number):
            channel.send(arriving)

    @property
    def away(self) -> bool:
        """Whether the store is out of reach; set it to play an outage."""
        return self.world.shards.away

    @away.setter
    def away(self, away: bool) -> None:
        self.world.shards.away = away

    async def probe(self) -> None:
        """Have every node probe every shard now, as its heartbeat does every `probe_interval_s`."""
        for cache in self.caches:
            await cache.probe()

    async def settle(self) -> None:
        """Let messages that are under way arrive."""
        for _ in range(3):
            await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        for cache in self.caches:
            await self._stack.enter_async_context(cache)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.away = False
        await self._stack.aclose()


async def verify(
    url: str | None = None,
    *,
    seconds: float = 20.0,
    seed: int | None = None,
    faults: str = "all",
    nodes: int = 4,
    bound_s: float = 1.0,
    rate: float = 1_000.0,
    write_rate: float | None = None,
) -> Verdict:
    """Run several node processes against a server under faults, and judge every read; what `cachebus verify` does.

    `url`: a server of yours, of which only a namespace of its own is touched, and emptied in the end; None: one that is
    started for it, to which faults are done, too. `seed`: of the faults and of what is read and written; None: a new
    one, which the verdict tells. `faults`: "all", "none", or names and groups with commas between, as in `cachebus
    verify --list-faults`. `rate`: reads a second and node, 0 is as fast as it goes; `write_rate`: writes a second and
    node, None is 20, or 2 on a server of yours. Takes `seconds` and some seconds more.

    `ConfigError` for what is set up wrong, `L2Unavailable` for a server that is not there, and `NodeCrashed` (of
    `cachebus.tools.harness.supervisor`) for a node process that ended by itself.
    """
    # Only here: the twins above must not cost what starts processes and judges them.
    from cachebus.tools.verify.nemesis.faults import chosen
    from cachebus.tools.verify.plan import planned
    from cachebus.tools.verify.run import Run

    plan = planned(
        url=url,
        seconds=seconds,
        seed=seed,
        faults=chosen(faults),
        nodes=nodes,
        bound_s=bound_s,
        rate=rate,
        write_rate=write_rate,
    )
    return await Run(plan).verdict()


__all__ = ["FakeClock", "Faults", "Finding", "Fleet", "Verdict", "verify"]
