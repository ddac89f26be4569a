"""Liveness: what must not happen while no fault is at work. A cache that is always down would keep every bound."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cachebus.consumers.worker.retry import LONGEST_S
from cachebus.tools.verify.checker.history import StaleRead
from cachebus.tools.verify.checker.loads import Excuses
from cachebus.tools.verify.fleet.disturbances import FLUSHED
from cachebus.tools.verify.fleet.writing import BY_WORKER

if TYPE_CHECKING:
    from cachebus.tools.verify.checker.judge import Judgement


def check_fault_free(case: Judgement, late: Sequence[StaleRead]) -> None:
    """Find flushes, late invalidations and leaks. `late`: reads that were older than half of the bound."""
    evidence, impaired = case.evidence, case.evidence.impaired()
    for node in evidence.lives:
        for kind, from_s, until_s in evidence.records(node, "disturbances"):
            if kind == FLUSHED and not impaired[node].overlap(from_s, until_s):
                told = f"node {node} dropped all it held, though nothing was wrong"
                case.found("flush", told, partial(case.explainer.explain_moment, node, from_s))
    for stale in late:
        if not _any(impaired, stale):
            told = f"node {stale.node} read version {stale.version} of {evidence.items[stale.item]}"
            case.found("lag", f"{told}, {stale.age_s:.3f} s after that of version {stale.missed} had returned")
    for write in case.history.writes:
        took_s = write.returned_s - write.called_s
        # After a failure the worker tries again after its longest pause only.
        began_s = write.called_s - LONGEST_S
        if (
            write.verb == BY_WORKER
            and took_s > evidence.bound_s
            and not impaired[write.node].overlap(began_s, write.returned_s)
        ):
            told = f"the worker of node {write.node} had {evidence.items[write.item]} invalidated"
            case.found("lag", f"{told} {took_s:.3f} s after it was asked to, though nothing was wrong")
    for number, what in evidence.left.items():
        case.found("left", f"node {number} had {what} more than at its start")


def _any(impaired: dict[str, Excuses], stale: StaleRead) -> bool:
    """Whether any node was impaired: it may be the one that wrote."""
    return any(excuses.overlap(stale.started_s - stale.age_s, stale.started_s) for excuses in impaired.values())
