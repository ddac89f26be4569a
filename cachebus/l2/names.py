"""Names of cachebus's own keys in Redis. All of a shard's share one hash tag, so that one script may touch them."""

from __future__ import annotations

from cachebus.keys import Key


class ShardNames:
    """The names of one shard of a namespace."""

    __slots__ = ("channel", "counter_prefix", "lease_prefix", "log", "own", "record_prefix", "request_prefix")

    def __init__(self, namespace: str, shard: int) -> None:
        tag = f"{{{namespace}:{shard}}}"
        self.own = [f"{tag}:meta", f"{tag}:marks", f"{tag}:log", f"{tag}:nodes"]
        """meta, marks, log, nodes: the first four KEYS of every script."""
        self.log = self.own[2]
        self.channel = f"{tag}:events"
        self.record_prefix = f"{tag}:r:"
        self.lease_prefix = f"{tag}:l:"
        self.counter_prefix = f"{tag}:c:"
        self.request_prefix = f"{tag}:q:"

    def record(self, key: Key) -> str:
        """Where the key's record lies."""
        return self.record_prefix + key.l2

    def lease(self, key: Key) -> str:
        """Where the key's fill lease lies."""
        return self.lease_prefix + key.l2
