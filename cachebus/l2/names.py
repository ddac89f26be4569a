"""Names of cachebus's own keys in Redis. All of a shard's share one hash tag, so that one script may touch them."""

from __future__ import annotations

from cachebus.keys.key import ALL_TENANTS, Key
from cachebus.wire.inquiry import channel_of_answers


class ShardNames:
    """The names of one shard of a namespace, in one database of a server."""

    __slots__ = (
        "buckets",
        "channel",
        "counter_prefix",
        "fill_lease_prefix",
        "guards",
        "identity",
        "log",
        "marks_prefix",
        "meta",
        "nodes",
        "record_prefix",
    )

    def __init__(self, namespace: str, shard: int, database: int = 0) -> None:
        tag = f"{{{namespace}:{shard}}}"
        self.meta = f"{tag}:meta"
        self.log = f"{tag}:log"
        self.nodes = f"{tag}:nodes"
        self.guards = f"{tag}:guards"
        self.identity = f"{tag}:identity"
        self.buckets = f"{tag}:buckets"
        self.marks_prefix = f"{tag}:marks:"
        self.channel = f"{tag}:events:{database}"
        """Channels know no databases, so its name has the number."""
        self.record_prefix = f"{tag}:r:"
        self.fill_lease_prefix = f"{tag}:l:"
        self.counter_prefix = f"{tag}:c:"

    @property
    def own(self) -> list[str]:
        """All but records, fill leases and counters."""
        return [self.meta, self.log, self.nodes, self.guards, self.buckets, self.identity, *self.all_marks]

    @property
    def all_marks(self) -> list[str]:
        """Where the marks of every bucket lie."""
        return [self.marks(bucket) for bucket in (ALL_TENANTS, *(f"{bucket:02x}" for bucket in range(256)))]

    def record(self, key: Key) -> str:
        """Where the key's record lies."""
        return self.record_prefix + key.l2

    def fill_lease(self, key: Key) -> str:
        """Where the key's fill lease lies."""
        return self.fill_lease_prefix + key.l2

    def answers(self, question: str) -> str:
        """The channel of the answers to the question with this id."""
        return channel_of_answers(self.channel, question)

    def marks(self, bucket: str) -> str:
        """Where a bucket's marks lie."""
        return self.marks_prefix + bucket
