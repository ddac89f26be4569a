"""The servers that a URL stands for: the one it names, the primary behind Sentinels, or all primaries of a Cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    replicas_known: int = 0
    """How many replicas whoever promotes them knows of."""

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
        replicas = await _cluster_replicas(known[0])
        return [
            Primary(
                address, [shard for shard, there in enumerate(route.known) if there == address], failover_s,
                replicas.get(address.port, 0),
            ) for address in dict.fromkeys(known)
        ]  # fmt: skip
    if places.kind == SENTINEL:
        return [Primary(known[0], None, *await _sentinels_say(places))]
    return [Primary(known[0])]


async def _cluster_replicas(node: Address) -> dict[int, int]:
    """By the primary's port: how many replicas a node of the Cluster knows that it has, be they there or not."""
    nodes, _ = await _asked(node, "CLUSTER", "NODES")
    lines = [line.split() for line in (nodes or b"").decode(errors="replace").splitlines()]
    ports = {line[0]: whole(line[1].partition("@")[0].rpartition(":")[2]) for line in lines if len(line) > 3}
    counts: dict[int, int] = {}
    for line in lines:
        port = ports.get(line[3]) if len(line) > 3 else None
        if port is not None:
            counts[port] = counts.get(port, 0) + 1
    return counts


async def _asked(whom: Address, *question: str) -> tuple[Any, str]:
    try:
        asker = await Asker.open(whom, ASK_TIMEOUT_S)
    except CacheBusError as error:
        return None, str(error)
    try:
        return await asker.ask(*question)
    except CacheBusError as error:
        return None, str(error)
    finally:
        asker.close()


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


async def _sentinels_say(places: Places) -> tuple[float | None, int]:
    """After how many silent seconds they promote a replica, and how many they know of."""
    for sentinel in places.addresses:
        flat, refused = await _asked(sentinel, "SENTINEL", "MASTER", places.service)
        if not refused:
            told = texts(flat)
            silent_ms = whole(told.get("down-after-milliseconds"))
            return None if silent_ms is None else silent_ms / 1000, whole(told.get("num-slaves")) or 0
    return None, 0


async def _seconds(whom: Address, *question: str) -> float | None:
    """A setting in milliseconds, out of a reply of its name and value; None where it is not told."""
    flat, _ = await _asked(whom, *question)
    told_ms = whole(texts(flat).get(question[-1]))
    return None if told_ms is None else told_ms / 1000
