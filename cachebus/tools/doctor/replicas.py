"""Checks of the replicas themselves. Any may be promoted, and neither settings nor users are replicated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from cachebus.errors import CacheBusError
from cachebus.resp import Address
from cachebus.settings import Settings
from cachebus.tools.doctor import access, after_failover, durability, links, memory, replication
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.counting import (
    counted,
    disowned,
    followers_of,
    longest_lag_s,
    needed,
    place_of,
    replicas_said,
    unnamed,
)
from cachebus.tools.doctor.facts import Facts, Replica, Server, Timing, Watched, server_of, size
from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Severity, config_set, ok, unknown
from cachebus.tools.doctor.refusals import NO_ENTRY, no_trust
from cachebus.tools.doctor.replication import LAG, WRITES, to_wait_for, within
from cachebus.tools.doctor.some import SEVERAL, some

LIKE_THE_PRIMARY: Final[tuple[Callable[[Facts], Iterable[Finding]], ...]] = (
    memory.version,
    memory.eviction,
    durability.saving,
    links.buffers,
    links.idling,
    links.clients,
    links.sizes,
    links.scripts,
    links.trimming,
    replication.covering,
    replication.migrating,
)
"""Checks that are the same for a replica as for the primary."""


def to_ask(server: Server, watched: Watched, *, named_by_server: bool) -> list[Address]:
    """The addresses of replicas to ask: those that Sentinels or the Cluster name. `named_by_server`: those too that
    only the server names. A follower can have the server name any address, which then gets this login."""
    there = disowned(server, watched)
    known = [replica.address for replica in watched.known or () if not replica.away or replica in there]
    if not named_by_server:
        return known
    if watched.known is not None and not unnamed(server, watched):
        return known
    places = {replica.place for replica in watched.known or ()}
    named = [place_of(each) for each in followers_of(server) if place_of(each) not in places]
    return [*known, *(replace(server.address, host=host, port=port) for host, port in named if host and port)]


async def looked_at(addresses: Sequence[Address], settings: Settings) -> list[Replica]:
    """What each of them says of itself, and what this login may do there. Nothing is written."""
    return [await _replica(address, settings) for address in addresses]


async def _replica(address: Address, settings: Settings) -> Replica:
    try:
        asker = await Asker.open(address, settings.connect_timeout_s)
        try:
            server = await server_of(asker, address)
            seen = await access.looked_at(asker, server, settings, probe_writes=False)
        finally:
            asker.close()
    except CacheBusError as error:
        return Replica(address, refused=str(error))
    lacking = [each for each in access.permissions(seen, server, settings) if each.level is Severity.PROBLEM]
    return Replica(address, server, lacking)


def promoted(facts: Facts) -> Iterator[Finding]:
    """Check that each replica, once promoted, is set up as the primary must be."""
    if facts.server.info.get("role") not in ("master", None) or not (facts.replicas or facts.server.followers):
        return
    asked = {(each.address.host, each.address.port) for each in facts.replicas}
    left = sum(place_of(each) not in asked for each in followers_of(facts.server))
    if left and (facts.watched.known is None or unnamed(facts.server, facts.watched)):
        yield unknown(
            "replicas",
            f"nobody but the server names {replicas_said(left)} of it",
            f"Neither settings nor users replicate: any replica may be promoted, and needs {WRITES} "
            f"{needed(counted(facts))} as well.",
            "run it with --ask-replicas: it then logs in at the addresses that the server names, with this login",
        )
    wrong = _together((replica.address, finding) for replica in facts.replicas for finding in _of(replica, facts))
    yield from wrong
    if facts.replicas and not wrong:
        yield ok(
            "replicas",
            f"{replicas_said(len(facts.replicas))} let this login in, with its rights, and "
            f"{'is' if len(facts.replicas) == 1 else 'are'} set up as the primary must be",
            "Looked at: whether each follows, eviction, files, buffers, limits, and for how many replicas each would "
            "wait.",
        )


def _together(found: Iterable[tuple[Address, Finding]]) -> list[Finding]:
    """Findings that several replicas share, merged into one that names all of them."""
    where: dict[Finding, list[str]] = {}
    for address, finding in found:
        where.setdefault(finding, []).append(str(address))
    told = []
    for finding, places in where.items():
        said = f"the replica{'s' if len(places) > 1 else ''} {some(places, SEVERAL)}: {finding.says}"
        told.append(replace(finding, check="replicas", says=said, at=some(places, SEVERAL)))
    return told


def _of(replica: Replica, facts: Facts) -> Iterator[Finding]:
    if replica.server is None:
        yield _out_of_reach(replica, facts.watched)
        return
    yield from after_failover.following(replica.server)
    yield from _waiting(replica.server, facts)
    yield from _like_the_primary(replica.server, facts)
    yield from replica.lacking


def _out_of_reach(replica: Replica, watched: Watched) -> Finding:
    if any(word in replica.refused for word in NO_ENTRY):
        return Finding(
            "replicas",
            Severity.PROBLEM,
            f"this login is not let in ({replica.refused})",
            "Users do not replicate. Once it is promoted no node gets in: L2 counts as lost. Nothing stale is served.",
            otherwise="make the same user there, by ACL SETUSER with a user who may, or by the same aclfile",
        )
    trust = no_trust(replica.refused)
    if trust is not None:
        return Finding(
            "replicas",
            Severity.PROBLEM,
            f"nodes can't reach it ({replica.refused})",
            f"For a node with these settings {trust.means}. Once it is promoted no node gets in: L2 counts as lost. "
            "Nothing stale is served.",
            otherwise=f"give it a certificate that nodes take, as the primary's; or {trust.helps}",
        )
    who = "Those who would promote it say" if watched.kind else "The primary says"
    return Finding(
        "replicas",
        Severity.ADVICE,
        f"out of reach ({replica.refused})",
        f"{who} that it is there. Where nodes can't reach it either, a failover to it is the loss of L2; one that is "
        "frozen counts for min-replicas-to-write until min-replicas-max-lag is over.",
        otherwise="look whether it answers, at this address, and with TLS as the primary does",
    )


def _waiting(server: Server, facts: Facts) -> Iterator[Finding]:
    """Check that it would wait for as many replicas as the primary must."""
    least, most_lag_s = needed(counted(facts)), longest_lag_s(facts.watched)
    has, lag_s = server.setting(WRITES), server.setting(LAG)
    if has is None or lag_s is None:
        yield unknown(
            "replicas",
            server.config_refused,
            f"Settings do not replicate: it needs {WRITES} {least} as well, and {LAG} {most_lag_s} at most.",
        )
    elif has < least or not 0 < lag_s <= most_lag_s:
        commands, conf = to_wait_for(max(least, has), within(lag_s, most_lag_s))
        yield Finding(
            "replicas",
            Severity.PROBLEM,
            f"it has {WRITES} {has} and {LAG} {lag_s}",
            "Settings do not replicate: once it is promoted, it goes on writing when it is cut off.",
            ON_FAILOVER,
            commands,
            conf,
        )


def _like_the_primary(server: Server, facts: Facts) -> Iterator[Finding]:
    """The problems in the server's own set-up."""
    theirs = Facts(facts.settings, server, Timing([], []))
    for check in LIKE_THE_PRIMARY:
        yield from (finding for finding in check(theirs) if finding.level not in (Severity.OK, Severity.UNKNOWN))
    if server.info and facts.server.info and server.line != facts.server.line:
        yield Finding(
            "replicas",
            Severity.ADVICE,
            f"it is {server.name}, the primary {facts.server.name}",
            "Once it is promoted, scripts run on another version: what it lacks is refused there, and what it does "
            "otherwise (limits, ACLs, sharded channels) changes with the failover. A replica that is older than its "
            "primary may not understand all that it is sent, and lose its copy.",
            otherwise="run one version on both; while you upgrade, the replicas come first",
        )
    has, primary_has = server.setting("maxmemory"), facts.server.setting("maxmemory")
    if has and primary_has is not None and (has < primary_has or not primary_has):
        commands, conf = config_set(maxmemory=str(primary_has))
        yield Finding(
            "replicas",
            Severity.ADVICE,
            f"its maxmemory is {size(has)}, the primary's {size(primary_has) if primary_has else 'without limit'}",
            "Once it is promoted it evicts, or refuses to store, what the primary had room for.",
            mend=commands,
            conf=conf,
        )
