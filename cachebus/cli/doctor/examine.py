"""Gather the facts of one server, and put every check to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cachebus.cli.doctor import access, durability, links, memory, namespace, timing
from cachebus.cli.doctor.facts import Asker, Facts, Server, server_of
from cachebus.cli.doctor.finding import G1, Finding, Level
from cachebus.errors import ConfigError
from cachebus.factory import address_of
from cachebus.resp import Address
from cachebus.settings import Settings

CHECKS: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    memory.version, memory.eviction, durability.persistence, durability.saving, durability.debugging,
    durability.replication, links.buffers, links.idling, links.clients, links.scripts, links.trimming,
    links.keyspace_events, timing.latency, timing.forking, timing.clocks, namespace.layout, namespace.databases,
    namespace.marks, namespace.log, namespace.nodes,
)  # fmt: skip


def addresses_of(settings: Settings) -> list[Address]:
    """The servers to look at: where one URL stands for several, all of them; `ConfigError`."""
    if settings.url.get_secret_value().startswith("memory://"):
        raise ConfigError("memory:// is inside one process: there is no server to look at")
    return [address_of(settings)]


async def examined(
    settings: Settings, address: Address, *, probe_writes: bool = False, rounds: int = timing.ROUNDS,
    failover_s: float | None = None,
) -> tuple[Server, list[Finding]]:  # fmt: skip
    """The server and all findings; changes nothing unless `probe_writes`. `L2Unavailable` where it can't be reached.

    `failover_s`: after how many silent seconds something promotes a replica of it, where the URL's kind tells that.
    """
    asker = await Asker.open(address, settings.connect_timeout_s)
    try:
        server = await server_of(asker, address)
        facts = Facts(
            settings,
            server,
            await timing.timed(asker, settings, rounds),
            await namespace.shards_of(asker, settings),
            await namespace.other_databases(asker, dict(server.info), settings, address.db),
            failover_s,
        )
        seen = await access.looked_at(asker, server, settings, probe_writes=probe_writes)
    finally:
        asker.close()
    findings = [finding for check in CHECKS for finding in check(facts)]
    return server, [*findings, *access.permissions(seen, server, settings), *_topology(server)]


def _topology(server: Server) -> Iterator[Finding]:
    if server.info.get("cluster_enabled") == "1":
        yield Finding(
            "cluster", Level.PROBLEM, "this server is one of a Cluster, and the URL names it alone",
            "A shard whose slot lies on another server cannot be reached, and channels are heard there.", (G1,),
            otherwise="use a server that is no part of a Cluster",
        )  # fmt: skip
