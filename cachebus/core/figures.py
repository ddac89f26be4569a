"""How a shard stands, for those who watch."""

from __future__ import annotations

from cachebus.core.shard import Shard
from cachebus.observe import ShardStats


def stats_of(shard: Shard, now_s: float, bound_s: float) -> ShardStats:
    """As this node sees it. `bound_s`: the largest staleness bound of the fleet that was heard of."""
    return ShardStats(
        shard=shard.index,
        epoch=shard.epoch.decode(),
        applied=shard.applied,
        head=shard.highest_seq,
        lease_left_s=max(0.0, shard.valid_until_s - now_s),
        invalidated_scopes=sum(map(len, shard.invalidated.values())),
        bound_s=bound_s,
    )
