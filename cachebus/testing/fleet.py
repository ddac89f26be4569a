"""Several caches over one store in memory, a clock that is advanced, and faults with a seed: Redis played by memory,
under the real rules of coherence."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, Unpack

from cachebus.assembly.world import World
from cachebus.base.clock import Clock, monotonic
from cachebus.cache import Cache
from cachebus.settings import Settings, SettingsOptions


class FakeClock:
    """A monotonic clock that stands still until `advance` is called; calling it gives the time in seconds."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        """`now_s`: what it shows at first, in seconds; it may be below zero."""
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        """Advance by so many seconds; `ValueError` for less than none."""
        if by_s < 0:
            raise ValueError("a monotonic clock never goes back")
        self.now_s += by_s


@dataclass
class Faults:
    """What happens to messages of the bus. The same seed gives the same faults. `ValueError` for no probability."""

    seed: int = 0
    drop: float = 0.0
    """The probability, 0 to 1, that a message does not arrive."""
    double: float = 0.0
    """The probability, 0 to 1, that it arrives twice."""
    swap: float = 0.0
    """The probability, 0 to 1, that it is held back until the next message of its shard has gone."""
    _random: random.Random = field(init=False, repr=False)
    _held: dict[int, list[bytes]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("drop", "double", "swap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1, not {getattr(self, name)!r}")
        self._random = random.Random(self.seed)

    def applied_to(self, message: bytes, channel: int = 0) -> list[bytes]:
        """Decide about one message. `channel`: the shard that it is of. Returns what arrives in its place, in order."""
        if self._random.random() < self.drop:
            return []
        arriving = [message] * (2 if self._random.random() < self.double else 1)
        if channel not in self._held and self._random.random() < self.swap:
            self._held[channel] = arriving
            return []
        return arriving + self._held.pop(channel, [])


class Fleet:
    """Several caches over one store and one bus in memory, each a node of its own: `async with Fleet(2) as fleet:`.

    `caches` are the nodes; entering opens them, leaving closes them. `faults` and `away` may be set at any time.
    """

    def __init__(
        self,
        nodes: int = 2,
        *,
        faults: Faults | None = None,
        clock: Clock = monotonic,
        **settings: Unpack[SettingsOptions],
    ) -> None:
        """`nodes`: how many caches. `faults`: of the bus; None is none. `clock`: of all nodes and of the store, as a
        `FakeClock`. `settings`: fields of `Settings`, the same for all. Raises `ValueError` for no node, and
        `ConfigError` for settings that do not fit."""
        if nodes < 1:
            raise ValueError(f"nodes must be at least 1, not {nodes}")
        settings.setdefault("url", "memory://")
        self.settings = Settings(**settings)
        self.world = World(self.settings, clock, self._arriving)
        self.faults = faults
        self.caches = [Cache(self.settings, world=self.world, clock=clock) for _ in range(nodes)]
        self._stack = AsyncExitStack()

    def _arriving(self, shard: int, message: bytes) -> list[bytes]:
        return [message] if self.faults is None else self.faults.applied_to(message, shard)

    @property
    def away(self) -> bool:
        """Whether the store is out of reach: every operation then raises `L2Unavailable`. Set it to play an outage."""
        return self.world.shards.away

    @away.setter
    def away(self, away: bool) -> None:
        self.world.shards.away = away

    async def probe(self) -> None:
        """Have every node probe every shard now, as its heartbeat does every `probe_interval_s`; `L2Unavailable`."""
        for cache in self.caches:
            await cache.probe()

    async def settle(self) -> None:
        """Let messages that are under way arrive. It takes no time on any clock."""
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
