"""The settings of a run's caches, derived from its bound. Limits are small, so that even a short run reaches them."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Any

from cachebus import Settings
from cachebus.tools.verify.fleet.data_types import POLICIES
from cachebus.tools.verify.fleet.messages import VerifyJob

LEASE_MS = 400
WIDER = 2.0
"""Every other node has a bound that is larger by this factor."""
MARKS_MAX, FEW_MARKS = 60, 16
"""Invalidated scopes that L2 remembers, for the two caches. There are more, so low watermarks are raised in a run."""
LOG_MAX = 2_000
ENTRIES, FEW_ENTRIES = 100_000, 150
"""Entries in L1, for most nodes, and for every third, which reads more than that."""
WARM_UP_S = 10.0
TOPIC = "cachebus.verify"
PARTITIONS = 2


def probe_interval_s(bound_s: float) -> float:
    """How often a node renews its leases, in seconds."""
    return min(0.5, bound_s / 4)


def l2_timeout_s(bound_s: float) -> float:
    """How long an operation on L2 may take, in seconds."""
    return min(1.0, max(0.3, bound_s / 2))


DB_TIMEOUT_S = 0.8
"""How long the database behind a guard lets a transaction live."""


def guard_max_s(bound_s: float) -> float:
    """How long a guard stands at most, from the fleet's largest bound. Short, so that abandoned guards end in a run."""
    return 1.25 * bound_s + DB_TIMEOUT_S


def bound_of(node: int, bound_s: float) -> float:
    """The bound of a node: not every node has the same."""
    return bound_s if node % 2 else WIDER * bound_s


def has_room(node: int) -> bool:
    """Whether a node's L1 has room for all items."""
    return node % 3 != 0


def settings_of(job: VerifyJob, cache_index: int = 0) -> Settings:
    """The library's settings for one of the caches of a job."""
    interval_s = probe_interval_s(job.bound_s)
    return Settings(
        url=job.other_url if cache_index else job.url,
        namespace=f"{job.namespace}-other" if cache_index else job.namespace,
        node_name=f"node-{job.node}",
        staleness_bound_s=job.bound_s,
        probe_interval_s=interval_s,
        gap_grace_s=min(0.05, interval_s),
        l2_timeout_s=l2_timeout_s(job.bound_s),
        connect_timeout_s=2.0,
        close_timeout_s=1.0,
        guard_max_s=guard_max_s(job.largest_bound_s),
        start_degraded=True,  # a node may be started while its server is away
        lease_ms=LEASE_MS,
        max_invalidated_scopes=FEW_MARKS if cache_index else MARKS_MAX,
        log_max_len=LOG_MAX,
        l1_max_entries=ENTRIES if has_room(job.node) else FEW_ENTRIES,
        warm_up=True,  # so that a node that is started anew reads, amid faults, what others tell it
        warm_up_s=WARM_UP_S,
        policies=POLICIES,
        encryption=_keys(job) if job.encryption else None,
        **_kafka(job),
    )


def _keys(job: VerifyJob) -> str:
    """Two keys, that change places whenever a node is started again: all can read what each has stored."""
    first = (job.node + job.life) % 2
    secrets = {name: sha256(f"{job.namespace} {name}".encode()).digest() for name in ("a", "b")}
    texts = [f"{name}:{b64encode(secret).decode()}" for name, secret in secrets.items()]
    return ",".join((texts[first], texts[1 - first]))


def _kafka(job: VerifyJob) -> dict[str, Any]:
    if not job.kafka:
        return {}
    return {"bus": "kafka", "kafka_bootstrap_servers": job.kafka, "kafka_topic": TOPIC, "kafka_partitions": PARTITIONS}
