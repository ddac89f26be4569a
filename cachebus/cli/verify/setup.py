"""How the caches of a run are set up, from its bound: small limits, so that a short run meets all of them."""

from __future__ import annotations

from typing import Any

from cachebus import Settings
from cachebus.cli.verify.items import POLICIES
from cachebus.cli.verify.messages import Job

LEASE_MS = 400
MARKS_MAX = 200
"""Fewer than there are scopes and tags: the floor is raised now and then."""
LOG_MAX = 2_000
TOPIC = "cachebus.verify"
PARTITIONS = 2


def probe_interval_s(bound_s: float) -> float:
    """How often the lease is renewed."""
    return min(0.5, bound_s / 4)


def l2_timeout_s(bound_s: float) -> float:
    """How long an operation on L2 may take."""
    return min(1.0, max(0.3, bound_s / 2))


def settings_of(job: Job) -> Settings:
    """The library's settings for a job."""
    interval_s = probe_interval_s(job.bound_s)
    return Settings(
        url=job.url,
        namespace=job.namespace,
        node_name=f"node-{job.node}",
        staleness_bound_s=job.bound_s,
        probe_interval_s=interval_s,
        hole_grace_s=min(0.05, interval_s),
        l2_timeout_s=l2_timeout_s(job.bound_s),
        connect_timeout_s=2.0,
        close_timeout_s=1.0,
        start_degraded=True,  # a node may have to begin while its server is away
        lease_ms=LEASE_MS,
        max_marks=MARKS_MAX,
        log_max_len=LOG_MAX,
        policies=POLICIES,
        **_kafka(job),
    )


def _kafka(job: Job) -> dict[str, Any]:
    if not job.kafka:
        return {}
    return {
        "bus": "kafka",
        "kafka_bootstrap_servers": job.kafka,
        "kafka_topic": TOPIC,
        "kafka_partitions": PARTITIONS,
    }
