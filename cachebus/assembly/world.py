"""A store and a bus in the memory of one process, for all caches that open the same `memory://NAME`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Self
from weakref import WeakValueDictionary

from cachebus.base.clock import Clock
from cachebus.bus.memory import MemoryChannel
from cachebus.errors import ConfigError
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_store import MemoryShards
from cachebus.settings import Settings

Arriving = Callable[[int, bytes], Iterable[bytes]]
"""What arrives of a message on a shard's channel, in this order: the message, unless faults are played."""


def _all_of_it(_shard: int, message: bytes) -> Iterable[bytes]:
    return (message,)


class World:
    """What such caches share."""

    def __init__(
        self,
        shards: int,
        clock: Clock,
        *,
        marks_max: int,
        log_max: int,
        log_max_bytes: int = 1 << 26,
        arriving: Arriving = _all_of_it,
    ) -> None:
        self._arriving = arriving
        self.channels = [MemoryChannel() for _ in range(shards)]
        limits = {"marks_max": marks_max, "log_max": log_max, "log_max_bytes": log_max_bytes}
        self.shards = MemoryShards(
            [MemoryShard(clock, **limits, publish=partial(self._publish, shard)) for shard in range(shards)]
        )

    @classmethod
    def of(cls, settings: Settings, clock: Clock, arriving: Arriving = _all_of_it) -> Self:
        """A new world by these settings."""
        return cls(
            settings.shards,
            clock,
            marks_max=settings.max_marks,
            log_max=settings.log_max_len,
            log_max_bytes=settings.log_max_bytes,
            arriving=arriving,
        )

    def _publish(self, shard: int, message: bytes) -> None:
        for arriving in self._arriving(shard, message):
            self.channels[shard].send(arriving)


_worlds: WeakValueDictionary[str, World] = WeakValueDictionary()


def world_of(settings: Settings, clock: Clock) -> World:
    """The world of `memory://NAME`, one of its own for `memory://`; `ConfigError` where it has other shards."""
    name = settings.url.get_secret_value().removeprefix("memory://")
    world = _worlds.get(name) if name else None
    if world is None:
        world = World.of(settings, clock)
        if name:
            _worlds[name] = world
    if len(world.shards) != settings.shards:
        raise ConfigError(f"memory://{name} has {len(world.shards)} shards here, this cache wants {settings.shards}")
    return world
