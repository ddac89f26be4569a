"""Checks of the namespace in L2: its layout, epochs, log and marks, and its nodes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.assembly.backends import endpoints_of
from cachebus.core.ports import PROTOCOL, NodeRow
from cachebus.l2.names import ShardNames
from cachebus.l2.replies import NAME, buckets_of, node_row
from cachebus.settings import SHARDS_MAX, Settings
from cachebus.tools.doctor import taking_back
from cachebus.tools.doctor.asking import Asker, texts
from cachebus.tools.doctor.cluster import shards_named
from cachebus.tools.doctor.facts import Facts, ShardFacts, whole
from cachebus.tools.doctor.finding import Finding, Severity, ok, unknown

NEARLY_ALL: Final = 0.8
ROWS_MAX: Final = 100_000
ROWS_AT_ONCE: Final = 1_000
SHARDS_AT_ONCE: Final = 16
"""Over a slow link each question to each shard one after the other takes minutes."""
_SHARDS = re.compile(r"\bshards=(\d+)").search


async def shards_of(asker: Asker, settings: Settings, which: Sequence[int] | None = None) -> list[ShardFacts]:
    """The facts of these shards; None for all, as many as the namespace's meta says."""
    if which is None:
        which = range(await shard_count(asker, settings))
    found: list[ShardFacts] = []
    for at in range(0, len(which), SHARDS_AT_ONCE):
        found += await asyncio.gather(*(_shard(asker, settings, index) for index in which[at : at + SHARDS_AT_ONCE]))
    return found


async def shard_count(asker: Asker, settings: Settings) -> int:
    """How many shards the namespace has, by its meta, else by the settings."""
    facts, _ = await asker.ask("HMGET", ShardNames(settings.namespace, 0).meta, "facts")
    stated = _SHARDS(facts[0].decode(errors="replace")) if facts and facts[0] else None
    return max(1, min(SHARDS_MAX, int(stated[1]))) if stated else settings.shards


async def _shard(asker: Asker, settings: Settings, index: int) -> ShardFacts:
    names = ShardNames(settings.namespace, index, endpoints_of(settings).template.db)
    flat, refused = await asker.ask("HGETALL", names.meta)
    if refused:
        return ShardFacts(index, {}, refused)
    told = texts(flat)
    packed, _ = await asker.ask("HGETALL", names.buckets)
    buckets = buckets_of(packed or ())
    counts = [(await asker.ask("ZCARD", names.marks(bucket)))[0] for bucket, its in buckets.items() if its.members]
    oldest, _ = await asker.ask("XRANGE", names.log, "-", "+", "COUNT", 1)
    # Only what a node's own user may do: no XLEN, no XREVRANGE. The latest event bears the present seq.
    newest, _ = await asker.ask("XRANGE", names.log, f"{told.get('seq', '0')}-0", "+", "COUNT", 1)
    rows, all_rows, rows_refused = await _rows(asker, names.nodes)
    heard, _ = await asker.ask("PUBSUB", "NUMSUB", names.channel)
    sharded, _ = await asker.ask("PUBSUB", "SHARDNUMSUB", names.channel)  # as in a Cluster; unknown before 7.0
    clock, _ = await asker.ask("TIME")
    return ShardFacts(
        index,
        told,
        invalidated_scopes=None if None in counts else sum(counts),
        buckets=buckets,
        log_first=_seq(oldest),
        log_last=_seq(newest),
        nodes=rows,
        all_nodes=all_rows,
        nodes_refused=rows_refused,
        subscribers=heard[1] + (sharded[1] if sharded else 0) if heard else None,
        now_us=int(clock[0]) * 1_000_000 + int(clock[1]) if clock else 0,
    )


async def _rows(asker: Asker, nodes: str) -> tuple[dict[str, NodeRow], bool, str]:
    """The rows of a shard, by its nodes' names, whether these are all, and why they may not be read. Some at a time:
    nobody waits for many."""
    rows: dict[str, NodeRow] = {}
    cursor = b"0"
    while len(rows) < ROWS_MAX:
        reply, refused = await asker.ask("HSCAN", nodes, cursor, "COUNT", ROWS_AT_ONCE)
        if refused:
            return rows, False, refused
        cursor, flat = reply
        pairs = zip(flat[::2], flat[1::2], strict=True)
        rows.update((node.decode(errors="replace"), node_row(row)) for node, row in pairs if node != NAME)
        if cursor == b"0":
            return rows, True, ""
    return rows, False, ""


def _seq(entries: list[list[bytes]] | None) -> int | None:
    """The seq of the first entry; 0 if there is none, None if it is not known."""
    if entries is None:
        return None
    return whole(entries[0][0].decode(errors="replace").partition("-")[0]) if entries else 0


async def other_databases(asker: Asker, info: dict[str, str], settings: Settings, own: int) -> list[int]:
    """Other databases of this server that hold the same namespace."""
    meta = ShardNames(settings.namespace, 0).meta
    found = []
    for name in info:
        if not name.startswith("db") or not name[2:].isdecimal() or int(name[2:]) == own:
            continue
        _, refused = await asker.ask("SELECT", name[2:])
        there, _ = (None, "") if refused else await asker.ask("EXISTS", meta)
        if there:
            found.append(int(name[2:]))
    await asker.ask("SELECT", own)
    return found


def _remedy(said: str, settings: Settings) -> str:
    """How settings are made to agree with what a namespace is laid out as, and "or"; "" where they can't be."""
    stated = taking_back.stated(said)
    if stated.get("protocol") not in (None, str(PROTOCOL)):
        return f"run the version of cachebus that has protocol {stated['protocol']}, or "
    ours = {"shards": str(settings.shards), "bus": settings.bus}
    wanted = [
        f"CACHEBUS_{name.upper()}={stated[name]}" for name in ours if stated.get(name, "0") not in ("0", ours[name])
    ]
    return f"set {' and '.join(wanted)} for every node, or " if wanted else ""


def _only_unnamed(said: str, settings: Settings) -> bool:
    """Whether a layout differs in nothing but what these settings do not name: an operator need not know it."""
    stated = taking_back.stated(said)
    ours = {"protocol": str(PROTOCOL), "shards": str(settings.shards), "bus": settings.bus}
    apart = {name for name in ours | stated if stated.get(name) != ours.get(name)}
    return apart <= {"shards", "bus"} - settings.model_fields_set


def _ours(settings: Settings) -> str:
    return f"protocol={PROTOCOL} shards={settings.shards} bus={settings.bus}"


def _unsaid(facts: Facts, there: str, said: str, which: Sequence[int]) -> Finding:
    """The finding about a layout that these settings do not name."""
    settings = facts.settings
    ours, remedy = _ours(settings), _remedy(said, settings)
    if strangers := taking_back.strangers(facts):
        return Finding(
            "namespace",
            Severity.PROBLEM,
            f"{there}, nothing here says so ({ours!r}), and {strangers:,} more listen to its events than its nodes are",
            "They may be a `cachebus tail`. Else a node with a wrong setting has laid the namespace out, and nodes "
            "with other settings are refused: all their calls raise (ProtocolMismatch).",
            mend=taking_back.commands(facts, which),
            otherwise=f"{remedy}ask the doctor with the settings that the nodes have{taking_back.way(facts)}",
        )
    return Finding(
        "namespace",
        Severity.ADVICE,
        f"{there}, and nothing here says so ({ours!r})",
        "It is looked at as it is laid out. A node that has no more settings than these refuses to start "
        "(ProtocolMismatch).",
        otherwise=f"{remedy}ask the doctor with the settings that the nodes have",
    )


def layout(facts: Facts) -> Iterator[Finding]:
    """Check that nodes with these settings may join, and that the history is this server's."""
    space, settings = f"namespace {facts.settings.namespace}", facts.settings
    ours = _ours(settings)
    unread: dict[str, list[int]] = {}
    others: dict[str, list[int]] = {}
    unnamed: dict[str, list[int]] = {}
    for shard in facts.shards:
        if shard.refused:
            unread.setdefault(shard.refused, []).append(shard.index)
        elif shard.meta and shard.meta.get("facts", "") != ours:
            told = shard.meta.get("facts", "")
            (unnamed if _only_unnamed(told, settings) else others).setdefault(told, []).append(shard.index)
    for why, which in unread.items():
        yield unknown("namespace", f"{space}, {shards_named(which)}: {why}")
    for said, which in others.items():
        yield Finding(
            "namespace",
            Severity.PROBLEM,
            f"{space} is laid out as {said!r} in {shards_named(which)}, these settings say {ours!r}",
            "Nodes with these settings refuse to start (ProtocolMismatch). All calls of those that run raise.",
            mend=taking_back.commands(facts, which),
            otherwise=f"{_remedy(said, settings)}set CACHEBUS_NAMESPACE to another name{taking_back.way(facts)}",
        )
    for said, which in unnamed.items():
        yield _unsaid(facts, f"{space} is laid out as {said!r} in {shards_named(which)}", said, which)
    if unread or others:
        return
    ours = next(iter(unnamed), ours)
    if not any(shard.meta for shard in facts.shards):
        yield _not_here(space, settings)
        return
    epochs = ", ".join(f"{s.meta.get('epoch', '?')}.{s.meta.get('seq', '?')}" for s in facts.shards[:4])
    yield ok("namespace", f"{space}: {ours}; epoch and seq {epochs}{' ...' if len(facts.shards) > 4 else ''}")
    due = [s for s in facts.shards if _is_due(s, facts)]
    if due:
        yield Finding(
            "takeover",
            Severity.ADVICE,
            f"{len(due)} of {len(facts.shards)} shards will begin a new epoch with the next operation",
            "The server was restarted or failed over, or marks were lost: every node drops its memory once.",
            otherwise="nothing is to be done: any node or producer does it by its next operation",
        )


def _not_here(space: str, settings: Settings) -> Finding:
    """The finding where nobody has laid the namespace out. Who names it, or a database, may have misspelt it: what he
    wants to be looked at was not."""
    if "namespace" not in settings.model_fields_set and not endpoints_of(settings).template.db:
        return ok("namespace", f"{space}: no node has been here yet, or its meta was lost")
    return unknown(
        "namespace",
        f"there is no {space} in database {endpoints_of(settings).template.db}",
        "No node has been here yet, or its meta was lost; or nodes have another namespace, database or server.",
        "look at --namespace, and at the URL with its database; else start a node",
    )


def _is_due(shard: ShardFacts, facts: Facts) -> bool:
    replid = facts.server.info.get("master_replid")
    if not shard.meta:
        return False
    moved = replid is not None and shard.meta.get("server") != replid
    lost = "marks" in shard.meta and not shard.buckets
    counted = sum(bucket.members for bucket in shard.buckets.values())
    return moved or lost or (shard.invalidated_scopes is not None and counted != shard.invalidated_scopes)


def databases(facts: Facts) -> Iterator[Finding]:
    """Check whether another database of the server holds the same namespace."""
    if facts.other_databases:
        others = ", ".join(map(str, facts.other_databases))
        yield Finding(
            "databases",
            Severity.ADVICE,
            f"namespace {facts.settings.namespace} lies in database {others} too",
            "They disturb each other in nothing, and share nothing: an invalidation in one does not reach the other.",
            otherwise="if they are meant to be one, give all nodes the same number behind the / of CACHEBUS_URL",
        )


def invalidated_scopes(facts: Facts) -> Iterator[Finding]:
    """Check how many invalidated scopes and tags are remembered, of the most that may be."""
    counts = [s.invalidated_scopes for s in facts.shards if s.invalidated_scopes is not None]
    if not counts:
        return
    most = facts.settings.max_invalidated_scopes
    trimmed = sum(whole(s.meta.get("trimmed")) or 0 for s in facts.shards)
    buckets = sum(bucket.low > 0 for s in facts.shards for bucket in s.buckets.values())
    said = f"at most {max(counts):,} of {most:,} scopes in a shard; {trimmed:,} were forgotten, in {buckets} buckets"
    if max(counts) > NEARLY_ALL * most or trimmed:
        yield Finding(
            "invalidated_scopes",
            Severity.ADVICE,
            said,
            "Past the limit the bucket of tenants that has most marks loses its oldest. What those tenants had stored "
            "before is not believed any more: more loads for them, nothing stale, nothing lost to others.",
            otherwise=f"set CACHEBUS_MAX_INVALIDATED_SCOPES={2 * most} for every node, if that happens often; some 150 "
            "bytes each",
        )
    else:
        yield ok("invalidated_scopes", said)


def log(facts: Facts) -> Iterator[Finding]:
    """Check how far back a node that was away can catch up."""
    # A shard whose epoch has just begun has no log yet, and no marks.
    lost = [s.index for s in facts.shards if s.log_last == 0 and s.meta and (s.log_first or s.invalidated_scopes)]
    kept = [s.log_last - s.log_first + 1 for s in facts.shards if s.log_first and s.log_last]
    if lost:
        yield Finding(
            "log",
            Severity.ADVICE,
            f"in shard {lost[0]} the log lacks the latest events: it was evicted or deleted",
            "Nodes that miss an event now drop that shard's memory instead of catching up. The next event mends it.",
        )
    elif kept:
        yield ok("log", f"keeps the last {min(kept):,} to {max(kept):,} events of a shard, for nodes that missed them")
