"""What a store on Redis is told of the namespace that it keeps."""

from __future__ import annotations

from typing import NamedTuple

from cachebus.core.ports import PROTOCOL


class Layout(NamedTuple):
    """What all who share a namespace must agree on, and what its shards may take in L2."""

    namespace: str
    shards: int
    bus: str
    max_invalidated_scopes: int
    log_max: int
    """How many entries a shard's log has at most."""
    log_max_bytes: int = 64 * 1024 * 1024
    database: int = 0

    @property
    def facts(self) -> str:
        """What is compared with a shard's meta: who says otherwise is refused."""
        return f"protocol={PROTOCOL} shards={self.shards} bus={self.bus}"
