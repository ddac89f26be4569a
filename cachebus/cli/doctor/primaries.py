"""The servers that a URL stands for: the one it names, the primary behind Sentinels, or all primaries of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachebus.cli.doctor.facts import ASK_TIMEOUT_S, Asker, texts, whole
from cachebus.clock import monotonic
from cachebus.errors import CacheBusError, ConfigError, L2Unavailable
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
    places, route = places_of(settings), await route_to(settings)
    known = [address for address in route.known if address is not None]
    if places.kind == CLUSTER:
        failover_s = await _seconds(known[0], "CONFIG", "GET", "cluster-node-timeout")
        return [
            Primary(address, [shard for shard, there in enumerate(route.known) if there == address], failover_s)
            for address in dict.fromkeys(known)
        ]
    return [Primary(known[0], None, await _sentinels_wait_s(places) if places.kind == SENTINEL else None)]


async def route_to(settings: Settings) -> Route:
    """The way to the namespace, with the primaries found; `L2Unavailable` where nobody serves any of it."""
    route = route_of(settings, monotonic)
    try:
        await route.look(monotonic())
    finally:
        await route.close()
    if not any(route.known):
        raise L2Unavailable(f"{route}: none of the slots of {settings.namespace} is served")
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
