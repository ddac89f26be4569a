"""A store and a bus in the memory of one process, for all caches that open the same `memory://NAME`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakValueDictionary

from cachebus.base.clock import Clock
from cachebus.bus.memory import MemoryChannel
from cachebus.errors import ConfigError
from cachebus.l2.memory import MemoryShard
from cachebus.l2.memory_store import MemoryShards
from cachebus.settings import Settings

Arriving = Callable[[int, bytes], Iterable[bytes]]
"""What arrives in place of a message on a shard's channel, in this order: to play faults."""


class World:
    """What such caches share."""

    def __init__(self, settings: Settings, clock: Clock, arriving: Arriving | None = None) -> None:
        self.channels = [MemoryChannel() for _ in range(settings.shards)]
        limits = {
            "max_invalidated_scopes": settings.max_invalidated_scopes,
            "log_max": settings.log_max_len,
            "log_max_bytes": settings.log_max_bytes,
        }
        self.shards = MemoryShards(
            [
                MemoryShard(clock, **limits, publish=_publishing(channel, shard, arriving))
                for shard, channel in enumerate(self.channels)
            ]
        )


def _publishing(channel: MemoryChannel, shard: int, arriving: Arriving | None) -> Callable[[bytes], None]:
    if arriving is None:
        return channel.send

    def publish(message: bytes) -> None:
        for one in arriving(shard, message):
            channel.send(one)

    return publish


_worlds: WeakValueDictionary[str, World] = WeakValueDictionary()


def world_of(settings: Settings, clock: Clock) -> World:
    """The world of `memory://NAME`, one of its own for `memory://`; `ConfigError` where it has other shards."""
    name = settings.url.get_secret_value().removeprefix("memory://")
    world = _worlds.get(name) if name else None
    if world is None:
        world = World(settings, clock)
        if name:
            _worlds[name] = world
    if len(world.shards) != settings.shards:
        raise ConfigError(f"memory://{name} has {len(world.shards)} shards here, this cache wants {settings.shards}")
    return world
