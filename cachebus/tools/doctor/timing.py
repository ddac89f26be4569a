"""Measures and checks how fast the server answers, and how its clock and ours run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from cachebus.base.clock import boottime_s, monotonic, perf_counter, wall_s
from cachebus.l2.names import ShardNames
from cachebus.settings import Settings
from cachebus.tools.doctor.asking import Asker
from cachebus.tools.doctor.facts import Facts, Timing
from cachebus.tools.doctor.finding import G1, Finding, Severity, ok, unknown

ROUNDS: Final = 100
LEAST_ROUNDS: Final = 6
LONGEST_S: Final = 2.0
"""Over a slow link nothing is measured for longer than that, once it was measured some times."""
CLOCK_WINDOW_S: Final = 0.4
CLOCK_PROBES: Final = 24
SLOW_S: Final = 0.010
OFFSET_NOTED_S: Final = 1.0
DRIFT_NOTED: Final = 1e-3
SUSPENDED_NOTED_S: Final = 1.0
SCRIPT: Final = """local clock = redis.call('TIME')
local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)')
redis.pcall('HMGET', KEYS[1], 'server', 'epoch', 'seq')
return {clock[1], clock[2], server or ''}"""
"""The beginning of every script of ours. It changes nothing."""


async def timed(asker: Asker, settings: Settings, rounds: int = ROUNDS, shard: int = 0) -> Timing:
    """Measure round trips, and compare clocks. Takes about half a second, and some seconds at most."""
    pings = await _rounds(asker, rounds, "PING")
    meta = ShardNames(settings.namespace, shard).meta
    reply, refused = await asker.ask("EVAL", SCRIPT, 1, meta)
    if not refused and not reply[2]:
        refused = "INFO replication names no master_replid to a script"
    scripts = [] if refused else await _rounds(asker, rounds, "EVAL", SCRIPT, 1, meta)
    offset_s, error_s, drift, drift_error = await _compared(asker)
    suspended_s = boottime_s() - monotonic()
    return Timing(sorted(pings), sorted(scripts), refused, offset_s, error_s, drift, drift_error, suspended_s)


async def _rounds(asker: Asker, rounds: int, *args: str | int) -> list[float]:
    """How long each of so many took, or of as many as there is time for."""
    until_s, took = perf_counter() + LONGEST_S, list[float]()
    while len(took) < rounds and (len(took) < LEAST_ROUNDS or perf_counter() < until_s):
        took.append(await _took_s(asker, *args))
    return took


async def _took_s(asker: Asker, *args: str | int) -> float:
    began_s = perf_counter()
    await asker.ask(*args)
    return perf_counter() - began_s


async def _compared(asker: Asker) -> tuple[float, float, float, float]:
    """Offset, its error, drift, and its error. The error is half of a round trip, so the quickest one is used."""
    seen: list[tuple[float, float, float]] = []
    until_s = perf_counter() + LONGEST_S
    while len(seen) < CLOCK_PROBES and (len(seen) < LEAST_ROUNDS or perf_counter() < until_s):
        wall, asked_s = wall_s(), perf_counter()
        reply, refused = await asker.ask("TIME")
        took_s = perf_counter() - asked_s
        if refused:
            return 0.0, float("inf"), 0.0, float("inf")
        theirs_s = int(reply[0]) + int(reply[1]) / 1e6
        seen.append((took_s / 2, theirs_s - wall - took_s / 2, asked_s))
        await asyncio.sleep(CLOCK_WINDOW_S / CLOCK_PROBES)
    third = len(seen) // 3
    first, last = min(seen[:third]), min(seen[-third:])
    apart_s = last[2] - first[2]
    best = min(seen)
    return best[1], best[0], (last[1] - first[1]) / apart_s, (first[0] + last[0]) / apart_s


def quantile(values: Sequence[float], q: float) -> float:
    """The quantile of sorted values; 0.0 if there are none."""
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def latency(facts: Facts) -> Iterator[Finding]:
    """Check that probes are answered well before the lease that they renew ends."""
    timing, settings = facts.timing, facts.settings
    if timing.script_refused:
        yield Finding(
            "scripts",
            Severity.PROBLEM,
            f"a script that reads TIME and INFO is refused: {timing.script_refused}",
            "Every operation of cachebus is such a script: none succeeds.",
            otherwise="allow EVAL and EVALSHA, and TIME, INFO and HMGET in them; see the check named permissions"
            if "CLUSTERDOWN" not in timing.script_refused
            else "have every slot of the Cluster served (redis-cli --cluster check HOST:PORT tells which), or let the "
            "others go on: CONFIG SET cluster-require-full-coverage no at every node",
        )
        worst_s = quantile(timing.pings_s, 0.99)
    else:
        worst_s = quantile(timing.scripts_s, 0.99)
    said = (
        f"PING p50 {_ms(timing.pings_s, 0.5)}, p99 {_ms(timing.pings_s, 0.99)}; "
        f"a script p50 {_ms(timing.scripts_s, 0.5)}, p99 {_ms(timing.scripts_s, 0.99)}"
    )
    look = "look at SLOWLOG GET 10 and LATENCY DOCTOR, or bring server and nodes nearer together"
    if worst_s >= min(settings.l2_timeout_s, settings.probe_interval_s):
        means = (
            f"Longer than the probe interval ({settings.probe_interval_s:g} s) or l2_timeout_s "
            f"({settings.l2_timeout_s:g} s): leases lapse, and reads go to L2 or to the source."
        )
        yield Finding("latency", Severity.PROBLEM, said, means, otherwise=look)
    elif worst_s > SLOW_S:
        means = "Every miss of L1 and every invalidation takes as long."
        yield Finding("latency", Severity.ADVICE, said, means, otherwise=look)
    else:
        yield ok("latency", said, f"Of {settings.probe_interval_s * 1000:g} ms between two probes.")


def _ms(values: Sequence[float], q: float) -> str:
    return f"{quantile(values, q) * 1000:.2f} ms" if values else "-"


def forking(facts: Facts) -> Iterator[Finding]:
    """Check how long the server stands still when it forks to write a file."""
    fork_us = facts.server.number("latest_fork_usec")
    if fork_us is not None and fork_us / 1e6 >= facts.settings.l2_timeout_s / 2:
        yield Finding(
            "fork",
            Severity.ADVICE,
            f"the last fork held the server for {fork_us / 1e6:.2f} s",
            f"With l2_timeout_s at {facts.settings.l2_timeout_s:g} s operations fail meanwhile.",
            mend=('CONFIG SET save ""', "CONFIG SET appendonly no"),
            conf=('save ""', "appendonly no"),
            otherwise="or raise l2_timeout_s (CACHEBUS_L2_TIMEOUT_S); a cache can do without files",
        )


def clocks(facts: Facts) -> Iterator[Finding]:
    """Check the clocks. No decision compares two machines' clocks: expiry follows the server's clock, and the lease
    this node's monotonic one."""
    timing = facts.timing
    said = (
        f"the server's clock is {timing.offset_s:+.3f} s from this machine's, give or take {timing.offset_error_s:.3f}"
    )
    sync = "keep both machines' clocks by NTP (chronyd, systemd-timesyncd)"
    if timing.offset_error_s == float("inf"):
        yield unknown("clock", "TIME is refused")
    elif abs(timing.drift) > DRIFT_NOTED + timing.drift_error:
        means = (
            "One of them is being set, or runs wrong. If it is this machine's monotonic clock, a second of the "
            "staleness bound is not a second."
        )
        drift = f"the clocks drift apart by {timing.drift * 1000:+.1f} ms a second"
        yield Finding("clock", Severity.ADVICE, drift, means, (G1,), otherwise=sync)
    elif abs(timing.offset_s) > OFFSET_NOTED_S + timing.offset_error_s:
        means = (
            "No promise compares them. Records expire by the server's, so a failover to a machine with another clock "
            "moves expiries by the difference; and logs are hard to lay side by side."
        )
        yield Finding("clock", Severity.ADVICE, said, means, otherwise=sync)
    else:
        yield ok("clock", said, "Expiry follows the server's clock, leases this machine's monotonic one.")
    if timing.suspended_s > SUSPENDED_NOTED_S:
        yield Finding(
            "suspends",
            Severity.ADVICE,
            f"this machine was suspended for {timing.suspended_s:.0f} s since it was started",
            "Its monotonic clock stood still. A node notices at its next probe and drops its leases; between waking "
            "up and that probe it may serve what is older than the bound.",
            (G1,),
            otherwise="systemctl mask sleep.target suspend.target hibernate.target, where nodes run",
        )
