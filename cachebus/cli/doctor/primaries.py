"""The servers that a URL stands for: the one it names, the primary behind Sentinels, or all primaries of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachebus.cli.doctor.facts import ASK_TIMEOUT_S, Asker, texts, whole
from cachebus.clock import monotonic
from cachebus.errors import CacheBusError, ConfigError
from cachebus.factory import places_of, route_of
from cachebus.resp import CLUSTER, SENTINEL, Address, Places, Route
from cachebus.settings import Settings


@dataclass(frozen=True, slots=True)
class Primary:
    """One of them. `shards`: those of the namespace that lie there, None for all. `failover_s`: after how many silent
    seconds another takes its place, None where nothing sees to that or it is not known."""

    address: Address
    shards: Sequence[int] | None = None
    failover_s: float | None = None

    @property
    def first(self) -> int:
        """A shard that lies there."""
        return self.shards[0] if self.shards else 0


async def primaries_of(settings: Settings) -> list[Primary]:
    """Where the namespace lies now; `ConfigError`, `L2Unavailable`."""
    if settings.url.get_secret_value().startswith("memory://"):
        raise ConfigError("memory:// is inside one process: there is no server to look at")
    places, route = places_of(settings), route_of(settings, monotonic)
    known = await route.find()
    if places.kind == CLUSTER:
        failover_s = await _seconds(known[0], "CONFIG", "GET", "cluster-node-timeout")
        return [
            Primary(address, [shard for shard, there in enumerate(known) if there == address], failover_s)
            for address in dict.fromkeys(known)
        ]
    return [Primary(known[0], None, await _sentinels_wait_s(places) if places.kind == SENTINEL else None)]


async def route_to(settings: Settings) -> Route:
    """The way to the namespace, with the primaries found."""
    route = route_of(settings, monotonic)
    await route.find()
    return route


async def _sentinels_wait_s(places: Places) -> float | None:
    for sentinel in places.addresses:
        found = await _seconds(sentinel, "SENTINEL", "MASTER", places.service, field="down-after-milliseconds")
        if found is not None:
            return found
    return None


async def _seconds(whom: Address, *question: str, field: str = "cluster-node-timeout") -> float | None:
    """A setting in milliseconds, out of a reply of names and values; None where it is not told."""
    try:
        asker = await Asker.open(whom, ASK_TIMEOUT_S)
    except CacheBusError:
        return None
    try:
        flat, _ = await asker.ask(*question)
    except CacheBusError:
        return None
    finally:
        asker.close()
    told_ms = whole(texts(flat).get(field))
    return None if told_ms is None else told_ms / 1000
