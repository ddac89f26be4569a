"""Checks of the server's version and memory: what it may evict, and when it refuses writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cachebus.tools.doctor.facts import Facts, size
from cachebus.tools.doctor.finding import Finding, Severity, config_set, ok, unknown

OLDEST: Final = (6, 2)
KEEPS_OURS: Final = ("volatile-lru", "volatile-lfu")
NEARLY_FULL: Final = 0.9
OVERFULL: Final = 1.02
"""A server that evicts is so far above its limit only where it can't."""
MOST_OF_MACHINE: Final = 0.75
"""The rest is for the system, and for a fork that writes a file."""
MB: Final = 1 << 20


def version(facts: Facts) -> Iterator[Finding]:
    """Check that the server has every command that the scripts use."""
    server = facts.server
    if not server.version:
        yield unknown("version", server.info_refused or "the server does not tell its version")
    elif server.version[:2] < OLDEST:
        yield Finding(
            "version",
            Severity.PROBLEM,
            f"{server.name} is older than 6.2",
            "It lacks commands that the scripts use (ZMSCORE, SET ... KEEPTTL): no operation succeeds.",
            otherwise="run Redis 6.2 or newer, or Valkey",
        )
    else:
        yield ok("version", server.name)


def eviction(facts: Facts) -> Iterator[Finding]:
    """Check which keys the server evicts when memory is full, if any."""
    info, config = facts.server.info, facts.server.config
    policy = config.get("maxmemory-policy") or info.get("maxmemory_policy")
    limit = facts.server.setting("maxmemory")
    limit = facts.server.number("maxmemory") if limit is None else limit
    if policy is None or limit is None:
        yield unknown("eviction", facts.server.info_refused or facts.server.config_refused or "it does not tell")
        return
    yield _limit(facts, limit)
    yield _policy(policy, limit)
    if limit:
        yield _room(facts, limit, policy)


def _limit(facts: Facts, limit: int) -> Finding:
    machine = facts.server.number("total_system_memory")
    if limit and not (machine and limit > machine):
        return ok("memory limit", f"maxmemory is {size(limit)}")
    sensible = max(64 * MB, (machine or 2048 * MB) // 2)
    fits = (facts.server.number("used_memory") or 0) < NEARLY_FULL * sensible
    commands, conf = config_set(maxmemory=f"{sensible // MB}mb") if fits else ((), ())
    return Finding(
        "memory limit",
        Severity.ADVICE,
        f"maxmemory is {size(limit)}, and the server's machine has {size(machine or 0)}"
        if limit
        else "maxmemory is 0: there is no limit",
        "Nothing is ever evicted; in the end the system ends the server, which is a restart: L2 is cold, and "
        "counters are as old as the last file.",
        mend=commands,
        conf=conf,
        otherwise="the figure is half of the server's machine, since a fork for a file may need the other half"
        if fits
        else f"set it below what the machine has. More than its half, {size(sensible)}, is used already, and a fork "
        "for a file may need as much again: give it a larger machine, or let another server take a part",
    )


def _policy(policy: str, limit: int) -> Finding:
    said = f"maxmemory-policy is {policy}"
    commands, conf = config_set(maxmemory_policy="volatile-lru")
    if policy == "noeviction":
        means = (
            "Once memory is full nothing is stored, and probes are refused: L2 counts as lost, leases lapse, reads go "
            "to the source, invalidations of scopes and tags raise. Nothing stale is served."
        )
        level = Severity.PROBLEM if limit else Severity.ADVICE
        return Finding("eviction", level, said, means, mend=commands, conf=conf)
    if policy in KEEPS_OURS:
        means = "Only what expires is evicted: never cachebus's meta, marks, log, nodes or counters."
        return ok("eviction", said, means)
    if policy.startswith("allkeys"):
        means = (
            "cachebus's own keys may be evicted. Losing meta or marks costs a takeover (every node drops its memory "
            "once), the log a flush of nodes that are behind, a lease a second load: never a stale read. But an "
            "evicted counter begins again at 0."
        )
    else:
        means = "Leases may go before old records do: a second load each, and the first one's value is not stored."
    return Finding("eviction", Severity.ADVICE, said, means, mend=commands, conf=conf)


def _room(facts: Facts, limit: int, policy: str) -> Finding:
    used = facts.server.number("used_memory") or 0
    evicted = facts.server.number("evicted_keys") or 0
    said = f"{size(used)} of {size(limit)} are used, {evicted:,} keys were evicted since the start"
    if used < NEARLY_FULL * limit:
        return ok("memory", said)
    # Never more than the machine has: the system would end the server before that limit is reached.
    machine = facts.server.number("total_system_memory")
    wanted = max(limit, used) * 2 + MB
    wanted = wanted if machine is None else min(wanted, int(MOST_OF_MACHINE * machine))
    helps = wanted > limit and used < NEARLY_FULL * wanted
    commands, conf = config_set(maxmemory=f"{wanted // MB}mb") if helps else ((), ())
    # With another policy it stays below the limit, as long as there is something that may be evicted.
    weighed = used - (facts.server.number("mem_not_counted_for_evict") or 0)
    full = weighed >= limit if policy == "noeviction" else weighed > OVERFULL * limit
    means = (
        "Every write is refused, as nothing is left that may be evicted: L2 counts as lost."
        if full
        else "Records are evicted before they expire, or soon will be: more loads."
    )
    otherwise = (
        ""
        if helps
        else f"its machine has {size(machine or 0)}, and no room for a higher limit: give it a larger one, let another "
        "server take a part (a Cluster), or have records expire sooner"
    )
    level = Severity.PROBLEM if full else Severity.ADVICE
    return Finding("memory", level, said, means, mend=commands, conf=conf, otherwise=otherwise)
