"""The servers that a URL stands for: the one it names, the primary behind Sentinels, or all primaries of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cachebus.cli.doctor import sentinels
from cachebus.cli.doctor.cluster import watched_in
from cachebus.cli.doctor.facts import UNWATCHED, Watched
from cachebus.clock import monotonic
from cachebus.errors import ConfigError, L2Unavailable
from cachebus.factory import places_of, route_of
from cachebus.resp import CLUSTER, SENTINEL, Address, Route
from cachebus.settings import Settings


@dataclass(frozen=True, slots=True)
class Primary:
    """One of them. `shards`: those of the namespace that lie there, None for all."""

    address: Address
    shards: Sequence[int] | None = None
    watched: Watched = UNWATCHED

    @property
    def first(self) -> int:
        """A shard that lies there."""
        return self.shards[0] if self.shards else 0


async def primaries_of(settings: Settings) -> list[Primary]:
    """Where the namespace lies now; `ConfigError`, `L2Unavailable`."""
    if settings.url.get_secret_value().startswith("memory://"):
        raise ConfigError("memory:// is inside one process: there is no server to look at")
    places, route = places_of(settings), await route_to(settings)
    known = list(dict.fromkeys(address for address in route.known if address is not None))
    if places.kind == CLUSTER:
        watched = await watched_in(known)
        return [
            Primary(address, [shard for shard, there in enumerate(route.known) if there == address], watched[address])
            for address in known
        ]
    if places.kind == SENTINEL:
        return [Primary(known[0], None, sentinels.watched_by(await sentinels.views_of(places), known[0]))]
    return [Primary(known[0])]


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
