"""Faults of one node's process, and of the source behind it."""

from __future__ import annotations

import signal
from typing import Final

from cachebus.base.clock import monotonic
from cachebus.tools.verify.fleet import messages
from cachebus.tools.verify.target.testbed import Act, Fault, Occurrence, Testbed, pause

GATHER_S: Final = 0.3


async def _stop(testbed: Testbed, occurrence: Occurrence) -> None:
    testbed.fleet.signal(occurrence.node, signal.SIGSTOP)
    try:
        await pause(occurrence.lasts_s)
    finally:
        testbed.fleet.signal(occurrence.node, signal.SIGCONT)


async def _kill(testbed: Testbed, occurrence: Occurrence) -> None:
    await testbed.fleet.kill(occurrence.node)
    await pause(occurrence.lasts_s)
    await testbed.fleet.start(occurrence.node)


def _ordered(order: str) -> Act:
    async def act(testbed: Testbed, occurrence: Occurrence) -> None:
        testbed.fleet.order(occurrence.node, order, occurrence.lasts_s)
        await pause(occurrence.lasts_s)

    return act


async def _newborn(testbed: Testbed, occurrence: Occurrence) -> None:
    """All data is deleted, and a node that knows nothing begins the history at 1. All other nodes are far ahead of
    it."""
    others = [proxy for node, proxy in testbed.proxies.items() if node != occurrence.node]
    try:
        for proxy in others:
            proxy.hold()
        await testbed.fleet.kill(occurrence.node)
        await pause(GATHER_S)
        began_s = monotonic()
        await testbed.machine.command("FLUSHALL")
        await testbed.fleet.start(occurrence.node)
        await pause(max(0.0, occurrence.lasts_s - (monotonic() - began_s)))
    finally:
        for proxy in others:
            proxy.restore()


NODE_FAULTS: Final = (
    Fault("stop", "node", "SIGSTOP, later SIGCONT", (0.3, 2.5), _stop),
    Fault("kill", "node", "SIGKILL, and a new node in its place", (0.0, 1.0), _kill),
    Fault("stall", "node", "its event loop stands still", (0.2, 1.5), _ordered(messages.STALL)),
    Fault(
        "newborn",
        "node",
        "FLUSHALL while all other nodes hang, and a new node begins history at 1",
        (0.2, 0.5),
        _newborn,
        own=True,
        ends_leases=True,
    ),
)

SOURCE_FAULTS: Final = (
    Fault("slow", "source", "many loads of a node last longer than their lease", (0.5, 3.0), _ordered(messages.SLOW)),
    Fault("sour", "source", "the source fails a node", (0.5, 3.0), _ordered(messages.SOUR)),
    Fault("stuck", "source", "the source answers a node nothing at all", (0.5, 2.0), _ordered(messages.STUCK)),
)
"""They are injected beside faults of the nodes, so that a fallback for a failing source may be too old as well."""
