"""Gathers the facts of one server, and runs every check on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, TypeVar

from cachebus.errors import CacheBusError, L2Unavailable
from cachebus.settings import Settings
from cachebus.tools.doctor import (
    access,
    after_failover,
    durability,
    hearing,
    links,
    memory,
    namespace,
    records,
    replicas,
    replication,
    rows,
    timing,
)
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.cluster import shards_named
from cachebus.tools.doctor.facts import Facts, Server, Timing, server_of
from cachebus.tools.doctor.finding import G1, Finding, Severity, unknown
from cachebus.tools.doctor.primaries import Deployment, Primary
from cachebus.tools.doctor.refusals import NO_ENTRY, meaning_of, no_trust

T = TypeVar("T")
CHECKS: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    memory.version,
    memory.eviction,
    durability.persistence,
    durability.saving,
    durability.debugging,
    replication.role,
    replication.cut_off,
    replication.gone,
    replicas.promoted,
    after_failover.left_over,
    after_failover.locked_out,
    replication.migrating,
    replication.covering,
    replication.new_ids,
    links.buffers,
    links.idling,
    links.clients,
    links.sizes,
    links.scripts,
    links.trimming,
    links.keyspace_events,
    timing.latency,
    timing.forking,
    timing.clocks,
    namespace.layout,
    namespace.databases,
    namespace.invalidated_scopes,
    namespace.log,
    rows.nodes,
    rows.damaged,
    rows.ahead,
    rows.bounds,
    hearing.heard_by,
)


async def examined(
    settings: Settings,
    primary: Primary,
    *,
    probe_writes: bool = False,
    ask_replicas: bool = False,
    rounds: int = timing.ROUNDS,
) -> tuple[Server, list[Finding]]:
    """The server and all findings. Changes nothing without `probe_writes`. `ask_replicas`: ask also those replicas that
    only the server itself names. `L2Unavailable` if the server can't be reached."""
    asker = await Asker.open(primary.address, settings.connect_timeout_s)
    failed: list[Finding] = []

    async def seen(what: str, looking: Awaitable[T], otherwise: T) -> T:
        """The findings of a step. If the step fails, that is a finding, and the other steps are taken."""
        try:
            return await looking
        except Exception as error:
            if asker.connection.closed and isinstance(error, L2Unavailable):
                raise  # it is gone, and so is all that would be asked of it
            failed.append(_failed(what, error))
            return otherwise

    try:
        server = await server_of(asker, primary.address)
        if "sentinel" in (server.info.get("redis_mode"), server.info.get("server_mode")):
            return server, [_a_sentinel(primary)]
        to_ask = replicas.to_ask(server, primary.watched, named_by_server=ask_replicas)
        facts = Facts(
            settings,
            server,
            await seen("latency", timing.timed(asker, settings, rounds, primary.first), Timing([], [])),
            await seen("namespace", namespace.shards_of(asker, settings, primary.shards), []),
            await seen(
                "databases", namespace.other_databases(asker, dict(server.info), settings, primary.address.db), []
            ),
            primary.watched,
            await seen("replicas", replicas.looked_at(to_ask, settings), []),
        )
        watched = await seen("sentinels", _watched_unawares(asker, primary), [])
        whole = await seen("records", records.looked_at(asker, settings), [])
        looking = access.looked_at(asker, server, settings, probe_writes=probe_writes)
        may = await seen("permissions", looking, None)
    finally:
        asker.close()
    findings = [finding for check in CHECKS for finding in _put(check, facts)]
    rights = [] if may is None else access.permissions(may, server, settings)
    return server, [*findings, *whole, *rights, *watched, *failed, *_topology(server, primary)]


def _put(check: Callable[[Facts], Iterable[Finding]], facts: Facts) -> list[Finding]:
    """The findings of a check. If the check itself fails, that is a finding."""
    try:
        return list(check(facts))
    except Exception as error:  # noqa: BLE001 (told as what it is; one check must not end the report)
        return [_failed(check.__name__.replace("_", " "), error)]


def _failed(what: str, error: Exception) -> Finding:
    said = str(error) if isinstance(error, CacheBusError) else f"{type(error).__name__}: {error}"
    return unknown(what, said, "It says nothing of what the other checks found.")


def _scheme(primary: Primary) -> str:
    """What a URL for the same servers begins with: with TLS where this one has it."""
    return "redis" if primary.address.ssl is None else "rediss"


def _a_sentinel(primary: Primary) -> Finding:
    return Finding(
        "role",
        Severity.PROBLEM,
        "this is a Sentinel",
        "It stores nothing: every operation of cachebus is refused.",
        otherwise="let the URL name the service that it watches over: "
        f"{_scheme(primary)}+sentinel://{primary.address}/SERVICE/0 "
        "(SENTINEL MASTERS there says which)",
    )


async def _watched_unawares(asker: Asker, primary: Primary) -> list[Finding]:
    """The finding about Sentinels that watch a server which the URL names by itself: they meet on a channel there."""
    if primary.watched.kind or primary.shards is not None:
        return []
    told, refused = await asker.ask("PUBSUB", "NUMSUB", "__sentinel__:hello")
    if refused or not told or not told[1]:
        return []
    return [
        Finding(
            "sentinels",
            Severity.ADVICE,
            f"{told[1]} Sentinels watch this server, and the URL names it by itself",
            "After a failover nodes stay here, where a replica is by then: L2 counts as lost until the URL is another "
            "one. Nothing stale is served.",
            otherwise=f"let the URL name the service: {_scheme(primary)}+sentinel://SENTINEL:26379,SENTINEL:26379/"
            "SERVICE/0, with the login and the options that it has now "
            "(SENTINEL MASTERS at a Sentinel says which)",
        )
    ]


NO_ANSWER: Final = (
    "it is down, can't be reached from here, has as many clients as it may (maxclients), or is held by a script or by "
    "CLIENT PAUSE"
)


def out_of_reach(primary: Primary, error: L2Unavailable, deployment: Deployment) -> tuple[Server, list[Finding]]:
    """The result for a server that can't be reached."""
    if any(word in str(error) for word in NO_ENTRY):
        return _unseen(primary, error), [
            Finding(
                "reach",
                Severity.PROBLEM,
                str(error),
                "It is there, and does not let this user in: nothing of it could be looked at. Nodes with this login "
                "have no L2 there.",
                otherwise="name user and password as the nodes have them; or make the user there, as `cachebus doctor "
                "--acl NAME` says: users do not replicate, and each server of a Cluster has its own",
            )
        ]
    trust = no_trust(str(error))
    if trust is not None:
        means = f"For nodes with these settings {trust.means}. They have no L2 there."
        return _unseen(primary, error), [Finding("reach", Severity.PROBLEM, str(error), means, otherwise=trust.helps)]
    whose, all_ = primary.shards or (), sum(len(each.shards or ()) for each in deployment.primaries)
    finding = Finding(
        "reach",
        Severity.PROBLEM,
        str(error),
        f"It is one of {len(deployment.primaries)} primaries, and has {len(whose)} of {all_} shards "
        f"({shards_named(whose)}): for the tenants that lie there nothing is stored, their reads go to the source, and "
        "their invalidations raise. The others are looked at all the same."
        if whose
        else f"All of L2 is away: {meaning_of(str(error)) or NO_ANSWER}.",
        otherwise="bring it back, or promote one of its replicas (there by CLUSTER FAILOVER TAKEOVER, if nobody does)"
        if whose
        else f"bring it back, or have a replica promoted: SENTINEL FAILOVER {primary.watched.service} at a Sentinel"
        if primary.watched.service
        else "look at its own log, and at INFO and CLIENT LIST from its own machine",
    )
    return _unseen(primary, error), [finding]


def _unseen(primary: Primary, error: L2Unavailable) -> Server:
    return Server(primary.address, {}, str(error), {}, str(error), primary.address.username or "default")


def _topology(server: Server, primary: Primary) -> Iterator[Finding]:
    if server.info.get("cluster_enabled") == "1" and primary.shards is None:
        yield Finding(
            "cluster",
            Severity.PROBLEM,
            "this server is one of a Cluster, and the URL names it alone",
            "A shard whose slot lies on another server cannot be reached, and channels are heard there.",
            (G1,),
            otherwise=f"let the URL begin with {_scheme(primary)}+cluster://, for every node",
        )
