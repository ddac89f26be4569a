"""Checks of how long a failover takes: too short a silence deposes a primary that lives, too long a one is an outage.

Sentinels' `failover-timeout` ends an attempt that has not come through. The next one follows after twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cachebus.tools.doctor.finding import ON_FAILOVER, Finding, Severity, config_set

LEAST_FAILOVER_S: Final = 3.0
"""The least min-replicas-max-lag is a second. It ends only so long after the last acknowledgement."""
MOST_FAILOVER_S: Final = 60.0
FAILOVER_MS: Final = 5000
LEAST_ATTEMPT_S: Final = 3.0
"""A Sentinel asks a replica once a second whether it is a primary by now."""
MOST_ATTEMPT_S: Final = 180.0
"""What Sentinels have by themselves."""
ATTEMPT_MS: Final = 60_000


def of_sentinels(
    service: str, failover_s: float | None, attempts_s: Sequence[float], bound_s: float
) -> Iterator[Finding]:
    """Check `down-after-milliseconds`, the least of all, and every `failover-timeout`."""
    if failover_s is not None:
        said = f"down-after-milliseconds is {failover_s * 1000:.0f}"
        option = f"SENTINEL SET {service} down-after-milliseconds {FAILOVER_MS}"
        yield from _silence(failover_s, bound_s, _Setting(said, (option,), (), "every Sentinel"))
    wrong = next((each for each in attempts_s if not LEAST_ATTEMPT_S <= each <= MOST_ATTEMPT_S), None)
    if wrong is not None:
        yield _attempt(service, wrong, bound_s)


def of_cluster(failover_s: float, bound_s: float) -> Iterator[Finding]:
    """Check `cluster-node-timeout`, the least of all."""
    commands, conf = config_set(cluster_node_timeout=f"{FAILOVER_MS}")
    said = f"cluster-node-timeout is {failover_s * 1000:.0f} ms"
    yield from _silence(failover_s, bound_s, _Setting(said, commands, conf, "every node of the Cluster"))


class _Setting(NamedTuple):
    """How long a silence is let pass, and how to change that."""

    said: str
    mend: tuple[str, ...]
    conf: tuple[str, ...]
    at: str


def _silence(failover_s: float, bound_s: float, setting: _Setting) -> Iterator[Finding]:
    said, mend, conf, at = setting
    if failover_s < LEAST_FAILOVER_S:
        means = (
            f"A replica may be promoted before {LEAST_FAILOVER_S:g} s are over: no min-replicas-max-lag is short "
            "enough. A primary that was cut off takes writes, and renews leases, beside the one that was promoted."
        )
        yield Finding("failover", Severity.ADVICE, said, means, ON_FAILOVER, mend, conf, at=at)
    elif failover_s > MOST_FAILOVER_S:
        means = (
            f"For {_lasting(failover_s)} after a primary has died nothing takes its place, and leases lapse after "
            f"{bound_s:g} s: L2 counts as lost, reads go to the source, invalidations wait or raise. Nothing stale is "
            "served."
        )
        yield Finding("failover", Severity.ADVICE, said, means, (), mend, conf, at=at)


def _attempt(service: str, attempt_s: float, bound_s: float) -> Finding:
    means = (
        "An attempt at a failover that does not come through is followed by the next one after "
        f"{_lasting(2 * attempt_s)}, and leases lapse after {bound_s:g} s: L2 counts as lost for all of it. Nothing "
        "stale is served."
        if attempt_s > MOST_ATTEMPT_S
        else "An attempt at a failover is given up before the replica can have said that it is the primary: perhaps "
        "none comes through, and L2 counts as lost until the primary is back."
    )
    option = f"SENTINEL SET {service} failover-timeout {ATTEMPT_MS}"
    said = f"failover-timeout is {attempt_s * 1000:.0f}"
    return Finding("failover timeout", Severity.ADVICE, said, means, (), (option,), at="every Sentinel")


def _lasting(seconds: float) -> str:
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.0f} min"
