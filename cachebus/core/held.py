"""What a node holds under one name, and whether it serves it: said of an entry without touching it.

It asks the very rules by which a read is served (`Node.stands`, `Shard.serves`), and changes nothing: no entry moves,
goes, or counts as read because somebody has asked about it.
"""

from __future__ import annotations

from math import inf, isinf

from msgspec.structs import replace

from cachebus.core.details import details
from cachebus.core.node import Node
from cachebus.keys.key import scopes_of
from cachebus.l1 import Entry
from cachebus.wire.inquiry import NodeAnswer

FOR_EVER = -1


def held(node: Node, index: int, l1: str) -> NodeAnswer:
    """What the node has of the key with this L1 name, which need not be one."""
    shard, now_s = node.shards[index], node.clock()
    entry = node.l1.entries.get(l1)
    said = NodeAnswer(
        node=node.id,
        epoch=shard.epoch.decode(errors="replace"),
        applied=shard.applied,
        highest_seq=shard.highest_seq,
        bound_ms=node.about.bound_ms,
        lease_ms=_left_ms(shard.valid_until_s, now_s),
    )
    if entry is None or entry.group.shard != index:
        return said
    return _with_entry(said, node, entry, now_s)


def _with_entry(said: NodeAnswer, node: Node, entry: Entry, now_s: float) -> NodeAnswer:
    shard, group, extra = node.shards[entry.group.shard], entry.group, details(entry)
    serves = shard.serves(now_s, entry.expires_s, entry.read_until_s)
    why_not = ""
    if not node.stands(entry):
        why_not = "replaced"
    elif not serves:
        why_not = "expired" if now_s >= entry.expires_s else "no_lease"
    until_s = min(entry.expires_s, max(shard.valid_until_s, entry.read_until_s))
    tags = () if extra is None else extra.tags
    _, scopes = scopes_of(entry.key)
    said = replace(
        said,
        holds="value",
        seq=entry.seq,
        why_not=why_not,
        serves_ms=0 if why_not else _left_ms(until_s, now_s),
        expires_ms=_left_ms(entry.expires_s, now_s),
        fast=now_s < entry.fast_until_s and now_s < group.valid_until_s,
        alone=not group.fenced,
        blocked=node.blocked is not None and node.blocked.covers_name(entry.key, group.shard, (*scopes, *tags)),
    )
    if extra is None:
        return said
    return replace(
        said,
        holds="absent" if extra.absent else "not_found" if extra.not_found else "value",
        version=extra.version.hex(),
        fallback_ms=0 if extra.not_found or why_not == "replaced" else _left_ms(extra.fallback_until_s, now_s),
        soft=extra.soft_until_s <= now_s,
    )


def _left_ms(until_s: float, now_s: float) -> int:
    """What is left, in whole ms, rounded up: nothing is served later than that."""
    if isinf(until_s):
        return FOR_EVER if until_s == inf else 0
    return max(0, int((until_s - now_s) * 1000) + 1) if until_s > now_s else 0
