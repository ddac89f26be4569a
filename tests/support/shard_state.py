"""All that a shard in memory holds, to be kept and put back: an older copy of a server's data."""

from __future__ import annotations

import copy
from typing import Any

from cachebus.l2.memory import MemoryShard

_PARTS = (
    "meta_server",
    "epoch",
    "seq",
    "born_s",
    "bound_ms",
    "guard_ms",
    "keeps_without_l2",
    "invalidated",
    "messages",
    "logged_bytes",
    "rows",
    "nodes_name",
    "records",
    "fill_leases",
    "in_contexts",
    "guards",
    "guarded",
    "guarded_until_s",
    "counters",
    "requests",
)


def copied(shard: MemoryShard) -> dict[str, Any]:
    """A copy of all that the server has, as a snapshot would."""
    return {name: copy.deepcopy(getattr(shard, name)) for name in _PARTS}


def put_back(shard: MemoryShard, state: dict[str, Any]) -> None:
    """Have the server hold what it held then; nothing where there is no copy."""
    for name, value in state.items():
        setattr(shard, name, copy.deepcopy(value))


def lose_meta(shard: MemoryShard) -> None:
    """Play an eviction of meta."""
    shard.meta_server, shard.epoch, shard.seq, shard.bound_ms, shard.guard_ms = "", b"", 0, 0, 0
    shard.keeps_without_l2 = False


def lose_nodes(shard: MemoryShard) -> None:
    """Play an eviction of the nodes' rows."""
    shard.rows, shard.nodes_name = {}, b""
