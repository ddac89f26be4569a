"""Choices that a user writes as a string, under the names by which they are exported."""

from __future__ import annotations

from typing import Literal

Wait = Literal["nodes"]
"""What a write waits for beyond L2: "nodes" is until each has applied it, or can't serve what it replaced."""
ContextMatch = Literal["exact", "all"]
"""Which contexts an invalidation of an id concerns: the given one exactly, or all of them."""
OnOutage = Literal["raise", "miss"]
"""What a read does that neither level may answer."""
Status = Literal["applied", "pending", "disabled"]
"""What has become of an invalidation when its call returns: it stands, it waits for L2, or it was not done at all, as
the cache is off (`Settings.enabled`)."""
Codec = Literal["msgpack", "f32", "raw"]
"""How values are encoded."""
Origin = Literal["database", "generation"]
"""Which of cache-aside's two functions has given a value."""
Level = Literal["l1", "l2"]
"""Which level of the cache had a value."""
Transport = Literal["redis", "kafka"]
"""What carries events."""
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]
"""How a client of Kafka proves who it is."""
